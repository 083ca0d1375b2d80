"""What a critic makes of rewards: against GAE written out in plain Python, one sequence at a time."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from rl.forward.micro_batch import MicroBatch, TrainGroup, TrainSequence
from rl.objective.values import ValueRule, ValueTargets, whitened
from rollout.processes import SingleProcess
from tests.rl.models import cut

FLOAT32 = 1e-6  # sums of a dozen numbers near 1


def micro_of(lengths: list[int], rewards: list[float], goes_on: list[bool] | None = None) -> MicroBatch:
    on = goes_on or [False] * len(lengths)
    whole = [replace(TrainSequence.to_score((2,) * n), reward=r) for n, r in zip(lengths, rewards, strict=True)]
    sequences = tuple(cut(s) if more else s for s, more in zip(whole, on, strict=True))
    return MicroBatch.of([TrainGroup((3, 4), sequences)])


def restated(rewards: list[float], values: list[float], gamma: float, lam: float) -> list[float]:
    """A_t = sum_k (gamma lam)^k delta_{t+k}: GAE as its definition, not as the recursion."""
    following = [*values[1:], 0.0]
    deltas = [r + gamma * after - v for r, v, after in zip(rewards, values, following, strict=True)]
    return [sum((gamma * lam) ** k * d for k, d in enumerate(deltas[t:])) for t in range(len(deltas))]


def close(found: Tensor, expected: list[float]) -> bool:
    return torch.allclose(found, torch.tensor(expected), atol=FLOAT32, rtol=0)


def test_an_example_worked_by_hand() -> None:
    """delta = (0.9 x 0.5 - 0.2, 0.9 x 0.1 - 0.5, 1 - 0.1) = (0.25, -0.41, 0.9), and gamma lam = 0.45."""
    found = ValueRule(gamma=0.9, lam=0.5, lam_critic=0.0).targets(micro_of([3], [1.0]), torch.tensor([0.2, 0.5, 0.1]))
    assert close(found.advantages, [0.24775, -0.005, 0.9])  # 0.25 + 0.45 x -0.005, -0.41 + 0.45 x 0.9, 0.9
    assert close(found.returns, [0.45, 0.09, 1.0])  # delta + V


def test_with_lam_1_advantages_are_what_came_less_the_value_and_with_0_the_one_step_error() -> None:
    values = torch.tensor([0.3, -0.2, 0.9, 0.5, 0.4])
    micro = micro_of([2, 3], [1.0, 0.0])
    all_of_it = ValueRule().targets(micro, values)
    assert close(all_of_it.advantages, [0.7, 1.2, -0.9, -0.5, -0.4])
    assert close(all_of_it.returns, [1.0, 1.0, 0.0, 0.0, 0.0])
    one_step = ValueRule(lam=0.0, lam_critic=0.0).targets(micro, values)
    assert close(one_step.advantages, [-0.5, 1.2, -0.4, -0.1, -0.4])


@pytest.mark.parametrize("seed", range(20))
def test_ragged_sequences_are_each_by_itself(seed: int) -> None:
    chance = random.Random(seed)
    lengths = [chance.randint(2, 9) for _ in range(chance.randint(1, 7))]
    rewards = [chance.uniform(-1, 1) for _ in lengths]
    goes_on = [chance.random() < 0.4 for _ in lengths]
    values = [[chance.gauss(0, 1) for _ in range(n)] for n in lengths]
    penalties = [[chance.gauss(0, 0.1) for _ in range(n)] for n in lengths]
    gamma, lam, lam_critic = (chance.choice([0.0, 1.0, chance.random()]) for _ in range(3))
    rule = ValueRule(gamma=gamma, lam=lam, lam_critic=lam_critic)
    flat = torch.tensor([v for row in values for v in row])
    found = rule.targets(micro_of(lengths, rewards, goes_on), flat, torch.tensor([p for row in penalties for p in row]))
    start = 0
    for length, reward, on, row, costs in zip(lengths, rewards, goes_on, values, penalties, strict=True):
        given = [-c for c in costs]
        given[-1] += reward
        trained = length - on
        if on:  # what would have followed is worth the value before the last token
            given = given[:-1]
            given[-1] += gamma * row[-1]
        part = slice(start, start + trained)
        assert close(found.advantages[part], restated(given[:trained], row[:trained], gamma, lam))
        returns = [
            a + v for a, v in zip(restated(given[:trained], row[:trained], gamma, lam_critic), row, strict=False)
        ]
        assert close(found.returns[part], returns)
        if on:
            assert found.advantages[start + length - 1] == 0
        start += length


def test_whitening_is_over_the_whole_step_and_leaves_returns_alone() -> None:
    torch.manual_seed(0)
    tokens = [micro_of([3, 2], [1.0, 0.0], [True, False]), micro_of([4], [1.0])]  # the third token is not trained on
    rows = [torch.randn(5), torch.randn(4) + 3]
    estimates = [ValueTargets(values=r, advantages=r.clone(), returns=r + 1) for r in rows]
    found = whitened(estimates, tokens)
    trained = torch.cat([found[0].advantages[[0, 1, 3, 4]], found[1].advantages])
    assert abs(trained.mean()) < FLOAT32 and abs(trained.std(correction=0) - 1) < FLOAT32
    assert abs(found[0].advantages.mean()) > 0.5  # no micro-batch is centred by itself
    assert all(torch.equal(f.returns, e.returns) for f, e in zip(found, estimates, strict=True))

    class OneOfTwo(SingleProcess):
        """The other process has the second micro-batch, all of whose tokens are trained on."""

        def gather(self, mine: list[Any]) -> list[Any]:
            return [*mine, rows[1]]

    (shared,) = whitened(estimates[:1], tokens[:1], OneOfTwo())
    assert torch.equal(shared.advantages, found[0].advantages)


@pytest.mark.parametrize(("length", "share"), [(1, 1.0), (2, 0.5**0.5), (4, 0.5**0.75)])
def test_the_first_token_has_its_share_of_the_last_ones_credit(length: int, share: float) -> None:
    """k = 0.5: lambda is 0.5, sqrt(0.5) and 0.5^(1/4), to the power L - 1. With values of 0 the last delta is the reward."""
    found = ValueRule(lam_length=0.5).targets(micro_of([length], [1.0]), torch.zeros(length))
    assert found.advantages[0].item() == pytest.approx(share, rel=FLOAT32)
    assert found.advantages[-1] == 1
    assert torch.equal(found.returns, torch.ones(length))  # the critic's own lambda stays 1


def test_each_sequence_has_the_lambda_of_its_tokens_in_the_loss() -> None:
    """The last of four tokens of a cut completion is not in the loss: three are. By hand: lambda = 0.5^(1/3) and 0.5^(1/2)."""
    micro = micro_of([4, 2], [0.0, 1.0], [True, False])
    values = torch.tensor([0.3, 0.1, 0.4, 0.8, 0.2, 0.6])
    found = ValueRule(lam_length=0.5, lam_critic=0.0).targets(micro, values)
    cut_off = restated([0.0, 0.0, 0.8], [0.3, 0.1, 0.4], 1.0, 0.5 ** (1 / 3))
    whole = restated([0.0, 1.0], [0.2, 0.6], 1.0, 0.5**0.5)
    assert close(found.advantages, [*cut_off, 0.0, *whole])
    assert close(found.returns, [0.1, 0.4, 0.8, 0.8, 0.6, 1.0])


def test_the_lambda_of_the_longest_completion_is_not_1() -> None:
    """Also where the forward computes in 16 bits, in which it would be 1. 0.5% is what float32 makes of ln 2 / 131072."""
    length = 131072
    micro = micro_of([length], [1.0])
    with torch.autocast("cpu", torch.bfloat16):
        lam = ValueRule(lam_length=0.5).lambdas(micro)
    assert isinstance(lam, Tensor) and lam.dtype == torch.float32
    assert (lam.double() ** (length - 1)).item() == pytest.approx(0.5, rel=0.005)
    assert lam.bfloat16() == 1
