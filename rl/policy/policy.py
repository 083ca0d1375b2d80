"""The policy and its frozen reference: a Hugging Face causal LM and the forward that scores with it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    PreTrainedModel,
)

from rewards.errors import UserError
from rl.forward.forward import (
    Attention,
    Forward,
    ForwardChoice,
    enable_gradient_checkpointing,
    explain_forward,
    fuse,
    plain_forward,
)
from rl.forward.fused import Fused
from rl.forward.micro_batch import MicroBatch
from rl.forward.output_head import Looked, LossOf, ValueHead
from rl.objective.tokens import TokenScores
from rl.policy.offload import send_home, visiting
from rl.policy.precision import ROUNDED, return_float32, roundable
from rl.policy.save_model import model_state, save_model, save_tensors
from rl.processes.sharding import whole
from rollout.rounding import rounding_noise

EXACT_WEIGHTS = "exact_weights.pt"  # in a checkpoint whose model is stored in 16 bits: what training goes on from


class Policy:
    """Scores tokens with a model. Always in eval mode: dropout would make the ratio differ from 1 before the first update.

    autocast: makes the context to run the forward in. weights: makes the one in which the model has this policy's weights; a
    reference may share the policy's model. at_hand: makes the one in which weights that wait in the host's memory are on the
    device. value_head: over the policy's own states, where a critic shares its trunk.
    frozen_base: the model's own weights are not trained. inside: runs what reads the model's weights; where these are spread
    over processes that is their Root. forward: how a model that is not causal scores, under the views that it sampled with.
    stored_dtype: the type in which the base was stored, and checkpoints are.
    """

    weights: Callable[[], AbstractContextManager[Any]] = nullcontext
    at_hand: Callable[[], AbstractContextManager[Any]] = nullcontext
    value_head: ValueHead | None = None
    frozen_base: bool = False
    stored_dtype: torch.dtype = torch.float32
    inside: Callable[[Callable[[], Any]], Any] = staticmethod(lambda run: run())

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        gradient_checkpointing: bool = False,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
        attention: Attention = "auto",
        fused: Fused = "auto",
        forward: Forward | None = None,
    ) -> None:
        self.model = model.eval()
        self.autocast = autocast
        with autocast():
            self.choice = ForwardChoice(forward) if forward else fuse(explain_forward(model, attention), model, fused)
        self.forward = self.choice.forward
        self.plain = forward or plain_forward
        if gradient_checkpointing:
            enable_gradient_checkpointing(model, fuses=self.forward.fuses)

    def score(self, micro: MicroBatch, temperature: float) -> TokenScores:
        def run() -> TokenScores:
            with self.autocast():
                return self.forward(self.model, micro, temperature, self.value_head)

        with self.weights():
            return self.inside(run)

    def rounding_noise(self, micro: MicroBatch) -> float:
        """The mean by which bfloat16 moves the model's log-probs of these tokens, in nats (rollout/rounding.py)."""

        def plain() -> Tensor:
            return self.plain(self.model, micro, 1.0).logprobs

        with self.weights():
            return self.inside(lambda: rounding_noise(plain, self.model)[1])

    @torch.no_grad()
    def look(self, micro: MicroBatch, temperature: float) -> Looked:
        """Log-probs and values alone, without gradients."""

        def run() -> Looked:
            with self.autocast():
                return self.forward.look(self.model, micro, temperature, self.value_head)

        with self.weights():
            return self.inside(run)

    def loss(
        self, micro: MicroBatch, temperature: float, loss_of: LossOf, *, token_level: bool
    ) -> tuple[Tensor, TokenScores]:
        """See Forward.loss."""

        def run() -> tuple[Tensor, TokenScores]:
            with self.autocast():
                return self.forward.loss(
                    self.model, micro, temperature, loss_of, token_level=token_level, value=self.value_head
                )

        return self.inside(run)

    def share_trunk(self, trunk_scale: float) -> None:
        """A critic on the policy's own trunk."""
        if self.forward.gives_logits:
            raise UserError(
                f"value is 'shared': {type(self.model).__name__} does not show its last hidden states; use separate or none"
            )
        self.value_head = ValueHead.zeros(self.model, trunk_scale)

    def frozen_copy(self, *, rounded: bool = False, offloaded: bool = False) -> Policy:
        """The reference: the policy as it is now. rounded: kept in 16 bits (rl/policy/precision.py). offloaded: in the host's memory."""
        clone = copy.copy(self)
        parts = roundable(self.model) if rounded else []
        already = {id(p): nn.Parameter(p.detach().to(ROUNDED), requires_grad=False) for p in parts}
        clone.model = copy.deepcopy(self.model, already).requires_grad_(False)
        clone.value_head = None
        if rounded:
            return_float32(clone.model)
        if offloaded:
            clone.at_hand = partial(visiting, clone.model, self.device)
            send_home(clone.model)
        return clone

    @torch.no_grad()
    def copied_to(self, reference: Policy) -> Policy:
        """An earlier frozen copy, made the policy as it is now."""
        for theirs, ours in zip(reference.model.parameters(), self.model.parameters(), strict=True):
            theirs.copy_(ours)
        return reference

    def trainable_parameters(self) -> list[nn.Parameter]:
        return [p for p in self.model.parameters() if p.requires_grad]

    def state(self) -> dict[str, Tensor]:
        """What save() writes. All processes must ask for it."""
        return model_state(self.model)

    def save(self, folder: Path, state: dict[str, Tensor] | None = None) -> None:
        """In Hugging Face format and stored_dtype; where that rounds, the exact weights beside it."""
        state = state or self.state()
        save_model(self.model, folder, state, self.stored_dtype)
        if any(t.is_floating_point() and t.dtype != self.stored_dtype for t in state.values()):
            save_tensors(state, folder / EXACT_WEIGHTS)

    @torch.no_grad()
    def load(self, folder: Path) -> None:
        if (folder / EXACT_WEIGHTS).is_file():
            saved = torch.load(folder / EXACT_WEIGHTS, map_location="cpu", weights_only=True)
        else:
            saved = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()
        assert model_state(self.model).keys() <= saved.keys()
        own = self.model.state_dict()
        for name, tensor in saved.items():
            own[name].copy_(tensor)

    def named_tensors(self, *, merged: bool = False) -> Iterator[tuple[str, Tensor]]:
        """Every parameter under every name it has, tied ones too: an engine may keep an output head of its own.

        merged: as a plain model has them, adapters added to what they adapt.
        """
        for name, tensor in self.model.named_parameters(remove_duplicate=False):
            yield name, whole(tensor)

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def vocab_size(self) -> int:
        return self.model.config.get_text_config().vocab_size
