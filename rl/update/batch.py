"""A step's groups as whole parts: what is counted, what is run, and how it is cut into micro-batches and shared by processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from rewards.errors import UserError
from rl.forward.layouts import packed_tokens
from rl.forward.micro_batch import MicroBatch, TrainGroup, TrainSequence
from rl.objective.algorithms import Algorithm, CreditedGroup
from rl.objective.reductions import StepCounts
from rollout.records import FinishReason, Rollout


@dataclass(frozen=True)
class Batch:
    """A step's groups that carry gradient, and the counts of all its groups."""

    groups: tuple[TrainGroup, ...]
    counts: StepCounts

    @property
    def num_tokens(self) -> int:
        """Tokens that go through the update's forward."""
        return sum(g.num_tokens for g in self.groups)

    def share(self, rank: int, count: int) -> Batch:
        """What one of several processes trains on: parts of about equally many tokens. The counts stay those of the whole."""
        by_size = sorted(self.groups, key=lambda g: -g.num_tokens)
        return Batch(self.groups if count == 1 else tuple(by_size[rank::count]), self.counts)

    def idle(self) -> MicroBatch:
        """A dummy for a process that has none left while others have: a sequence that nothing is learnt from."""
        group = self.groups[0]
        micro = MicroBatch.of([TrainGroup(group.prompt_ids, group.sequences[:1])])
        nothing = torch.zeros_like(micro.weights)
        return replace(micro, weights=nothing, loss_mask=nothing, loss_indices=micro.loss_indices[:0])

    def viewed(self, view_at: Callable[[int, int], int] | None, epoch: int) -> Batch:
        """The completions under the views that they are scored under in an epoch; sequences share a prompt only under one view.

        view_at: PolicyFamily.view_at; None is a family that reads no views, and so refuses completions that have one.
        """
        if view_at is None:
            if any(s.view is not None for g in self.groups for s in g.sequences):
                raise ValueError(
                    "a completion has a view, and this policy reads none: sampler and policy are of two families"
                )
            return self
        groups: list[TrainGroup] = []
        for group in self.groups:
            by_view: dict[int | None, list[TrainSequence]] = {}
            for s in group.sequences:
                view = None if s.view is None else view_at(s.view, epoch)
                by_view.setdefault(view, []).append(replace(s, view=view))
            groups += [TrainGroup(group.prompt_ids, tuple(of_view)) for of_view in by_view.values()]
        return Batch(tuple(groups), self.counts)

    def micro_batches(self, token_budget: int, num_tokens: TokenCount = packed_tokens) -> Iterator[MicroBatch]:
        """Micro-batches that cost at most token_budget tokens, as the forward's `num_tokens` counts them.

        Each part goes into the first that has room, the largest parts first: at most about 11/9 as many as there must be (first-fit
        decreasing).
        """
        rows: list[list[TrainGroup]] = []
        parts = [part for group in self.groups for part in split_to_fit(group, token_budget, num_tokens)]
        for part in sorted(parts, key=lambda g: -num_tokens([g])):
            row = next((row for row in rows if num_tokens([*row, part]) <= token_budget), None)
            if row is None:
                rows.append(row := [])
            row.append(part)
        for row in rows:
            yield MicroBatch.of(sorted(row, key=lambda g: g.num_tokens / len(g.sequences)))


TokenCount = Callable[[Sequence[TrainGroup]], int]


def split_to_fit(group: TrainGroup, token_budget: int, num_tokens: TokenCount = packed_tokens) -> list[TrainGroup]:
    """A group larger than the budget becomes several, each with its prompt; the gradient is the same."""
    parts: list[TrainGroup] = []
    sequences: list[TrainSequence] = []
    for sequence in sorted(group.sequences, key=lambda s: len(s.token_ids)):
        alone = num_tokens([TrainGroup(group.prompt_ids, (sequence,))])
        if alone > token_budget:
            raise UserError(
                f"token_budget is {token_budget}, smaller than one sequence of {alone} tokens: raise token_budget, or lower max_tokens"
            )
        if sequences and num_tokens([TrainGroup(group.prompt_ids, (*sequences, sequence))]) > token_budget:
            parts.append(TrainGroup(group.prompt_ids, tuple(sequences)))
            sequences = []
        sequences.append(sequence)
    return [*parts, TrainGroup(group.prompt_ids, tuple(sequences))]


def pack(credited: Sequence[CreditedGroup], algorithm: Algorithm, max_tokens: int) -> Batch:
    """Count over all graded completions, then keep those that carry gradient.

    Completions without a reward, or in which nothing is trained on, are in neither sum nor count. Where the loss has no term but the
    advantages', completions whose advantages are all zero are counted and not run.
    """
    drops = algorithm.drops_zero_advantages

    def bootstraps(rollout: Rollout) -> bool:
        return algorithm.bootstraps_cut and rollout.completion.finish_reason is FinishReason.LENGTH

    def trained_on(rollout: Rollout) -> tuple[bool, ...]:
        mask = rollout.completion.loss_mask
        return (*mask[:-1], False) if bootstraps(rollout) else mask

    graded = [
        [(r, reward, a, mask) for r, reward, a in c.rows() if reward is not None and any(mask := trained_on(r))]
        for c in credited
    ]
    lengths = [sum(mask) for rows in graded for *_, mask in rows]
    counts = StepCounts(num_tokens=sum(lengths), num_sequences=len(lengths), max_tokens=max_tokens)
    packed = []
    for c, rows in zip(credited, graded, strict=True):
        kept = tuple(
            TrainSequence(
                token_ids=r.completion.token_ids,
                loss_mask=mask,
                sampler_logprobs=r.completion.sampler_logprobs[: sum(mask)],
                advantages=None if a is None else a[torch.tensor(mask)],
                weight=algorithm.reduction(sum(mask), counts),
                reward=None if bootstraps(r) else reward,
                view=r.completion.view,
            )
            for r, reward, a, mask in rows
            if not drops or a is None or bool(a[torch.tensor(mask)].any())
        )
        if kept:
            packed.append(TrainGroup(c.group.prompt_ids, kept))
    return Batch(tuple(packed), counts)
