"""Storage of frozen weights in bfloat16, for runs under bfloat16 autocast.

Under bfloat16 autocast a linear layer rounds its weight before the product, so a weight that is stored rounded gives the same bits. An
embedding is looked up instead of multiplied: its rows are cast back to float32, so that the residual stream stays float32. An embedding
that was published in bfloat16, as most are, loses nothing. Norms and other small parameters stay float32.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

ROUNDED = torch.bfloat16


def roundable(model: nn.Module) -> list[nn.Parameter]:
    """Float32 parameters of linear layers and plain embeddings, except those that a module of another kind uses too, such as an output
    layer that computes in float32."""
    others = {p for m in model.modules() if type(m) not in _ROUNDABLE for p in m.parameters(recurse=False)}
    found = {p: None for m in model.modules() if type(m) in _ROUNDABLE for p in m.parameters(recurse=False)}
    return [p for p in found if p not in others and p.dtype == torch.float32]


_ROUNDABLE = (nn.Linear, Conv1D, nn.Embedding)


@torch.no_grad()
def round_frozen(model: nn.Module) -> None:
    """Stores the roundable parameters in bfloat16, in place. None of them may be trained afterwards."""
    for parameter in roundable(model):
        parameter.data = parameter.data.to(ROUNDED)
    return_float32(model)


def return_float32(model: nn.Module) -> None:
    """Makes embeddings in bfloat16 return float32."""
    for module in model.modules():
        if type(module) is nn.Embedding and module.weight.dtype == ROUNDED:
            module.register_forward_hook(_to_float32)


def _to_float32(module: nn.Module, arguments: Any, output: Tensor) -> Tensor:
    return output.float()
