"""What the loss knows of tokens: records of tensors, one number a token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class ScoredTokens:
    """What the loss knows of S tokens, sequence after sequence. loss_mask: 0 for one of which only the value is asked.
    advantages: None until a critic has computed them."""

    loss_mask: Float[Tensor, " S"]
    sequence_of: Int[Tensor, " S"]
    sampler_logprobs: Float[Tensor, " S"]
    advantages: Float[Tensor, " S"] | None
    weights: Float[Tensor, " S"]
    num_sequences: int

    def tokens(self, part: slice) -> ScoredTokens:
        """Some of the scored tokens; sequences that are cut stay what they were."""
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
    """Whole sequences, B of them, with what a critic knows of each.

    lengths: in scored tokens. rewards: of the whole sequence. bootstraps: whether the value of a sequence's last scored token stands
    in its reward's place. trained: the indices of the scored tokens that are trained on.
    """

    lengths: tuple[int, ...]
    rewards: Float[Tensor, " B"]
    bootstraps: Bool[Tensor, " B"]
    trained: Int[Tensor, " U"]


class TokenScores(NamedTuple):
    """What a policy gives S tokens: log-probs, and the entropy of each whole distribution in nats."""

    logprobs: Float[Tensor, " S"]
    entropies: Float[Tensor, " S"]

    def detach(self) -> TokenScores:
        return TokenScores(self.logprobs.detach(), self.entropies.detach())

    def as_leaves(self) -> TokenScores:
        """Detached copies that require gradients, to differentiate a loss with respect to them."""
        return TokenScores(*(x.requires_grad_() for x in self.detach()))
