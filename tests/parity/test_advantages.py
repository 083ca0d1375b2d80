"""Advantages: each rule by hand, by what it must never break, and against a plain restatement of its formula."""

from __future__ import annotations

import itertools
import math
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rl.objective.advantages import gae, group_normalized, leave_one_out, process_supervised
from rl.objective.algorithms import DAPO, DR_GRPO, GRPO, GRPO_PROCESS
from rl.objective.losses import no_signal_probability, overlong_penalty
from rollout.records import Problem, RolloutGroup
from tests.parity.cases import FEW, advantages_of, group_of, rollout
from tests.parity.restated import above_the_others, normalised, overlong, steps_after

NO_EPS = 1e-12  # too small to be seen at EXACT: these rewards' std is at least 0.01
EXACT = 1e-9  # float64 throughout: a dozen roundings of 1e-16 on numbers of at most 1e3
REWARDS = st.lists(st.integers(-40, 40).map(lambda n: n / 8), min_size=1, max_size=8)  # eighths: sums are exact


def row(values: list[float]) -> torch.Tensor:
    return torch.tensor([values], dtype=torch.float64)


def normalise(values: list[float], eps: float = 1e-4) -> torch.Tensor:
    return group_normalized(row(values), scale="std", eps=eps)[0]


# GRPO, outcome supervision


def test_grpo_by_hand() -> None:
    """mean of (1, 0, 0, 1) = 1/2; squares 4 * 1/4 = 1, over G - 1 = 3: std = 1/sqrt(3) = 0.57735027.
    1/2 / 0.57735027 = 0.8660254; with eps 1e-4, 1/2 / 0.57745027 = 0.86587544."""
    assert normalise([1, 0, 0, 1], eps=0.0).tolist() == pytest.approx([0.8660254, -0.8660254, -0.8660254, 0.8660254])
    # 1e-6 tells an eps of 1e-4 from one of 1e-6, 1e-8 or 1e-9: they differ by 1.5e-4
    assert normalise([1, 0, 0, 1]).tolist() == pytest.approx(
        [0.86587544, -0.86587544, -0.86587544, 0.86587544], abs=1e-6
    )


def test_the_named_grpo_uses_bessels_std_and_an_eps_of_1e_4() -> None:
    """The same numbers as above, for every token of each completion; float32 keeps seven digits."""
    advantages = advantages_of(GRPO, [group_of([1, 2, 3, 1], [1.0, 0.0, 0.0, 1.0])], 10)[0]
    expected = [[0.86587544], [-0.86587544] * 2, [-0.86587544] * 3, [0.86587544]]
    assert [a.tolist() for a in advantages] == [pytest.approx(e, abs=1e-6) for e in expected]


@FEW
@given(REWARDS, st.integers(-8, 8), st.sampled_from([0.25, 2.0, 64.0]))
def test_normalised_rewards_sum_to_zero_and_forget_shift_and_scale(
    values: list[float], shift: int, scale: float
) -> None:
    advantages = normalise(values, eps=NO_EPS)
    moved = normalise([scale * v + shift for v in values], eps=NO_EPS)
    assert float(advantages.sum()) == pytest.approx(0, abs=EXACT)
    assert moved.tolist() == pytest.approx(advantages.tolist(), abs=EXACT)
    if max(values) > min(values):
        assert float(advantages.std()) == pytest.approx(1, abs=EXACT)  # torch's std is Bessel's too


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("eps", [1e-4, 1e-6, 1e-9])
def test_normalised_rewards_are_the_restated_ones(seed: int, eps: float) -> None:
    rng = random.Random(seed)
    values = [[rng.gauss(0, 2) for _ in range(6)] for _ in range(3)]
    ours = group_normalized(torch.tensor(values, dtype=torch.float64), scale="std", eps=eps)
    assert ours.tolist() == [pytest.approx(normalised(v, eps), abs=EXACT) for v in values]


@pytest.mark.parametrize("eps", [1e-4, 1e-9, 0.0])
@pytest.mark.parametrize(("value", "size"), [(0.7, 7), (0.1, 10), (1 / 3, 5), (1.0, 8), (0.0, 8), (-0.3, 3)])
def test_a_constant_group_carries_exactly_nothing(value: float, size: int, eps: float) -> None:
    """float32's mean of seven 0.7 is not 0.7: a test of std == 0 would let |A| = 0.9 through with a small eps."""
    rewards = torch.full((2, size), value)
    for advantages in (group_normalized(rewards, scale="std", eps=eps), leave_one_out(rewards)):
        assert advantages.tolist() == [[0.0] * size] * 2
    assert group_normalized(rewards, scale="none", eps=eps).tolist() == [[0.0] * size] * 2
    steps = process_supervised([[value]] * size, [[0]] * size, [1] * size, eps=eps)
    assert [a.tolist() for a in steps] == [[0.0]] * size


def test_seven_rewards_of_0_7_would_fool_a_test_of_the_std() -> None:
    """The case above bites: their float32 deviations from the sum over the count are not all zero."""
    rewards = torch.full((7,), 0.7)
    assert float((rewards - rewards.sum() / 7).abs().max()) > 0


def test_a_group_of_one_carries_nothing() -> None:
    one = torch.tensor([[1.0], [0.25]])
    assert group_normalized(one, scale="std", eps=1e-4).tolist() == [[0.0], [0.0]]
    assert group_normalized(one, scale="none", eps=0.0).tolist() == [[0.0], [0.0]]
    assert leave_one_out(one).tolist() == [[0.0], [0.0]]


@FEW
@given(REWARDS, st.data())
def test_what_could_not_be_graded_changes_nobody_elses_advantage(values: list[float], data: st.DataObject) -> None:
    """A masked reward, whatever stands in its place, leaves mean, std and count; it gets 0 itself."""
    size = len(values)
    mask = data.draw(st.lists(st.booleans(), min_size=size, max_size=size))
    kept = [v for v, m in zip(values, mask, strict=True) if m]
    filled = row([v if m else math.nan for v, m in zip(values, mask, strict=True)])
    masks = torch.tensor([mask])
    for ours, alone in (
        (group_normalized(filled, scale="std", eps=1e-4, mask=masks), normalised(kept)),
        (leave_one_out(filled, mask=masks), above_the_others(kept)),
    ):
        assert ours[0][masks[0]].tolist() == pytest.approx(alone, abs=EXACT)
        assert not ours[0][~masks[0]].any()


@FEW
@given(REWARDS)
def test_the_std_is_bessels_and_not_the_populations(values: list[float]) -> None:
    """open-instruct divides by the population's std, larger by sqrt((G - 1) / G): its advantages are not ours."""
    ours, size = normalise(values, eps=NO_EPS), len(values)
    mean = sum(values) / size
    population = math.sqrt(sum((v - mean) ** 2 for v in values) / size)
    theirs = [(v - mean) / population if population else 0.0 for v in values]
    assert ours.tolist() == pytest.approx([a * math.sqrt((size - 1) / size) for a in theirs], abs=EXACT)


# Dr. GRPO, RLOO


def test_dr_grpo_by_hand() -> None:
    """(3, 1, 1, 1): mean 1.5, so 1.5 and three times -0.5; nothing is divided."""
    assert group_normalized(row([3, 1, 1, 1]), scale="none", eps=1.0).tolist() == [[1.5, -0.5, -0.5, -0.5]]
    advantages = advantages_of(DR_GRPO, [group_of([2, 1, 1, 1], [3.0, 1.0, 1.0, 1.0])], 10)[0]
    assert [a.tolist() for a in advantages] == [[1.5, 1.5], [-0.5], [-0.5], [-0.5]]


def test_rloo_by_hand() -> None:
    """(1, 0, 0, 0.5): the others' means are 1/6, 1/2, 1/2 and 1/3."""
    assert leave_one_out(row([1, 0, 0, 0.5]))[0].tolist() == pytest.approx([5 / 6, -1 / 2, -1 / 2, 1 / 6])


@FEW
@given(REWARDS.filter(lambda v: len(v) > 1))
def test_both_forms_of_rloo_are_one(values: list[float]) -> None:
    """r_i - mean of the others = (r_i - mean of all) G / (G - 1)."""
    size, mean = len(values), sum(values) / len(values)
    ours = leave_one_out(row(values))[0].tolist()
    assert ours == pytest.approx([(v - mean) * size / (size - 1) for v in values], abs=EXACT)
    assert ours == pytest.approx(above_the_others(values), abs=EXACT)


@pytest.mark.parametrize("seed", range(5))
def test_rloo_is_the_restated_one(seed: int) -> None:
    rng = random.Random(seed)
    values = [rng.gauss(0, 2) for _ in range(7)]
    assert leave_one_out(row(values))[0].tolist() == pytest.approx(above_the_others(values), abs=EXACT)


# GRPO, process supervision

FLOAT32 = 2e-5  # process_supervised works in float32: sums of a few numbers near 1, seven digits each


def test_process_supervision_by_hand() -> None:
    """Step rewards (1, 0) and (0, 1) of two outputs: mean 1/2, Bessel's std 1/sqrt(3), so +-0.8660254 (eps 0).
    Output 1, steps end at tokens 1 and 3: tokens 0, 1 see both steps, + - = 0; tokens 2, 3 see the last, -.
    Output 2, ends at 0 and 2 of four tokens: token 0 sees - +, 0; tokens 1, 2 see +; token 3 comes after all steps, 0."""
    a = 0.8660254
    ours = process_supervised([[1.0, 0.0], [0.0, 1.0]], [[1, 3], [0, 2]], [4, 4], eps=0.0)
    assert ours[0].tolist() == pytest.approx([0, 0, -a, -a], abs=FLOAT32)
    assert ours[1].tolist() == pytest.approx([0, a, a, 0], abs=FLOAT32)


def test_the_named_process_supervision_adds_the_outcome_as_the_last_step() -> None:
    """Outputs of three tokens; a step of reward 0 ends at token 0 in each; outcomes 1 and 0 at token 2.
    Rewards (0, 1), (0, 0): mean 1/4, squares 3/16 * 4 = 3/4 over 3: std 1/2; normalised -1/2, 3/2 and -1/2, -1/2
    (eps 1e-4 takes 2e-4 of it). A third output that could not be graded gets nothing and leaves the mean alone."""
    problem = Problem(id="p", prompt="", reference="1")
    rollouts = [rollout(problem, [3, 3, 3], v, step_rewards=[0.0], step_ends=[0]) for v in (1.0, 0.0, None)]
    group = RolloutGroup(problem=problem, prompt_ids=(5,), rollouts=tuple(rollouts))
    ours = [a.tolist() for a in advantages_of(GRPO_PROCESS, [group], 10)[0]]
    shrink = 0.5 / (0.5 + 1e-4)
    expected = [[1.0, 1.5, 1.5], [-1.0, -0.5, -0.5], [0.0, 0.0, 0.0]]
    assert ours == [pytest.approx([shrink * a for a in row], abs=FLOAT32) for row in expected]


@FEW
@given(REWARDS.filter(lambda v: len(v) > 1), st.integers(1, 5))
def test_one_step_that_ends_with_the_output_is_outcome_supervision(values: list[float], length: int) -> None:
    size = len(values)
    ours = process_supervised([[v] for v in values], [[length - 1]] * size, [length] * size)
    expected = [pytest.approx([a] * length, abs=FLOAT32) for a in normalised(values)]
    assert [a.tolist() for a in ours] == expected


@pytest.mark.parametrize("seed", range(5))
def test_process_supervision_is_the_restated_one(seed: int) -> None:
    """Any number of steps an output, none among them; one normalisation over all of them together."""
    rng = random.Random(seed)
    lengths = [rng.randint(4, 9) for _ in range(5)]
    ends = [sorted(rng.sample(range(n), k=rng.randint(0, 4))) for n in lengths]
    rewards = [[rng.gauss(0, 1) for _ in e] for e in ends]
    flat = iter(normalised([r for row in rewards for r in row]))
    expected = [steps_after(e, [next(flat) for _ in e], n) for e, n in zip(ends, lengths, strict=True)]
    ours = process_supervised(rewards, ends, lengths)
    assert [a.tolist() for a in ours] == [pytest.approx(e, abs=FLOAT32) for e in expected]


def test_a_step_that_ends_outside_its_output_is_refused() -> None:
    with pytest.raises(ValueError, match="step_ends"):
        process_supervised([[1.0]], [[3]], [3])


# Groups without signal, overlong answers


def test_the_chance_of_no_signal_by_hand() -> None:
    """p = 1/2, G = 2: both right 1/4, both wrong 1/4. p = 0.9, G = 8: 0.9^8 = 0.43046721, 0.1^8 = 1e-8."""
    assert no_signal_probability(0.5, 2) == 0.5
    assert no_signal_probability(0.9, 8) == pytest.approx(0.43046722, abs=1e-12)
    assert no_signal_probability(1.0, 4) == no_signal_probability(0.0, 4) == 1.0


@FEW
@given(st.floats(0, 1), st.integers(1, 6))
def test_the_chance_of_no_signal_is_counted_over_all_outcomes(rate: float, size: int) -> None:
    chance = sum(
        math.prod(rate if right else 1 - rate for right in answers)
        for answers in itertools.product([True, False], repeat=size)
        if len(set(answers)) == 1
    )
    expected = chance if size > 1 else 1.0
    assert no_signal_probability(rate, size) == pytest.approx(expected, abs=EXACT)


def test_the_overlong_penalty_by_hand() -> None:
    """L_max 100, L_cache 20: free up to 80, then 1/20 a token: 81 costs 0.05, 90 costs 0.5, 100 and more cost 1."""
    costs = [overlong_penalty(n, 100, 20) for n in (1, 80, 81, 90, 100, 130)]
    assert costs == pytest.approx([0, 0, -0.05, -0.5, -1, -1])


@FEW
@given(st.integers(1, 300), st.integers(1, 100), st.integers(0, 100))
def test_the_overlong_penalty_is_the_restated_one(length: int, cache: int, free: int) -> None:
    assert overlong_penalty(length, free + cache, cache) == pytest.approx(
        overlong(length, free + cache, cache), abs=EXACT
    )


def test_dapo_takes_the_penalty_off_the_reward() -> None:
    """A fifth of max_tokens = 10 is 2: lengths 8, 9, 10 cost 0, 1/2 and 1. The other algorithms do not ask."""
    group = group_of([8, 9, 10, 10], [1.0, 1.0, 1.0, None])
    assert [DAPO.reward(r, 10) for r in group.rollouts] == [1.0, 0.5, 0.0, -1.0]
    assert [GRPO.reward(r, 10) for r in group.rollouts] == [1.0, 1.0, 1.0, 0.0]


# Generalised advantage estimation


def sums_of_errors(rewards: list[float], values: list[float], gamma: float, lam: float) -> list[float]:
    """A_t = sum_k (gamma lam)^k (r_{t+k} + gamma V_{t+k+1} - V_{t+k}), the sum written out; V = 0 after the end."""
    after = [*values, 0.0][1:]
    errors = [r + gamma * w - v for r, v, w in zip(rewards, values, after, strict=True)]
    return [sum((gamma * lam) ** k * e for k, e in enumerate(errors[t:])) for t in range(len(errors))]


def estimate(rewards: list[float], values: list[float], gamma: float, lam: float) -> tuple[list[float], list[float]]:
    mask = torch.ones(1, len(values), dtype=torch.bool)
    advantages, returns = gae(row(rewards), row(values), mask, gamma=gamma, lam=lam)
    return advantages[0].tolist(), returns[0].tolist()


def test_gae_by_hand() -> None:
    """r = (0, 0, 1), V = (0.5, 0.6, 0.8), gamma 0.9, lam 0.5, so gamma lam = 0.45.
    d2 = 1 - 0.8 = 0.2; d1 = 0.9 * 0.8 - 0.6 = 0.12; d0 = 0.9 * 0.6 - 0.5 = 0.04.
    A2 = 0.2; A1 = 0.12 + 0.45 * 0.2 = 0.21; A0 = 0.04 + 0.45 * 0.21 = 0.1345. Returns: A + V."""
    advantages, returns = estimate([0, 0, 1], [0.5, 0.6, 0.8], 0.9, 0.5)
    assert advantages == pytest.approx([0.1345, 0.21, 0.2])
    assert returns == pytest.approx([0.6345, 0.81, 1.0])


NUMBERS = st.lists(st.tuples(st.floats(-5, 5), st.floats(-5, 5)), min_size=1, max_size=7)


@FEW
@given(NUMBERS, st.floats(0, 1))
def test_gae_with_lam_1_is_the_discounted_return_less_the_value(pairs: list[tuple[float, float]], gamma: float) -> None:
    rewards, values = [p[0] for p in pairs], [p[1] for p in pairs]
    to_go = [sum(gamma**k * r for k, r in enumerate(rewards[t:])) for t in range(len(rewards))]
    advantages, returns = estimate(rewards, values, gamma, 1.0)
    assert returns == pytest.approx(to_go, abs=EXACT)
    assert advantages == pytest.approx([g - v for g, v in zip(to_go, values, strict=True)], abs=EXACT)


@FEW
@given(NUMBERS, st.floats(0, 1))
def test_gae_with_lam_0_is_the_one_step_error(pairs: list[tuple[float, float]], gamma: float) -> None:
    rewards, values = [p[0] for p in pairs], [p[1] for p in pairs]
    errors = [r + gamma * w - v for r, v, w in zip(rewards, values, [*values[1:], 0.0], strict=True)]
    assert estimate(rewards, values, gamma, 0.0)[0] == pytest.approx(errors, abs=EXACT)


@FEW
@given(st.lists(st.one_of(st.none(), st.tuples(st.floats(-5, 5), st.floats(-5, 5))), min_size=1, max_size=9))
def test_gae_steps_over_holes_and_padding(row_of_pairs: list[tuple[float, float] | None]) -> None:
    """A row with holes (before, inside, after) is the row without them; what stands in a hole is never read."""
    kept = [p for p in row_of_pairs if p is not None]
    filled = [p or (math.nan, math.nan) for p in row_of_pairs]
    mask = torch.tensor([[p is not None for p in row_of_pairs]])
    advantages, returns = gae(row([p[0] for p in filled]), row([p[1] for p in filled]), mask, gamma=0.95, lam=0.8)
    expected = sums_of_errors([p[0] for p in kept], [p[1] for p in kept], 0.95, 0.8)
    assert advantages[mask].tolist() == pytest.approx(expected, abs=EXACT)
    assert returns[mask].tolist() == pytest.approx([a + p[1] for a, p in zip(expected, kept, strict=True)], abs=EXACT)
    assert not advantages[~mask].any()
    assert not returns[~mask].any()


@pytest.mark.parametrize("seed", range(5))
def test_gae_is_the_written_out_sum_in_a_ragged_batch(seed: int) -> None:
    """Rows of different lengths together give what each gives alone: no row reads another, or its padding."""
    rng, gamma, lam = random.Random(seed), 0.99, 0.95
    lengths = [rng.randint(1, 8) for _ in range(5)]
    rewards, values = ([[rng.gauss(0, 1) for _ in range(8)] for _ in lengths] for _ in range(2))
    mask = torch.tensor([[t < n for t in range(8)] for n in lengths])
    tensors = [torch.tensor(x, dtype=torch.float64) for x in (rewards, values)]
    advantages, _ = gae(*tensors, mask, gamma=gamma, lam=lam)
    for ours, r, v, n in zip(advantages, rewards, values, lengths, strict=True):
        assert ours[:n].tolist() == pytest.approx(sums_of_errors(r[:n], v[:n], gamma, lam), abs=EXACT)


def test_the_std_of_the_batch_by_hand() -> None:
    """Centred rewards 0.75, -0.25 x 3 and 2, -2, 0 (one is not graded): squares sum to 0.75 + 8, over 4 + 3 completions: std 1.118034.
    The constant group has no part in it."""
    rewards = torch.tensor([[1.0, 0, 0, 0], [5.0, 1.0, 9.0, 3.0], [7.0, 7.0, 7.0, 7.0]])
    graded = torch.tensor([[True] * 4, [True, True, False, True], [True] * 4])
    ours = group_normalized(rewards, scale="batch", eps=0.0, mask=graded)
    expected = [[0.75, -0.25, -0.25, -0.25], [2, -2, 0, 0], [0, 0, 0, 0]]
    assert (ours * 1.118034).tolist() == [pytest.approx(row, abs=1e-6) for row in expected]
    assert group_normalized(rewards[2:], scale="batch", eps=1e-4).tolist() == [[0.0] * 4]
