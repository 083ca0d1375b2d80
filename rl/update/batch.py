"""A step's groups as whole parts: what is counted, what is run, and how it is cut into micro-batches and shared by processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from rewards.errors import UserError
from rl.forward.micro_batch import MicroBatch, TrainGroup, TrainSequence, lay_out
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
        """For a process that has none left while others have: a sequence that nothing is learnt from."""
        group = self.groups[0]
        micro = lay_out([TrainGroup(group.prompt_ids, group.sequences[:1])])
        nothing = torch.zeros_like(micro.weights)
        return replace(micro, weights=nothing, loss_mask=nothing, trained=micro.trained[:0])

    def micro_batches(self, token_budget: int) -> Iterator[MicroBatch]:
        """Micro-batches of at most token_budget tokens. Each part goes into the first that has room, the largest parts first: at
        most about 11/9 as many as there must be (first-fit decreasing)."""
        rows: list[list[TrainGroup]] = []
        filled: list[int] = []
        parts = [part for group in self.groups for part in split_to_fit(group, token_budget)]
        for part in sorted(parts, key=lambda g: -g.num_tokens):
            i = next((i for i, n in enumerate(filled) if n + part.num_tokens <= token_budget), len(rows))
            if i == len(rows):
                rows.append([])
                filled.append(0)
            rows[i].append(part)
            filled[i] += part.num_tokens
        for row in rows:
            yield lay_out(sorted(row, key=lambda g: g.num_tokens / len(g.sequences)))


def split_to_fit(group: TrainGroup, token_budget: int) -> list[TrainGroup]:
    """A group larger than the budget becomes several, each with its prompt; the gradient is the same."""
    parts: list[TrainGroup] = []
    sequences: list[TrainSequence] = []
    for sequence in sorted(group.sequences, key=lambda s: len(s.token_ids)):
        alone = TrainGroup(group.prompt_ids, (sequence,))
        if alone.num_tokens > token_budget:
            raise UserError(
                f"token_budget is {token_budget}, smaller than one sequence of {alone.num_tokens} tokens: "
                "raise token_budget, or lower max_tokens"
            )
        if sequences and TrainGroup(group.prompt_ids, (*sequences, sequence)).num_tokens > token_budget:
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
