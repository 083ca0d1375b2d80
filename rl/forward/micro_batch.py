"""A micro-batch: the completions of one forward and backward, with the inputs of the loss for each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from itertools import compress
from typing import Protocol, Self, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rl.forward.row import transferred
from rl.objective.tokens import ScoredSequences


@dataclass(frozen=True, kw_only=True)
class TrainSequence:
    """One completion of T tokens in the update, U of which are in the loss.

    loss_mask: which tokens are in the loss; () is all of them. The others are context.
    advantages: None if a critic computes them during the update. weight: the reduction's weight of each token in the loss.
    view: the completion's view, for policy families that score under views.
    reward: of the completion; GAE gives it to the last scored token. None: max_tokens truncated the completion, and the critic's
        value before the last token, which is not in the loss, replaces the reward.
    group: the number of its group in the step. Completions of one group may be in several TrainGroups.
    """

    token_ids: tuple[int, ...]
    sampler_logprobs: tuple[float, ...]
    advantages: Float[Tensor, " U"] | None
    weight: float
    reward: float | None = 0.0
    view: int | None = None
    loss_mask: tuple[bool, ...] = ()
    group: int = 0

    def __post_init__(self) -> None:
        if all(self.loss_mask):
            object.__setattr__(self, "loss_mask", (True,) * len(self.token_ids))
        assert len(self.loss_mask) == len(self.token_ids)
        assert sum(self.loss_mask) == len(self.sampler_logprobs)
        assert self.advantages is None or len(self.advantages) == len(self.sampler_logprobs)

    @property
    def scored(self) -> tuple[bool, ...]:
        """Which tokens are scored: those in the loss, and a last token whose value replaces the reward."""
        return (*self.loss_mask[:-1], self.loss_mask[-1] or self.reward is None)

    def scored_indices(self) -> Int[Tensor, " S"]:
        """Indices of the scored tokens."""
        return torch.tensor(list(compress(range(len(self.token_ids)), self.scored)), dtype=torch.long)

    @staticmethod
    def to_score(token_ids: Sequence[int], sampler_logprobs: Sequence[float] | None = None) -> TrainSequence:
        """A sequence to be scored only: all its tokens have advantage and weight 0."""
        return TrainSequence(
            token_ids=tuple(token_ids),
            sampler_logprobs=tuple(sampler_logprobs or [0.0] * len(token_ids)),
            advantages=torch.zeros(len(token_ids)),
            weight=0.0,
        )


@dataclass(frozen=True)
class TrainGroup:
    """Sequences that share one prompt and one view."""

    prompt_ids: tuple[int, ...]
    sequences: tuple[TrainSequence, ...]

    @cached_property
    def num_tokens(self) -> int:
        """Number of tokens in a packed row, which contains the prompt once and no completion's last token."""
        return len(self.prompt_ids) + sum(len(s.token_ids) - 1 for s in self.sequences)

    @cached_property
    def longest(self) -> int:
        """Tokens of the longest sequence with its prompt, without its last token."""
        return len(self.prompt_ids) + max(len(s.token_ids) - 1 for s in self.sequences)


class Layout(Protocol):
    """The input tensors of one kind of forward for a micro-batch (rl/forward/layouts.py)."""

    def to(self, device: torch.device) -> Self: ...


L = TypeVar("L", bound=Layout)
LayOut = Callable[[Sequence[TrainGroup]], L]


@dataclass(frozen=True, kw_only=True)
class MicroBatch(ScoredSequences):
    """The S scored tokens of some groups, sequence after sequence. targets: the token ids.

    The forward determines the layout of its inputs; `laid_out` computes it on first use and keeps it in `layouts`.
    """

    groups: tuple[TrainGroup, ...]
    targets: Int[Tensor, " S"]
    layouts: dict[LayOut[Layout], Layout] = field(default_factory=dict, compare=False, repr=False)

    @staticmethod
    def of(groups: Sequence[TrainGroup]) -> MicroBatch:
        sequences = [s for g in groups for s in g.sequences]
        scored = [s.scored_indices() for s in sequences]
        lengths = tuple(len(indices) for indices in scored)
        mask = [m for s in sequences for m in compress(s.loss_mask, s.scored)]
        loss_indices = torch.tensor(list(compress(range(len(mask)), mask)), dtype=torch.long)
        advantages = [s.advantages for s in sequences if s.advantages is not None]
        assert len(advantages) in (0, len(sequences))

        def over_scored(values: Tensor) -> Tensor:
            """Values of the tokens in the loss, with 0 for the other scored tokens: [U] -> [S]."""
            return torch.zeros(len(mask)).index_copy(0, loss_indices, values)

        return MicroBatch(
            groups=tuple(groups),
            lengths=lengths,
            targets=torch.cat([torch.tensor(s.token_ids)[at] for s, at in zip(sequences, scored, strict=True)]),
            loss_mask=torch.tensor(mask, dtype=torch.float32),
            sequence_of=torch.cat([torch.full((n,), i) for i, n in enumerate(lengths)]),
            sampler_logprobs=over_scored(torch.tensor([x for s in sequences for x in s.sampler_logprobs])),
            advantages=over_scored(torch.cat(advantages)) if advantages else None,
            rewards=torch.tensor([s.reward or 0.0 for s in sequences]),
            group_of=tuple(s.group for s in sequences),
            bootstraps=torch.tensor([s.reward is None for s in sequences]),
            weights=over_scored(torch.tensor([float(s.weight) for s in sequences for _ in s.sampler_logprobs])),
            loss_indices=loss_indices,
            num_sequences=len(sequences),
        )

    def laid_out(self, lay_out: LayOut[L]) -> L:
        """lay_out(groups), on this device; kept for later epochs."""
        if lay_out not in self.layouts:
            self.layouts[lay_out] = lay_out(self.groups).to(self.device)
        return self.layouts[lay_out]  # pyright: ignore[reportReturnType]

    @property
    def device(self) -> torch.device:
        return self.targets.device

    def to(self, device: torch.device) -> MicroBatch:
        tensors = {f.name: x for f in fields(self) if isinstance(x := getattr(self, f.name), Tensor)}
        return replace(self, **transferred(tensors, device), layouts={})
