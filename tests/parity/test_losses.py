"""Per-token losses: by hand, by what each must never break, and against a plain scalar restatement with its gradient."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rl.forward.micro_batch import MicroBatch, TrainGroup, TrainSequence
from rl.objective.algorithms import sequence_ratio
from rl.objective.losses import (
    clipped_surrogate,
    clipped_weight_reinforce,
    kl_estimate,
    mean_over_sequence,
    probability_ratio,
    truncated_importance_weight,
    value_loss,
)
from tests.parity.cases import FEW

EXACT = 1e-9  # float64: a few roundings of 1e-16, relative, on numbers of at most 1e5
LOG_RATIOS = st.lists(st.floats(-3, 3), min_size=1, max_size=8)


def vector(values: Sequence[float]) -> Tensor:
    return torch.tensor(list(values), dtype=torch.float64)


def with_gradient(loss: Callable[[Tensor], Tensor], policy: Sequence[float]) -> tuple[list[float], list[float]]:
    """Per-token losses, and the derivative of their sum by each token's log-prob."""
    leaf = vector(policy).requires_grad_()
    losses = loss(leaf)
    (gradient,) = torch.autograd.grad(losses.sum(), leaf)
    return losses.tolist(), gradient.tolist()


def ppo(
    ratios: Sequence[float],
    advantages: Sequence[float],
    *,
    low: float = 0.2,
    high: float = 0.2,
    dual: float | None = None,
) -> tuple[list[float], list[float]]:
    zeros, signs = torch.zeros(len(ratios), dtype=torch.float64), vector(advantages)
    return with_gradient(
        lambda x: clipped_surrogate(x, zeros, signs, clip_low=low, clip_high=high, dual_clip=dual),
        [math.log(r) for r in ratios],
    )


# The clipped surrogate


def test_the_clipped_surrogate_by_hand() -> None:
    """Bounds 0.8 and 1.2; the gradient of rho is rho, and of a bound 0.
    rho 1.5, A  2: min(3, 2.4) = 2.4, clipped.       rho 0.5, A  2: min(1, 1.6) = 1, gradient 1.
    rho 1.5, A -2: min(-3, -2.4) = -3, gradient -3.  rho 0.5, A -2: min(-1, -1.6) = -1.6, clipped.
    rho 1.1, A  2: 2.2 either way, gradient 2.2."""
    losses, gradient = ppo([1.5, 0.5, 1.5, 0.5, 1.1], [2, 2, -2, -2, 2])
    assert losses == pytest.approx([-2.4, -1, 3, 1.6, -2.2])
    assert gradient == pytest.approx([0, -1, 3, 0, -2.2])


def test_the_bounds_may_differ() -> None:
    """DAPO: 0.8 and 1.28. rho 1.25, A 1 is inside and keeps its gradient; rho 1.5 is worth 1.28; rho 0.7, A -1 is worth -0.8."""
    losses, gradient = ppo([1.25, 1.5, 0.7], [1, 1, -1], high=0.28)
    assert losses == pytest.approx([-1.25, -1.28, 0.8])
    assert gradient == pytest.approx([-1.25, 0, 0])


@FEW
@given(LOG_RATIOS, st.floats(-3, 3))
def test_clipping_never_promises_more_than_the_ratio(log_ratios: list[float], advantage: float) -> None:
    """PPO, section 3: the objective is a lower bound of rho A; so the loss is at least -rho A."""
    ratios = [math.exp(x) for x in log_ratios]
    losses, _ = ppo(ratios, [advantage] * len(ratios))
    assert all(loss >= -r * advantage - EXACT for loss, r in zip(losses, ratios, strict=True))


@FEW
@given(st.lists(st.floats(-50, 0), min_size=1, max_size=8), st.floats(-3, 3))
def test_at_a_ratio_of_one_the_loss_is_minus_a_and_so_is_its_gradient(logprobs: list[float], advantage: float) -> None:
    """Exactly, so that one update per sampling is plain policy gradient."""
    same, advantages = vector(logprobs), vector([advantage] * len(logprobs))
    losses, gradient = with_gradient(
        lambda x: clipped_surrogate(x, same, advantages, clip_low=0.2, clip_high=0.2), logprobs
    )
    assert losses == gradient == [-advantage] * len(logprobs)


def surrogate_of(ratio: float, advantage: float, low: float, high: float, dual: float | None) -> tuple[float, float]:
    """The loss and its derivative by the log-prob, by cases: which of the terms is the objective?"""
    bound = (1 + high) if advantage > 0 else (1 - low)
    clipped = ratio > bound if advantage > 0 else ratio < bound
    if clipped:
        return -bound * advantage, 0.0
    if dual is not None and advantage < 0 and ratio > dual:
        return -dual * advantage, 0.0
    return -ratio * advantage, -ratio * advantage


@pytest.mark.parametrize("dual", [None, 3.0])
@pytest.mark.parametrize(("low", "high"), [(0.2, 0.2), (0.2, 0.28), (3e-4, 4e-4)])
def test_the_clipped_surrogate_is_the_restated_one(low: float, high: float, dual: float | None) -> None:
    rng = random.Random(1)
    ratios = [math.exp(rng.gauss(0, 1)) for _ in range(60)]
    advantages = [rng.gauss(0, 1) for _ in ratios]
    losses, gradient = ppo(ratios, advantages, low=low, high=high, dual=dual)
    expected = [surrogate_of(r, a, low, high, dual) for r, a in zip(ratios, advantages, strict=True)]
    assert losses == pytest.approx([e[0] for e in expected], abs=EXACT)
    assert gradient == pytest.approx([e[1] for e in expected], abs=EXACT)


def test_the_dual_clip_by_hand() -> None:
    """c = 3: rho 5, A -2 is worth max(-10, -6) = -6, without gradient; rho 2 keeps -4; A > 0 is left alone, and so is
    everything when it is off, which is the default."""
    losses, gradient = ppo([5, 2, 5], [-2, -2, 2], dual=3.0)
    assert losses == pytest.approx([6, 4, -2.4])
    assert gradient == pytest.approx([0, 4, 0])
    assert ppo([5], [-2])[0] == pytest.approx([10])


@FEW
@given(LOG_RATIOS, st.floats(-3, 3), st.floats(1.5, 5))
def test_the_dual_clip_bounds_only_the_loss_of_bad_tokens(logs: list[float], advantage: float, c: float) -> None:
    ratios, advantages = [math.exp(x) for x in logs], [advantage] * len(logs)
    plain, dual = ppo(ratios, advantages)[0], ppo(ratios, advantages, dual=c)[0]
    limit = -c * advantage if advantage < 0 else math.inf
    assert dual == pytest.approx([min(loss, limit) for loss in plain], abs=EXACT)


# CISPO

MEANINGS = {  # rho 0.5, 1.1, 1.5, 4 weigh ...
    "absolute cap at 2 (TRL)": (1.0, 1.0, [0.5, 1.1, 1.5, 2.0]),
    "clamp to 0.8 .. 1.28 (verl)": (0.2, 0.28, [0.8, 1.1, 1.28, 1.28]),
    "cap at 1.28 (open-instruct)": (1.0, 0.28, [0.5, 1.1, 1.28, 1.28]),
}


@pytest.mark.parametrize("meaning", MEANINGS)
@pytest.mark.parametrize("advantage", [2.0, -2.0])
def test_cispo_by_hand_in_its_three_meanings(meaning: str, advantage: float) -> None:
    """Loss -w A l, gradient -w A: w has none of its own, and a clipped token keeps its gradient."""
    low, high, weights = MEANINGS[meaning]
    logs = [math.log(r) for r in (0.5, 1.1, 1.5, 4.0)]
    zeros = torch.zeros(4, dtype=torch.float64)
    losses, gradient = with_gradient(
        lambda x: clipped_weight_reinforce(x, zeros, vector([advantage] * 4), clip_low=low, clip_high=high), logs
    )
    assert losses == pytest.approx([-w * advantage * x for w, x in zip(weights, logs, strict=True)])
    assert gradient == pytest.approx([-w * advantage for w in weights])


@FEW
@given(LOG_RATIOS, st.floats(0.1, 3))
def test_cispo_leaves_no_token_without_gradient(log_ratios: list[float], advantage: float) -> None:
    zeros = torch.zeros(len(log_ratios), dtype=torch.float64)
    advantages = vector([advantage] * len(log_ratios))
    _, gradient = with_gradient(
        lambda x: clipped_weight_reinforce(x, zeros, advantages, clip_low=1.0, clip_high=0.28), log_ratios
    )
    assert all(g < 0 for g in gradient)


@pytest.mark.parametrize(("low", "high"), [(1.0, 0.28), (1.0, 4.0), (0.2, 0.28)])
def test_cispo_is_the_restated_one(low: float, high: float) -> None:
    rng = random.Random(2)
    policy, behaviour, advantages = ([rng.gauss(-2, 1) for _ in range(40)] for _ in range(3))
    losses, gradient = with_gradient(
        lambda x: clipped_weight_reinforce(x, vector(behaviour), vector(advantages), clip_low=low, clip_high=high),
        policy,
    )
    weights = [min(max(math.exp(p - b), 1 - low), 1 + high) for p, b in zip(policy, behaviour, strict=True)]
    expected = [-w * a for w, a in zip(weights, advantages, strict=True)]
    assert gradient == pytest.approx(expected, abs=EXACT)
    assert losses == pytest.approx([e * p for e, p in zip(expected, policy, strict=True)], abs=EXACT)


# GSPO: one ratio a sequence


def micro_of(lengths: Sequence[int]) -> MicroBatch:
    sequences = tuple(
        TrainSequence(token_ids=(3,) * n, sampler_logprobs=(0.0,) * n, advantages=torch.zeros(n), weight=1.0)
        for n in lengths
    )
    return MicroBatch.of([TrainGroup((5, 6), sequences)])


def sequence_ratios(policy: Tensor, behaviour: Tensor, lengths: Sequence[int]) -> Tensor:
    return probability_ratio(sequence_ratio(policy, behaviour, micro_of(lengths)), behaviour)


def test_the_sequence_ratio_by_hand() -> None:
    """Log-ratios (ln 4, 0) and (ln 2, ln 2, -ln 2): means ln 4 / 2 = ln 2 and ln 2 / 3; ratios 2 and 2^(1/3).
    The derivative of the ratio by each of its |o| log-probs is ratio / |o|; |o| tokens carry it, so a sum has ratio."""
    ln2 = math.log(2)
    behaviour = vector([-1, -2, -3, -4, -5])
    policy = (behaviour + vector([2 * ln2, 0, ln2, ln2, -ln2])).requires_grad_()
    ratios = sequence_ratios(policy, behaviour, [2, 3])
    third = 2 ** (1 / 3)
    assert ratios.tolist() == pytest.approx([2, 2, third, third, third])
    (gradient,) = torch.autograd.grad(ratios.sum(), policy)
    assert gradient.tolist() == pytest.approx([2, 2, third, third, third])
    (gradient,) = torch.autograd.grad(sequence_ratios(policy, behaviour, [2, 3])[0], policy)
    assert gradient.tolist() == pytest.approx([1, 1, 0, 0, 0])


@FEW
@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.floats(-1, 1))
def test_the_sequence_ratio_is_the_token_ratio_where_all_tokens_agree(lengths: list[int], shift: float) -> None:
    behaviour = -torch.rand(sum(lengths), dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    ratios = sequence_ratios(behaviour + shift, behaviour, lengths)
    assert ratios.tolist() == pytest.approx([math.exp(shift)] * sum(lengths), rel=EXACT)


@pytest.mark.parametrize("seed", range(3))
def test_the_sequence_ratio_is_the_geometric_mean_of_the_token_ratios(seed: int) -> None:
    rng = random.Random(seed)
    lengths = [rng.randint(1, 6) for _ in range(5)]
    rows = [[(rng.gauss(-2, 1), rng.gauss(-2, 1)) for _ in range(n)] for n in lengths]
    expected = [math.prod(math.exp(p - b) for p, b in row) ** (1 / len(row)) for row in rows]
    flat = [pair for row in rows for pair in row]
    ours = sequence_ratios(vector([p[0] for p in flat]), vector([p[1] for p in flat]), lengths)
    assert ours.tolist() == pytest.approx(
        [e for e, n in zip(expected, lengths, strict=True) for _ in range(n)], rel=EXACT
    )


def test_the_mean_over_a_sequence_by_hand() -> None:
    """(1, 3) and (5): 2, 2, 5, in whatever order the tokens stand; 9 is masked, and gets its sequence's mean."""
    means = mean_over_sequence(vector([1, 5, 3, 9]), vector([1, 1, 1, 0]), torch.tensor([0, 1, 0, 1]), 2)
    assert means.tolist() == [2, 5, 2, 5]


# What is clamped


@pytest.mark.parametrize("distance", [20.5, 100.0, 1e4])
def test_far_log_ratios_are_clamped_at_20(distance: float) -> None:
    """float32 overflows at exp(88): a token that far off must weigh exp(20), carry no gradient and spoil no sum."""
    policy = torch.tensor([-distance, 0.0], requires_grad=True)
    behaviour = torch.tensor([0.0, -distance])
    ratio = probability_ratio(policy, behaviour)
    assert ratio.tolist() == pytest.approx([math.exp(-20), math.exp(20)], rel=1e-5)  # float32's exp at 20
    (gradient,) = torch.autograd.grad(ratio.sum(), policy)
    assert gradient.tolist() == [0, 0]
    penalty = kl_estimate(policy, behaviour, "k3")
    expected = [math.exp(20) - distance - 1, math.exp(-20) + distance - 1]
    assert penalty.tolist() == pytest.approx(expected, rel=1e-5)


@FEW
@given(LOG_RATIOS)
def test_ratios_within_the_clamp_are_exp(log_ratios: list[float]) -> None:
    zeros = torch.zeros(len(log_ratios), dtype=torch.float64)
    assert probability_ratio(vector(log_ratios), zeros).tolist() == pytest.approx([math.exp(x) for x in log_ratios])
    edge = probability_ratio(vector([19.9, -19.9]), vector([0, 0]))
    assert edge.tolist() == pytest.approx([math.exp(19.9), math.exp(-19.9)])


def test_truncated_importance_weights_by_hand() -> None:
    """C = 2: exp(b - s) of 3, 1.5 and 1/e weigh 2, 1.5 and 1/e. No gradient passes, whoever asks."""
    behaviour = vector([math.log(3), math.log(1.5), -1]).requires_grad_()
    weights = truncated_importance_weight(behaviour, vector([0, 0, 0]), 2.0)
    assert weights.tolist() == pytest.approx([2, 1.5, math.exp(-1)])
    assert not weights.requires_grad


@FEW
@given(LOG_RATIOS, st.floats(1, 5))
def test_truncated_importance_weights_are_the_restated_ones(log_ratios: list[float], cap: float) -> None:
    """Only large weights are cut; small ones are not raised."""
    sampler = vector([-2.0] * len(log_ratios))
    weights = truncated_importance_weight(sampler + vector(log_ratios), sampler, cap)
    assert weights.tolist() == pytest.approx([min(math.exp(x), cap) for x in log_ratios])


# The value's loss


def test_the_value_loss_by_hand() -> None:
    """c = 0.5, R = 0, V_old = 1. V = 2: V^2 = 4, clipped 1.5^2 = 2.25; the larger, 4, halved: 2, slope V = 2.
    V = 0.2: 0.04, clipped 0.5^2 = 0.25: 0.125, slope 0. V = 1.2: 1.44 both: 0.72, slope 1.2. Without a clip 2, 0.02, 0.72."""
    zeros, ones = vector([0] * 3), vector([1] * 3)
    losses, slope = with_gradient(lambda v: value_loss(v, ones, zeros, clip=0.5), [2, 0.2, 1.2])
    assert losses == pytest.approx([2, 0.125, 0.72])
    assert slope == pytest.approx([2, 0, 1.2])
    losses, slope = with_gradient(lambda v: value_loss(v, ones, zeros, clip=None), [2, 0.2, 1.2])
    assert losses == pytest.approx([2, 0.02, 0.72])
    assert slope == pytest.approx([2, 0.2, 1.2])


TRIPLES = st.lists(st.tuples(*[st.floats(-5, 5)] * 3), min_size=1, max_size=8)


@FEW
@given(TRIPLES, st.floats(0, 2))
def test_clipping_never_lowers_the_value_loss(triples: list[tuple[float, float, float]], clip: float) -> None:
    """And a clip wider than any move is no clip."""
    values, old, returns = (vector(column) for column in zip(*triples, strict=True))
    plain = value_loss(values, old, returns, clip=None)
    assert bool((value_loss(values, old, returns, clip=clip) >= plain).all())
    # a hundredth of a rounding of 25: V_old + (V - V_old) is V but for its last bit
    assert value_loss(values, old, returns, clip=11.0).tolist() == pytest.approx(plain.tolist(), abs=1e-12)


@pytest.mark.parametrize("clip", [0.1, 0.5, 2.0])
def test_the_value_loss_is_the_restated_one(clip: float) -> None:
    rng = random.Random(5)
    triples = [(rng.gauss(0, 1), rng.gauss(0, 1), rng.gauss(0, 1)) for _ in range(40)]
    expected = []
    for v, old, target in triples:
        near = old + clip if v > old + clip else old - clip if v < old - clip else v
        expected.append(max(0.5 * (v - target) ** 2, 0.5 * (near - target) ** 2))
    values, old, returns = (vector(column) for column in zip(*triples, strict=True))
    assert value_loss(values, old, returns, clip=clip).tolist() == pytest.approx(expected, abs=EXACT)
