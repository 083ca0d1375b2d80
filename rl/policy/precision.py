"""Frozen weights in 16 bits, where that changes no number.

Under bfloat16 autocast a linear layer rounds its weight before it multiplies: a weight that is kept rounded gives the same
bits. A table of embeddings is read and not multiplied: what is read is turned back to float32, so that the sum of the layers'
outputs is kept in float32 as before, and a table that was stored in bfloat16, as those of most published models are, loses
nothing. Norms and whatever else is small stay in float32.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

ROUNDED = torch.bfloat16


def roundable(model: nn.Module) -> list[nn.Parameter]:
    """Parameters of linear layers and plain tables, those in 4 bits aside; not what another module reads in a way of its own."""
    tables = [m for m in model.modules() if type(m) is nn.Embedding]
    others = {p for m in model.modules() if not isinstance(m, _MULTIPLY) for p in m.parameters(recurse=False)}
    others -= {table.weight for table in tables}
    found = {p: None for m in model.modules() if type(m) in _READ for p in m.parameters(recurse=False)}
    return [p for p in found if p not in others and p.dtype == torch.float32]


_MULTIPLY = (nn.Linear, Conv1D)
_READ = (*_MULTIPLY, nn.Embedding)


@torch.no_grad()
def round_frozen(model: nn.Module) -> None:
    """In place; none of the weights may be trained any more."""
    for parameter in roundable(model):
        parameter.data = parameter.data.to(ROUNDED)
    return_float32(model)


def return_float32(model: nn.Module) -> None:
    """Of tables in 16 bits."""
    for module in model.modules():
        if type(module) is nn.Embedding and module.weight.dtype == ROUNDED:
            module.register_forward_hook(_to_float32)


def _to_float32(module: nn.Module, arguments: Any, read: Tensor) -> Tensor:
    return read.float()
