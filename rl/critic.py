"""A critic with a trunk of its own."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from rewards.errors import UserError
from rl.batch import MicroBatch
from rl.forward import Attention, choose_forward, enable_gradient_checkpointing
from rl.head import ValueHead

CRITIC = "critic.safetensors"


class Critic:
    """V_t = w h_{t-1} + b over a language model's trunk, trained by itself.

    weights: makes the context in which the model has the critic's weights, for its forward and its backward.
    """

    weights: Callable[[], AbstractContextManager[Any]] = nullcontext

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        gradient_checkpointing: bool = False,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
        attention: Attention = "auto",
    ) -> None:
        with autocast():
            self.forward = choose_forward(model.eval(), attention)
        if self.forward.gives_logits:
            raise UserError(
                f"critic_model: {type(model).__name__} does not show its last hidden states; name another model"
            )
        if gradient_checkpointing:
            enable_gradient_checkpointing(model)
        self.model, self.autocast, self.head = model, autocast, ValueHead.zeros(model)
        model.set_output_embeddings(nn.Identity())  # its output layer is not needed

    def values(self, micro: MicroBatch) -> Float[Tensor, " S"]:
        with self.autocast():
            states = self.forward.states(self.model, micro)
        return self.head(states)

    def trunk(self) -> dict[str, nn.Parameter]:
        return dict(self.model.named_parameters())

    def parameters(self) -> list[nn.Parameter]:
        return [*self.trunk().values(), *self.head.parameters()]

    def save(self, folder: Path) -> None:
        save_file({name: p.detach() for name, p in self.trunk().items()}, folder / CRITIC)
        self.head.save(folder)

    @torch.no_grad()
    def load(self, folder: Path) -> None:
        saved = load_file(folder / CRITIC)
        for name, parameter in self.trunk().items():
            parameter.copy_(saved[name])
        self.head.load(folder)
