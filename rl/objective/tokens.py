"""Inputs of the loss: records of tensors with one number per token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class ScoredTokens:
    """Per-token inputs of the loss for S tokens, sequence after sequence.

    loss_mask: 0 for a token that is scored only because its value bootstraps its sequence's reward. sequence_of: the index of each
    token's sequence. advantages: None if a critic computes them during the update. weights: from the reduction.
    """

    loss_mask: Float[Tensor, " S"]
    sequence_of: Int[Tensor, " S"]
    sampler_logprobs: Float[Tensor, " S"]
    advantages: Float[Tensor, " S"] | None
    weights: Float[Tensor, " S"]
    num_sequences: int

    def tokens(self, part: slice) -> ScoredTokens:
        """The tokens of a slice. Numbers of sequences stay the same even if the slice divides one."""
        return ScoredTokens(
            loss_mask=self.loss_mask[part],
            sequence_of=self.sequence_of[part],
            sampler_logprobs=self.sampler_logprobs[part],
            advantages=None if self.advantages is None else self.advantages[part],
            weights=self.weights[part],
            num_sequences=self.num_sequences,
        )


@dataclass(frozen=True, kw_only=True)
class ScoredSequences(ScoredTokens):
    """Per-token inputs of the loss for B whole sequences, with the per-sequence inputs of a critic and of DPO.

    lengths: the number of scored tokens of each sequence. rewards: of each sequence. group_of: the number of each sequence's group in the
    step. bootstraps: whether the value of the sequence's last scored token replaces its reward. loss_indices: the indices of the scored
    tokens whose loss_mask is 1.
    """

    lengths: tuple[int, ...]
    rewards: Float[Tensor, " B"]
    group_of: tuple[int, ...]
    bootstraps: Bool[Tensor, " B"]
    loss_indices: Int[Tensor, " U"]


class TokenScores(NamedTuple):
    """A policy's log-probs of S tokens, and the entropy in nats of its distribution at each of them."""

    logprobs: Float[Tensor, " S"]
    entropies: Float[Tensor, " S"]

    def detach(self) -> TokenScores:
        return TokenScores(self.logprobs.detach(), self.entropies.detach())

    def as_leaves(self) -> TokenScores:
        """Detached tensors that require gradients, so that a loss can be differentiated with respect to them."""
        return TokenScores(*(x.requires_grad_() for x in self.detach()))
