"""A critic that does not share the policy's trunk."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rewards.errors import UserError
from rl.forward.micro_batch import MicroBatch
from rl.forward.output_head import ValueHead
from rl.policy.policy import ContextFactory, Policy

CRITIC = "critic.safetensors"


@dataclass(frozen=True, kw_only=True, eq=False)
class Critic:
    """V_t = w h_{t-1} + b, where h are the hidden states of a language model. `Critic.of` makes one from a model that only the critic uses.

    trunk: computes the hidden states. trunk_parameters: its trainable parameters, by name.
    activate: factory of a context in which the trunk has the critic's weights, needed for the forward and the backward.
    """

    trunk: Policy
    head: ValueHead
    trunk_parameters: Mapping[str, nn.Parameter]
    activate: ContextFactory = nullcontext

    @staticmethod
    def of(trunk: Policy) -> Critic:
        """A critic whose values are 0 at first. Removes the trunk's output layer."""
        if trunk.forward.gives_logits:
            raise UserError(
                f"critic_model: {type(trunk.model).__name__} does not return its last hidden states; name another model"
            )
        trunk.model.set_output_embeddings(nn.Identity())
        parameters = dict(trunk.model.named_parameters())
        return Critic(trunk=trunk, head=ValueHead.zeros(trunk.model), trunk_parameters=parameters)

    def values(self, micro: MicroBatch) -> Float[Tensor, " S"]:
        """The value of the state before each scored token, with gradients. Inside `activate` only."""
        with self.trunk.autocast():
            states = self.trunk.hidden_states(micro)
        return self.head(states)

    def parameters(self) -> list[nn.Parameter]:
        return [*self.trunk_parameters.values(), *self.head.parameters()]

    def save(self, folder: Path) -> None:
        save_file({name: p.detach() for name, p in self.trunk_parameters.items()}, folder / CRITIC)
        self.head.save(folder)

    @torch.no_grad()
    def load(self, folder: Path) -> None:
        saved = load_file(folder / CRITIC)
        for name, parameter in self.trunk_parameters.items():
            parameter.copy_(saved[name])
        self.head.load(folder)
