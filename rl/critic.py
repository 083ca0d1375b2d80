"""A critic with a trunk of its own."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from jaxtyping import Float
from safetensors.torch import load_model, save_model
from torch import Tensor, nn
from transformers import PreTrainedModel

from rewards.errors import UserError
from rl.batch import MicroBatch
from rl.forward import Attention, choose_forward, enable_gradient_checkpointing
from rl.head import ValueHead

CRITIC = "critic.safetensors"


class Critic:
    """V_t = w h_{t-1} + b over a language model's trunk, all of it trained by an optimiser of its own."""

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
        model.set_output_embeddings(nn.Identity())  # its output layer is not needed
        if gradient_checkpointing:
            enable_gradient_checkpointing(model)
        self.model, self.autocast, self.head = model, autocast, ValueHead.zeros(model)

    def values(self, micro: MicroBatch) -> Float[Tensor, " S"]:
        with self.autocast():
            states = self.forward.states(self.model, micro)
        return self.head(states)

    def parameters(self) -> list[nn.Parameter]:
        return [*self.model.parameters(), *self.head.parameters()]

    def save(self, folder: Path) -> None:
        save_model(self.model, folder / CRITIC)
        self.head.save(folder)

    def load(self, folder: Path) -> None:
        load_model(self.model, folder / CRITIC)
        self.head.load(folder)
