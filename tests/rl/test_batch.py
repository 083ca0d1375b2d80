"""Micro-batches: how a step's groups are put into rows."""

from __future__ import annotations

import random

import pytest

from rl.command.dry_run import equal_batch
from rl.forward.layouts import PackedRow, PaddedRows, packed_tokens, padded_tokens
from rl.forward.micro_batch import TrainGroup, TrainSequence
from rl.objective.reductions import StepCounts
from rl.update.batch import Batch


def of_any_length(num_groups: int) -> Batch:
    """Of 450 tokens on average, at most 1,024."""
    rng = random.Random(0)
    lengths = [[min(1024, max(2, int(rng.expovariate(1 / 450)))) for _ in range(8)] for _ in range(num_groups)]
    prompts = [(0,) * rng.randint(100, 512) for _ in lengths]
    groups = [
        TrainGroup(prompt, tuple(TrainSequence.to_score([0] * n) for n in row))
        for prompt, row in zip(prompts, lengths, strict=True)
    ]
    return Batch(tuple(groups), StepCounts(num_tokens=1, num_sequences=1, num_groups=1, max_tokens=1024))


@pytest.mark.parametrize(
    ("batch", "most"),
    [
        # 8,696 tokens a group: seven completions fill a row, and five rows' worth of eighth ones another: 32 + 7, where the tokens
        # would fill 34 to the brim
        (equal_batch(32, 8, 512, 1024), 39),
        (of_any_length(32), None),
    ],
)
def test_micro_batches_are_hardly_more_than_their_tokens_need(batch: Batch, most: int | None) -> None:
    budget = 8192
    micros = list(batch.micro_batches(budget))
    assert max(packed_tokens(m.groups) for m in micros) <= budget
    assert sum(m.num_sequences for m in micros) == sum(len(g.sequences) for g in batch.groups)
    assert len(micros) <= (most or 1.1 * -(-batch.num_tokens // budget) + 1)


def test_the_budget_counts_padding_where_rows_are_padded() -> None:
    """What a padded forward runs is sequences x the longest: 8,128 packed tokens were 36,800 padded ones."""
    budget, batch = 8192, of_any_length(32)
    micros = list(batch.micro_batches(budget, padded_tokens))
    assert max(m.laid_out(PaddedRows.of).input_ids.numel() for m in micros) <= budget
    assert sum(m.num_sequences for m in micros) == sum(len(g.sequences) for g in batch.groups)
    packed = list(batch.micro_batches(budget))
    assert max(m.laid_out(PaddedRows.of).input_ids.numel() for m in packed) > 2 * budget


@pytest.mark.parametrize("lay_out", [PackedRow.of, PaddedRows.of])
def test_a_layout_costs_what_the_budget_counts(lay_out) -> None:
    count = packed_tokens if lay_out == PackedRow.of else padded_tokens
    for micro in of_any_length(4).micro_batches(8192, count):
        assert micro.laid_out(lay_out).input_ids.numel() == count(micro.groups)
