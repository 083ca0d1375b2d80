"""DPO's gradient, by coefficients that are computed before each update, against autograd of the paper's loss: DeepSeekMath, A.1.4."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from statistics import mean

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from rl.objective.algorithms import ALGORITHMS, DPO
from rl.objective.preferences import preference_coefficients
from rl.policy.policy import Policy
from rl.processes.runtime import Runtime
from rl.update.batch import pack
from rl.update.learner import Learner
from rl.update.update import update
from rollout.records import RolloutGroup
from tests.parity.cases import MAX_TOKENS, TEMPERATURE, group_of, nearby, random_groups, relative_difference, tiny_qwen2
from tests.parity.restated import padded_logprobs

SAME = 2e-5  # as in test_gradient_independence.py
BETA = 3.0  # far from what a sigmoid's tangent would do
RATE = 0.01


def graded(groups: Sequence[RolloutGroup]) -> list[RolloutGroup]:
    return [replace(g, rollouts=tuple(r for r in g.rollouts if r.score.value is not None)) for g in groups]


def restated(model: PreTrainedModel, reference: PreTrainedModel, groups: Sequence[RolloutGroup]) -> Tensor:
    """Mean over the groups with a pair, of the mean over its pairs, of -log sigmoid(beta (m+ - m-)), a pair at a time."""
    losses = []
    policy, fixed = (padded_logprobs(m, groups, TEMPERATURE) for m in (model, reference))
    for group, rows, fixed_rows in zip(groups, policy, fixed, strict=True):
        margins = [(row - f.detach()).mean() for row, f in zip(rows, fixed_rows, strict=True)]
        values = [r.score.value or 0.0 for r in group.rollouts]
        pairs = [(i, j) for i, x in enumerate(values) for j, y in enumerate(values) if x > y]
        if pairs:
            losses.append(sum(-torch.sigmoid(BETA * (margins[i] - margins[j])).log() for i, j in pairs) / len(pairs))
    return torch.stack(losses).mean()


def pair_margins(
    model: PreTrainedModel, reference: PreTrainedModel, groups: Sequence[RolloutGroup]
) -> list[list[float]]:
    """m+ - m- of the pairs of each group that has one."""
    found = []
    policy, fixed = (padded_logprobs(m, groups, TEMPERATURE) for m in (model, reference))
    for group, rows, fixed_rows in zip(groups, policy, fixed, strict=True):
        of_each = [
            (r.score.value or 0.0, (row - f).mean().item())
            for r, row, f in zip(group.rollouts, rows, fixed_rows, strict=True)
        ]
        found.append([m - n for x, m in of_each for y, n in of_each if x > y])
    return [pairs for pairs in found if pairs]


def learner(
    model: PreTrainedModel, reference: PreTrainedModel, *, budget: int = 10_000, num_epochs: int = 1
) -> Learner:
    """Plain gradient descent without clipping: what the weights move by is the gradient."""
    policy = Policy.of(model)
    return Learner(
        policy=policy,
        reference=Policy.of(reference),
        optimizer=torch.optim.SGD(policy.model.parameters(), lr=RATE),
        runtime=Runtime.start(dtype="float32", device="cpu"),
        algorithm=replace(DPO, dpo_beta=BETA),
        temperature=TEMPERATURE,
        token_budget=budget,
        max_grad_norm=math.inf,
        num_epochs=num_epochs,
    )


def weights(model: PreTrainedModel) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def moved(groups: Sequence[RolloutGroup], *, budget: int = 10_000, num_epochs: int = 1) -> Tensor:
    """What an update takes from the weights, a group's completions in as many micro-batches as the budget makes."""
    model = tiny_qwen2()
    of_update = learner(model, nearby(model, tiny_qwen2()), budget=budget, num_epochs=num_epochs)
    before = weights(model)
    update(of_update, pack(of_update.algorithm.assign_credit(groups, MAX_TOKENS), of_update.algorithm, MAX_TOKENS))
    return before - weights(model)


def descended(groups: Sequence[RolloutGroup], *, steps: int) -> Tensor:
    """The same by autograd of the restated loss."""
    model = tiny_qwen2()
    reference, before = nearby(model, tiny_qwen2()), weights(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    for _ in range(steps):
        optimizer.zero_grad()
        restated(model, reference, graded(groups)).backward()
        optimizer.step()
    return before - weights(model)


def test_the_metrics_are_the_papers_loss_and_the_pairs_it_is_made_of() -> None:
    """Over two updates: of the weights before each. Completions that are the start policy's estimate its KL, and not the policy's."""
    groups = random_groups(4)
    model = tiny_qwen2()
    reference = nearby(model, tiny_qwen2())
    of_update = learner(model, reference, num_epochs=2)
    batch = pack(of_update.algorithm.assign_credit(groups, MAX_TOKENS), of_update.algorithm, MAX_TOKENS)
    before = restated(model, reference, graded(groups)).item()
    found = update(of_update, batch)
    again = tiny_qwen2()
    optimizer = torch.optim.SGD(again.parameters(), lr=RATE)
    restated(again, reference, graded(groups)).backward()
    optimizer.step()
    after = restated(again, reference, graded(groups)).item()
    assert found["preference/loss"] == pytest.approx((before + after) / 2, rel=SAME)
    margins = [pair_margins(m, reference, graded(groups)) for m in (tiny_qwen2(), again)]
    assert found["preference/margin"] == pytest.approx(sum(mean(mean(g) for g in m) for m in margins) / 2, rel=1e-3)
    right = [mean(mean(x > 0 for x in g) for g in m) for m in margins]
    assert found["preference/accuracy"] == pytest.approx(sum(right) / 2)
    assert "kl/reference" not in found
    assert found["kl/from_start"] > 0


@pytest.mark.parametrize("seed", [4, 5])
@pytest.mark.parametrize(
    "budget", [10_000, 40, 16]
)  # 16 tokens hold one completion: pairs are in different micro-batches
def test_the_update_descends_the_papers_loss(seed: int, budget: int) -> None:
    """Rewards that tie, one in the middle, one completion not graded, one group without a pair."""
    groups = random_groups(seed)
    assert relative_difference(moved(groups, budget=budget), descended(groups, steps=1)) < SAME


def test_every_epoch_has_the_coefficients_of_its_own_weights() -> None:
    groups = random_groups(4)
    twice = descended(groups, steps=2)
    assert relative_difference(moved(groups, num_epochs=2), twice) < SAME
    assert relative_difference(2 * descended(groups, steps=1), twice) > 10 * SAME  # so that the second one tells


def test_order_does_not_matter() -> None:
    groups, rng = random_groups(4), random.Random(0)
    shuffled = [
        replace(g, rollouts=tuple(rng.sample(g.rollouts, len(g.rollouts)))) for g in rng.sample(groups, len(groups))
    ]
    assert relative_difference(moved(shuffled, budget=40), moved(groups)) < SAME


def test_the_coefficient_of_a_pair_is_the_papers() -> None:
    """sigmoid(beta (m- - m+)), equation 19 with its sign, times beta: here 2 sigmoid(2 (-0.25 - 0.5)) = 2 / (1 + e^1.5)."""
    coefficients = preference_coefficients(torch.tensor([0.5, -0.25]), torch.tensor([1.0, 0.0]), 2.0)
    assert coefficients.tolist() == pytest.approx([2 / (1 + math.exp(1.5)), -2 / (1 + math.exp(1.5))])


def test_three_rewards_make_three_pairs() -> None:
    """Equal margins: 1/2 beta for each pair, over three. The middle one wins one and loses one."""
    coefficients = preference_coefficients(torch.zeros(3), torch.tensor([0.5, 1.0, 0.0]), 6.0)
    assert coefficients.tolist() == pytest.approx([0.0, 2.0, -2.0])


def test_groups_without_a_pair_are_in_no_count() -> None:
    """Alone among silent groups and one with a single graded completion, a pair has the whole step: 1 / |o| for each token."""
    groups = [
        group_of([2, 4], [1.0, 0.0], "a"),
        group_of([3, 3], [1.0, 1.0], "b"),
        group_of([3, 3], [1.0, None], "c"),
    ]
    batch = pack(DPO.assign_credit(groups, MAX_TOKENS), DPO, MAX_TOKENS)
    assert [[s.weight for s in g.sequences] for g in batch.groups] == [[1 / 2, 1 / 4]]


def test_the_online_form_differs_in_its_samples_alone() -> None:
    assert replace(ALGORITHMS["online-dpo"], name="dpo", samples_from="start") == DPO
