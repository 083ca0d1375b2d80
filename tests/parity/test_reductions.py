"""How tokens become one number: what each weighs, of which counts."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rl.objective.algorithms import DR_GRPO, GRPO
from rl.objective.reductions import (
    Reduction,
    StepCounts,
    constant_length,
    mean_of_token_means,
    prompt_mean,
    sequence_sum,
    token_mean,
)
from rl.update.batch import Batch, pack
from rollout.records import RolloutGroup
from tests.parity.cases import FEW, group_of

REDUCTIONS: dict[str, Reduction] = {
    r.__name__: r for r in (token_mean, mean_of_token_means, constant_length, sequence_sum, prompt_mean)
}
LENGTHS = st.lists(st.integers(1, 20), min_size=1, max_size=8)
EXACT = 1e-12  # a few roundings of 1e-16 on numbers near 1


def counts_of(*groups: list[int], max_tokens: int = 20) -> StepCounts:
    """Of groups of completions of these lengths."""
    lengths = [n for group in groups for n in group]
    return StepCounts(
        num_tokens=sum(lengths), num_sequences=len(lengths), num_groups=len(groups), max_tokens=max_tokens
    )


def reduced(reduction: Reduction, *groups: list[list[float]], max_tokens: int = 20) -> float:
    """The sum over groups of completions of terms."""
    lengths = [[len(row) for row in rows] for rows in groups]
    counts = counts_of(*lengths, max_tokens=max_tokens)
    return sum(
        reduction(len(row), sum(of_group), counts) * x
        for rows, of_group in zip(groups, lengths, strict=True)
        for row in rows
        for x in row
    )


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("token_mean", 3.0),  # (6 + 1 + 2 + 3) / 4 tokens
        ("mean_of_token_means", 4.0),  # (6 + 2) / 2 sequences
        ("constant_length", 0.6),  # 12 / (2 sequences * 10)
        ("sequence_sum", 6.0),  # (6 + 6) / 2
        ("prompt_mean", 3.0),  # one prompt: as the token mean
    ],
)
def test_two_sequences_by_hand(name: str, expected: float) -> None:
    """Terms (6) and (1, 2, 3), limit 10: one short sequence and one long are where the four differ."""
    assert reduced(REDUCTIONS[name], [[6], [1, 2, 3]], max_tokens=10) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("token_mean", 4.0),  # 24 / 6 tokens
        ("mean_of_token_means", 5.0),  # (6 + 2 + 4 + 8) / 4 completions
        ("constant_length", 0.6),  # 24 / (4 completions * 10)
        ("sequence_sum", 6.0),  # 24 / 4
        ("prompt_mean", 4.5),  # (12 / 4 tokens + 12 / 2 tokens) / 2 prompts
    ],
)
def test_two_prompts_by_hand(name: str, expected: float) -> None:
    """Terms (6), (1, 2, 3) of one prompt and (4), (8) of another, limit 10."""
    assert reduced(REDUCTIONS[name], [[6], [1, 2, 3]], [[4], [8]], max_tokens=10) == pytest.approx(expected)


@FEW
@given(LENGTHS)
def test_a_term_that_is_the_same_everywhere_comes_out_as_it_is(lengths: list[int]) -> None:
    """The three means' weights sum to one; a constant length gives the share of the limit that was used."""
    ones = [[1.0] * n for n in lengths]
    assert reduced(token_mean, ones) == pytest.approx(1, abs=EXACT)
    assert reduced(mean_of_token_means, ones) == pytest.approx(1, abs=EXACT)
    assert reduced(prompt_mean, ones[:1], ones) == pytest.approx(1, abs=EXACT)
    assert reduced(constant_length, ones) == pytest.approx(sum(lengths) / len(lengths) / 20, abs=EXACT)
    assert reduced(sequence_sum, ones) == pytest.approx(sum(lengths) / len(lengths), abs=EXACT)


@pytest.mark.parametrize("seed", range(3))
def test_reductions_are_the_padded_ones(seed: int) -> None:
    """As usually written, over a padded table and its mask."""
    rng = random.Random(seed)
    rows = [[rng.gauss(0, 1) for _ in range(rng.randint(1, 12))] for _ in range(6)]
    mask = torch.tensor([[t < len(row) for t in range(12)] for row in rows])
    table = torch.tensor([row + [99.0] * (12 - len(row)) for row in rows], dtype=torch.float64)
    kept = torch.where(mask, table, 0.0)
    padded = {
        "token_mean": kept.sum() / mask.sum(),
        "mean_of_token_means": (kept.sum(1) / mask.sum(1)).mean(),
        "constant_length": kept.sum(1).mean() / 20,
        "sequence_sum": kept.sum(1).mean(),
        "prompt_mean": (kept.view(2, 36).sum(1) / mask.view(2, 36).sum(1)).mean(),
    }
    for name, reduction in REDUCTIONS.items():
        assert reduced(reduction, rows[:3], rows[3:]) == pytest.approx(padded[name].item(), abs=EXACT)


# Counts of a step


def packed(reduction: Reduction, groups: list[RolloutGroup], *, drop: bool = False) -> Batch:
    algorithm = replace(DR_GRPO if drop else GRPO, reduction=reduction)
    return pack(algorithm.assign_credit(groups, 20), algorithm, 20)


def weights(batch: Batch) -> list[float]:
    return [s.weight for g in batch.groups for s in g.sequences]


@pytest.mark.parametrize("name", REDUCTIONS)
def test_what_could_not_be_graded_leaves_sum_and_count(name: str) -> None:
    """A step with an ungraded completion, and a group that is ungraded altogether, is the step without them."""
    values = [[1.0, None, 0.0], [None, None, None], [0.0, 1.0, None]]
    groups = [group_of(n, v) for n, v in zip([[2, 7, 3], [4, 4, 4], [5, 1, 9]], values, strict=True)]
    without = [group_of([2, 3], [1.0, 0.0]), group_of([5, 1], [0.0, 1.0])]
    ours, theirs = (packed(REDUCTIONS[name], g) for g in (groups, without))
    assert ours.counts == theirs.counts == counts_of([2, 3], [5, 1])
    assert weights(ours) == weights(theirs)
    assert [len(g.sequences) for g in ours.groups] == [2, 2]


@pytest.mark.parametrize("name", REDUCTIONS)
def test_groups_without_signal_are_skipped_and_stay_in_the_count(name: str) -> None:
    """Their terms are zero; their tokens still count, so the others weigh what they weighed."""
    groups = [group_of([2, 3], [1.0, 0.0]), group_of([4, 9], [1.0, 1.0])]
    batch = packed(REDUCTIONS[name], groups, drop=True)
    assert batch.counts == counts_of([2, 3], [4, 9])
    assert weights(batch) == [REDUCTIONS[name](n, 5, batch.counts) for n in (2, 3)]


@FEW
@given(LENGTHS, st.randoms(use_true_random=False))
def test_the_rewards_do_not_move_the_counts(lengths: list[int], rng: random.Random) -> None:
    """Which completions are right decides what is run, never what it is divided by."""
    values: list[float | None] = [rng.choice((0.0, 1.0)) for _ in lengths]
    assert packed(token_mean, [group_of(lengths, values)], drop=True).counts == counts_of(lengths)
