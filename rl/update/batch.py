"""The batch of an update: selects completions, counts tokens, and divides groups over processes and into micro-batches."""

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
    """The groups of a step that contribute gradient, and the counts of all its groups."""

    groups: tuple[TrainGroup, ...]
    counts: StepCounts

    @property
    def num_tokens(self) -> int:
        """Number of tokens in packed rows of all groups."""
        return sum(g.num_tokens for g in self.groups)

    def shard(self, rank: int, count: int) -> Batch:
        """The groups of one of `count` processes, with similar numbers of tokens for each. The counts stay those of all groups."""
        by_size = sorted(self.groups, key=lambda g: -g.num_tokens)
        return Batch(self.groups if count == 1 else tuple(by_size[rank::count]), self.counts)

    def dummy(self) -> MicroBatch:
        """A micro-batch of one sequence with zero gradient, for a process that has fewer micro-batches than others."""
        group = self.groups[0]
        micro = MicroBatch.of([TrainGroup(group.prompt_ids, group.sequences[:1])])
        zeros = torch.zeros_like(micro.weights)
        return replace(micro, weights=zeros, loss_mask=zeros, loss_indices=micro.loss_indices[:0], group_of=(-1,))

    def viewed(self, view_at: Callable[[int, int], int] | None, epoch: int) -> Batch:
        """The batch with each completion under the view that it is scored under in this epoch. Sequences of one view share a prompt.

        view_at: PolicyFamily.view_at. None is a family without views, for which a completion with a view raises a ValueError.
        """
        if view_at is None:
            if any(s.view is not None for g in self.groups for s in g.sequences):
                raise ValueError(
                    "a completion has a view, and the policy's family has none: sampler and policy are of different families"
                )
            return self
        groups: list[TrainGroup] = []
        for group in self.groups:
            by_view: dict[int | None, list[TrainSequence]] = {}
            for s in group.sequences:
                view = None if s.view is None else view_at(s.view, epoch)
                by_view.setdefault(view, []).append(replace(s, view=view))
            groups += [TrainGroup(group.prompt_ids, tuple(sequences)) for sequences in by_view.values()]
        return Batch(tuple(groups), self.counts)

    def micro_batches(self, token_budget: int, num_tokens: TokenCount = packed_tokens) -> Iterator[MicroBatch]:
        """Yields micro-batches of at most token_budget tokens each. num_tokens: Forward.num_tokens, which counts a layout's tokens.

        First-fit decreasing: the parts of groups, largest first, go into the first micro-batch that has space. This yields at most
        about 11/9 of the smallest possible number of micro-batches.
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
    """Divides a group larger than the budget into several with the same prompt. The gradient stays the same."""
    parts: list[TrainGroup] = []
    sequences: list[TrainSequence] = []
    for sequence in sorted(group.sequences, key=lambda s: len(s.token_ids)):
        length = num_tokens([TrainGroup(group.prompt_ids, (sequence,))])
        if length > token_budget:
            raise UserError(
                f"token_budget is {token_budget}, smaller than one sequence of {length} tokens: raise token_budget, or lower max_tokens"
            )
        if sequences and num_tokens([TrainGroup(group.prompt_ids, (*sequences, sequence))]) > token_budget:
            parts.append(TrainGroup(group.prompt_ids, tuple(sequences)))
            sequences = []
        sequences.append(sequence)
    return [*parts, TrainGroup(group.prompt_ids, tuple(sequences))]


def pack(credited: Sequence[CreditedGroup], algorithm: Algorithm, max_tokens: int) -> Batch:
    """The batch of credited groups: counts are over all graded completions, and those that contribute gradient are kept.

    A completion without a reward, or without a token in the loss, is in neither the sum nor the counts, nor is a silent group where
    the algorithm does not count them. If every term of the loss is proportional to the advantage, completions whose advantages are
    all zero are counted but not kept.
    """
    credited = [c for c in credited if not (algorithm.leaves_out_silent and c.is_silent)]
    drops = algorithm.drops_zero_advantages

    def bootstraps(rollout: Rollout) -> bool:
        return algorithm.bootstraps_cut and rollout.completion.finish_reason is FinishReason.LENGTH

    def loss_mask(rollout: Rollout) -> tuple[bool, ...]:
        mask = rollout.completion.loss_mask
        return (*mask[:-1], False) if bootstraps(rollout) else mask

    graded = [
        [(r, reward, a, mask) for r, reward, a in c.rows() if reward is not None and any(mask := loss_mask(r))]
        for c in credited
    ]
    group_tokens = [sum(sum(mask) for *_, mask in rows) for rows in graded]
    counts = StepCounts(
        num_tokens=sum(group_tokens),
        num_sequences=sum(map(len, graded)),
        num_groups=sum(map(bool, graded)),
        max_tokens=max_tokens,
    )
    packed = []
    for number, (c, rows, tokens) in enumerate(zip(credited, graded, group_tokens, strict=True)):
        kept = tuple(
            TrainSequence(
                token_ids=r.completion.token_ids,
                loss_mask=mask,
                sampler_logprobs=r.completion.sampler_logprobs[: sum(mask)],
                advantages=None if a is None else a[torch.tensor(mask)],
                weight=algorithm.reduction(sum(mask), tokens, counts),
                reward=None if bootstraps(r) else reward,
                view=r.completion.view,
                group=number,
            )
            for r, reward, a, mask in rows
            if not drops or a is None or bool(a[torch.tensor(mask)].any())
        )
        if kept:
            packed.append(TrainGroup(c.group.prompt_ids, kept))
    return Batch(tuple(packed), counts)
