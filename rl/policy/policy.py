"""The policy and its frozen copies: a Hugging Face model with the forward that scores tokens under it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from rewards.errors import UserError
from rl.forward.choose_forward import ForwardChoice
from rl.forward.forward import Attention, Forward, enable_gradient_checkpointing
from rl.forward.fused import Fused
from rl.forward.micro_batch import MicroBatch
from rl.forward.output_head import AnyHead, OutputHead, ValueHead
from rl.objective.tokens import TokenScores
from rl.policy.families import CAUSAL, PolicyFamily
from rl.policy.offload import on_device, to_host
from rl.policy.precision import ROUNDED, return_float32, roundable
from rl.policy.save_model import model_state, save_tensors
from rl.processes.sharding import compute_device, full_tensor, shard_like
from rollout.rounding import rounding_noise

T = TypeVar("T")
ContextFactory = Callable[[], AbstractContextManager[Any]]
EXACT_WEIGHTS = "exact_weights.pt"  # the float32 weights in a checkpoint whose model is stored in 16 bits


@dataclass(frozen=True, kw_only=True, eq=False)
class Policy:
    """A model that scores tokens: the trained policy, or a frozen copy of it. `Policy.of` makes one.

    The model is always in eval mode: dropout would make the ratio differ from 1 before the first update.

    choice: the forward, and why faster ones cannot be used.
    autocast: factory of the forward's autocast context. activate: factory of a context in which the model has this policy's weights,
        for a reference that shares the policy's model. on_device: factory of a context in which offloaded weights are on the device.
    run_in_root: executes a function inside the FSDP root, where sharded weights are gathered.
    value_head: computes values from the policy's hidden states, for a critic that shares the policy's trunk.
    stored_dtype: the dtype of the base's files and of checkpoints.
    freezes_base: whether the model's own weights are frozen, as with LoRA.
    """

    model: PreTrainedModel
    family: PolicyFamily = CAUSAL
    choice: ForwardChoice
    autocast: ContextFactory = nullcontext
    activate: ContextFactory = nullcontext
    on_device: ContextFactory = nullcontext
    run_in_root: Callable[[Callable[[], Any]], Any] = lambda compute: compute()
    value_head: ValueHead | None = None
    stored_dtype: torch.dtype = torch.float32
    freezes_base: ClassVar[bool] = False

    @classmethod
    def of(
        cls,
        model: PreTrainedModel,
        *,
        gradient_checkpointing: bool = False,
        autocast: ContextFactory = nullcontext,
        attention: Attention = "auto",
        fused: Fused = "auto",
        family: PolicyFamily = CAUSAL,
        **fields: Any,
    ) -> Self:
        """The policy of a loaded model, with the forward that its family chooses. fields: further fields of the dataclass."""
        with autocast():
            choice = family.choose_forward(model.eval(), attention, fused)
        if gradient_checkpointing:
            enable_gradient_checkpointing(model, fuses=choice.forward.fuses)
        return cls(model=model, family=family, choice=choice, autocast=autocast, **fields)

    @property
    def forward(self) -> Forward:
        return self.choice.forward

    def run(self, compute: Callable[[], T]) -> T:
        """Returns compute(), executed under autocast with this policy's weights in the model, gathered if they are sharded."""

        def in_autocast() -> T:
            with self.autocast():
                return compute()

        with self.activate():
            return self.run_in_root(in_autocast)

    def hidden_states(self, micro: MicroBatch) -> Float[Tensor, "S H"]:
        """The last hidden state before each scored token, with gradients. Inside `run` only."""
        return self.forward.hidden_states(self.model, micro)

    @property
    def head(self) -> OutputHead | AnyHead:
        """The output layer, which reads `hidden_states`. Inside `run` only."""
        return self.forward.head(self.model)

    def score(self, micro: MicroBatch, temperature: float) -> TokenScores:
        """Log-probs and entropies of the scored tokens, with gradients."""
        return self.run(lambda: self.forward.score(self.model, micro, temperature))

    @torch.no_grad()
    def logprobs_and_values(
        self, micro: MicroBatch, temperature: float
    ) -> tuple[Float[Tensor, " S"], Float[Tensor, " S"] | None]:
        """Log-probs of the scored tokens, and their values if there is a value head; without gradients."""

        def compute() -> tuple[Tensor, Tensor | None]:
            states = self.hidden_states(micro)
            values = None if self.value_head is None else self.value_head(states)
            return self.head.logprobs(states, micro.targets, temperature), values

        return self.run(compute)

    def frozen_logprobs(self, micros: Sequence[MicroBatch], temperature: float) -> list[Float[Tensor, " S"]]:
        """A frozen policy's log-probs of the scored tokens of each micro-batch. Offloaded weights are on the device meanwhile."""
        with self.on_device():
            return [self.logprobs_and_values(micro, temperature)[0] for micro in micros]

    def rounding_noise(self, micro: MicroBatch) -> float:
        """The mean change in nats of the model's log-probs of these tokens under bfloat16 rounding (rollout/rounding.py)."""

        def logprobs() -> Tensor:
            return self.family.plain.score(self.model, micro, 1.0).logprobs

        with self.activate():
            return self.run_in_root(lambda: rounding_noise(logprobs, self.model)[1])

    def with_value_head(self, trunk_scale: float) -> Self:
        """The policy with a value head on its own trunk. trunk_scale: the factor on the value loss's gradient into the trunk."""
        if self.forward.gives_logits:
            raise UserError(
                f"value is 'shared': {type(self.model).__name__} does not return its last hidden states; use separate or none"
            )
        return replace(self, value_head=ValueHead.zeros(self.model, trunk_scale))

    def frozen_copy(self, *, rounded: bool = False, offloaded: bool = False) -> Policy:
        """A frozen copy of the policy. rounded: stored in 16 bits (rl/policy/precision.py). offloaded: in the host's memory."""
        to_round = roundable(self.model) if rounded else []
        copied = {id(p): nn.Parameter(p.detach().to(ROUNDED), requires_grad=False) for p in to_round}
        model = copy.deepcopy(self.model, copied).requires_grad_(False)
        if rounded:
            return_float32(model)
        frozen = replace(self, model=model, value_head=None)
        return frozen.offloaded() if offloaded else frozen

    def offloaded(self) -> Policy:
        """This frozen policy with its weights in the host's memory between uses."""
        device = self.device
        to_host(self.model)
        return replace(self, on_device=partial(on_device, self.model, device))

    @torch.no_grad()
    def copy_weights_to(self, reference: Policy) -> Policy:
        """Copies the policy's weights to an earlier frozen copy, in place. Returns the copy."""
        for theirs, ours in zip(reference.model.parameters(), self.model.parameters(), strict=True):
            theirs.copy_(ours)
        return reference

    def trainable_parameters(self) -> list[nn.Parameter]:
        """The model's parameters that require gradients, without the value head's."""
        return [p for p in self.model.parameters() if p.requires_grad]

    def state(self) -> dict[str, Tensor]:
        """The tensors that save() writes. All processes must call it."""
        return model_state(self.model)

    def save(self, folder: Path, state: dict[str, Tensor] | None = None) -> None:
        """Writes the model in Hugging Face format and stored_dtype; if that rounds weights, also the exact ones (EXACT_WEIGHTS)."""
        state = state or self.state()
        self.family.save(self.model, folder, state, self.stored_dtype)
        if any(t.is_floating_point() and t.dtype != self.stored_dtype for t in state.values()):
            save_tensors(state, folder / EXACT_WEIGHTS)

    @torch.no_grad()
    def load(self, folder: Path) -> None:
        """Loads what save() wrote."""
        if (folder / EXACT_WEIGHTS).is_file():
            saved = torch.load(folder / EXACT_WEIGHTS, map_location="cpu", weights_only=True)
        else:
            saved = self.family.read(folder)
        assert model_state(self.model).keys() <= saved.keys()
        own = self.model.state_dict()
        for name, tensor in saved.items():
            own[name].copy_(shard_like(tensor, own[name]))

    def named_tensors(self, *, merged: bool = False) -> Iterator[tuple[str, Tensor]]:
        """Every parameter under each of its names: an engine may not tie parameters that are tied here.

        merged: as the parameters of a plain model, with adapters merged.
        """
        for name, tensor in self.model.named_parameters(remove_duplicate=False):
            yield name, full_tensor(tensor)

    @property
    def device(self) -> torch.device:
        return compute_device(self.model)

    @property
    def vocab_size(self) -> int:
        return self.model.config.get_text_config().vocab_size
