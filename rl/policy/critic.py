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

from rewards.errors import UserError
from rl.forward.micro_batch import MicroBatch
from rl.forward.output_head import ValueHead
from rl.policy.policy import Policy

CRITIC = "critic.safetensors"


class Critic:
    """V_t = w h_{t-1} + b over a language model's trunk, trained by itself.

    trunk: scores no tokens; its states are read. weights: makes the context in which the trunk has the critic's weights, for
    its forward and its backward.
    """

    weights: Callable[[], AbstractContextManager[Any]] = nullcontext

    def __init__(self, trunk: Policy) -> None:
        if trunk.forward.gives_logits:
            raise UserError(
                f"critic_model: {type(trunk.model).__name__} does not show its last hidden states; name another model"
            )
        self.trunk, self.head = trunk, ValueHead.zeros(trunk.model)
        trunk.model.set_output_embeddings(nn.Identity())  # its output layer is not needed

    def values(self, micro: MicroBatch) -> Float[Tensor, " S"]:
        with self.trunk.autocast():
            states = self.trunk.forward.states(self.trunk.model, micro)
        return self.head(states)

    def trained(self) -> dict[str, nn.Parameter]:
        """Of the trunk."""
        return dict(self.trunk.model.named_parameters())

    def parameters(self) -> list[nn.Parameter]:
        return [*self.trained().values(), *self.head.parameters()]

    def save(self, folder: Path) -> None:
        save_file({name: p.detach() for name, p in self.trained().items()}, folder / CRITIC)
        self.head.save(folder)

    @torch.no_grad()
    def load(self, folder: Path) -> None:
        saved = load_file(folder / CRITIC)
        for name, parameter in self.trained().items():
            parameter.copy_(saved[name])
        self.head.load(folder)
