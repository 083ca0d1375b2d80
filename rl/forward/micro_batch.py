"""The completions of one forward and backward: their tokens, and what the loss knows of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import compress
from typing import Protocol, Self, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rl.forward.row import transferred
from rl.objective.tokens import ScoredSequences


@dataclass(frozen=True, kw_only=True)
class TrainSequence:
    """One completion as the update sees it.

    T tokens, of which U are trained on (loss_mask; all of them unless it is said); the others are context.
    advantages: None where a critic computes them during the update. weight: what the reduction gives each trained token. view: the completion's.
    reward: of the whole; a critic takes it for that of the last trained token. None: the completion was cut, and the critic's
        value before its last token, which is not trained on, stands for all that would have followed.
    """

    token_ids: tuple[int, ...]
    sampler_logprobs: tuple[float, ...]
    advantages: Float[Tensor, " U"] | None
    weight: float
    reward: float | None = 0.0
    view: int | None = None
    loss_mask: tuple[bool, ...] = ()

    def __post_init__(self) -> None:
        if all(self.loss_mask):
            object.__setattr__(self, "loss_mask", (True,) * len(self.token_ids))
        assert len(self.loss_mask) == len(self.token_ids)
        assert sum(self.loss_mask) == len(self.sampler_logprobs)
        assert self.advantages is None or len(self.advantages) == len(self.sampler_logprobs)

    @property
    def scored(self) -> tuple[bool, ...]:
        """Which tokens are scored: those that are trained on, and that whose value stands for a reward."""
        return (*self.loss_mask[:-1], self.loss_mask[-1] or self.reward is None)

    def scored_indices(self) -> Int[Tensor, " S"]:
        """Of the tokens that are scored."""
        return torch.tensor(list(compress(range(len(self.token_ids)), self.scored)), dtype=torch.long)

    @staticmethod
    def to_score(token_ids: Sequence[int], sampler_logprobs: Sequence[float] | None = None) -> TrainSequence:
        """One that is scored and teaches nothing."""
        return TrainSequence(
            token_ids=tuple(token_ids),
            sampler_logprobs=tuple(sampler_logprobs or [0.0] * len(token_ids)),
            advantages=torch.zeros(len(token_ids)),
            weight=0.0,
        )


@dataclass(frozen=True)
class TrainGroup:
    """Sequences that share one prompt and one view of it."""

    prompt_ids: tuple[int, ...]
    sequences: tuple[TrainSequence, ...]

    @property
    def num_tokens(self) -> int:
        """In a row in which the prompt stands once and no last token is read."""
        return len(self.prompt_ids) + sum(len(s.token_ids) - 1 for s in self.sequences)


class Layout(Protocol):
    """The tokens of a micro-batch as one kind of forward reads them (rl/forward/layouts.py)."""

    def to(self, device: torch.device) -> Self: ...


L = TypeVar("L", bound=Layout)
LayOut = Callable[[Sequence[TrainGroup]], L]


@dataclass(frozen=True, kw_only=True)
class MicroBatch(ScoredSequences):
    """The S scored tokens of some groups, sequence after sequence. targets: the tokens themselves.

    How the groups are laid out for a forward is the forward's: `laid_out` makes the layout when it is first asked for.
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
        trained = torch.tensor(list(compress(range(len(mask)), mask)), dtype=torch.long)
        known = [s.advantages for s in sequences if s.advantages is not None]
        assert len(known) in (0, len(sequences))

        def of_trained(values: Tensor) -> Tensor:
            """0 for a token of which only the value is read."""
            return torch.zeros(len(mask)).index_copy(0, trained, values)

        return MicroBatch(
            groups=tuple(groups),
            lengths=lengths,
            targets=torch.cat([torch.tensor(s.token_ids)[at] for s, at in zip(sequences, scored, strict=True)]),
            loss_mask=torch.tensor(mask, dtype=torch.float32),
            sequence_of=torch.cat([torch.full((n,), i) for i, n in enumerate(lengths)]),
            sampler_logprobs=of_trained(torch.tensor([x for s in sequences for x in s.sampler_logprobs])),
            advantages=of_trained(torch.cat(known)) if known else None,
            rewards=torch.tensor([s.reward or 0.0 for s in sequences]),
            bootstraps=torch.tensor([s.reward is None for s in sequences]),
            weights=of_trained(torch.tensor([float(s.weight) for s in sequences for _ in s.sampler_logprobs])),
            trained=trained,
            num_sequences=len(sequences),
        )

    def laid_out(self, lay_out: LayOut[L]) -> L:
        """The groups as `lay_out` lays them out, on this device; kept for the next epoch."""
        if lay_out not in self.layouts:
            self.layouts[lay_out] = lay_out(self.groups).to(self.device)
        return self.layouts[lay_out]  # pyright: ignore[reportReturnType]

    @property
    def device(self) -> torch.device:
        return self.targets.device

    def to(self, device: torch.device) -> MicroBatch:
        tensors = {f.name: x for f in fields(self) if isinstance(x := getattr(self, f.name), Tensor)}
        return replace(self, **transferred(tensors, device), layouts={})
