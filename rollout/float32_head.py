"""An output layer that computes in float32 in a model whose other layers compute in 16 bits (--head-dtype float32).

Rounding the logits of a large vocabulary to bfloat16 changes them by up to 1/512 of their size, and sampler and trainer do not round
alike. The layer is a module of its own kind, so that every way to run the model finds it: the model's own forward, the trainer's output
head (rl/forward/output_head.py) and the embedded engine (rollout/engine/fused_model.py).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from rewards.errors import UserError


class Float32Linear(nn.Linear):
    """x W^T + b with all factors in float32, also under autocast."""

    @staticmethod
    def of(layer: nn.Linear) -> Float32Linear:
        """The layer with the same parameters."""
        made = Float32Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
        made.weight, made.bias = layer.weight, layer.bias
        return made.train(layer.training)

    def forward(self, input: Tensor) -> Tensor:
        with torch.autocast(input.device.type, enabled=False):
            return F.linear(input.float(), self.weight.float(), None if self.bias is None else self.bias.float())


def compute_head_in_float32(model: PreTrainedModel) -> None:
    """Replaces the output layer by a Float32Linear with the same parameters, in place."""
    layer = model.get_output_embeddings()
    if type(layer) is not nn.Linear:
        raise UserError(
            f"head_dtype is 'float32': the output layer of {type(model).__name__} is no plain linear layer ({type(layer).__name__}); "
            "leave it out"
        )
    model.set_output_embeddings(Float32Linear.of(layer))
