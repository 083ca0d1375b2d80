"""Several rewards: each normalised in its group before they are summed (GDPO), and what the options allow."""

from __future__ import annotations

import statistics
from dataclasses import replace

import pytest
import torch

from rewards.errors import UserError
from rewards.score import Outcome, Score
from rl.objective.algorithms import DR_GRPO, GROUP_EPS, GRPO, each_reward
from rl.settings.config import RunConfig
from rollout.records import Completion, FinishReason, Problem, Rollout, RolloutGroup

WEIGHTS = {"right": 1.0, "brief": 0.5}


def rollout(problem: Problem, parts: dict[str, float] | None) -> Rollout:
    completion = Completion(
        token_ids=(1, 2),
        sampler_logprobs=(-1.0, -1.0),
        finish_reason=FinishReason.STOP,
        policy_version=0,
        seed=0,
        text="",
    )
    if parts is None:
        return Rollout(problem=problem, completion=completion, score=Score(None, Outcome.CRASHED))
    value = sum(WEIGHTS[name] * part for name, part in parts.items())
    return Rollout(problem=problem, completion=completion, score=Score(value, Outcome.WRONG, parts))


def group(*parts: dict[str, float] | None) -> RolloutGroup:
    problem = Problem(id="a", prompt="?", reference="")
    return RolloutGroup(problem=problem, prompt_ids=(0,), rollouts=tuple(rollout(problem, p) for p in parts))


def standardised(values: list[float]) -> list[float]:
    if len(set(values)) == 1:
        return [0.0] * len(values)
    return [(v - statistics.mean(values)) / (statistics.stdev(values) + GROUP_EPS) for v in values]


def first_advantages(algorithm, groups) -> list[float]:
    return [a[0].item() for credited in algorithm.assign_credit(groups, 8) for a in credited.advantages]


# Tokens saved are a hundred times as large as correctness: in the sum they are all that counts.
RIGHT, BRIEF = [[1.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]], [[-100.0, -40.0, -90.0, -10.0], [-5.0, -5.0, -5.0, -5.0]]
GROUPS = [group(*({"right": r, "brief": b} for r, b in zip(rights, briefs))) for rights, briefs in zip(RIGHT, BRIEF)]


def test_each_reward_is_normalised_in_its_group_and_their_sum_over_the_step() -> None:
    """A_k = (r_k - mean) / (std + eps) in the group; sum_k w_k A_k, standardised over all completions of the step."""
    sums = [
        1.0 * r + 0.5 * b
        for rights, briefs in zip(RIGHT, BRIEF)
        for r, b in zip(standardised(rights), standardised(briefs))
    ]
    each = replace(GRPO, advantage_rule=each_reward(GRPO.advantage_rule, WEIGHTS))
    assert first_advantages(each, GROUPS) == pytest.approx(standardised(sums), abs=1e-5)  # float32


def test_in_a_sum_the_larger_scale_decides_and_normalised_apart_it_does_not() -> None:
    summed = first_advantages(GRPO, GROUPS)[:4]
    each = replace(GRPO, advantage_rule=each_reward(GRPO.advantage_rule, WEIGHTS))
    apart = first_advantages(each, GROUPS)[:4]
    assert summed[2] < summed[1]  # right and long, wrong and shorter
    assert apart[2] > apart[1]


def test_what_is_beside_the_named_rewards_is_one_more_reward() -> None:
    """The overlong penalty is in no part: it is what the rewards differ from the sum of their parts by."""
    penalised = replace(GRPO, overlong_fraction=1.0, advantage_rule=each_reward(GRPO.advantage_rule, WEIGHTS))
    same = group(*({"right": 1.0, "brief": 0.1} for _ in range(4)))
    longer = replace(
        same.rollouts[0],
        completion=replace(same.rollouts[0].completion, token_ids=(1,) * 6, sampler_logprobs=(-1.0,) * 6, loss_mask=()),
    )
    mixed = replace(same, rollouts=(longer, *same.rollouts[1:]))
    first, *others = first_advantages(penalised, [mixed])
    assert first < 0 < min(others)
    assert first_advantages(replace(penalised, overlong_fraction=0.0), [mixed]) == [0.0] * 4  # rounding is no signal


def test_ungraded_completions_stay_out_of_every_mean() -> None:
    each = replace(DR_GRPO, advantage_rule=each_reward(DR_GRPO.advantage_rule, WEIGHTS))
    with_one = [group({"right": 1.0, "brief": 0.0}, None, {"right": 0.0, "brief": 0.0})]
    first, crashed, last = first_advantages(each, with_one)
    without = first_advantages(each, [group({"right": 1.0, "brief": 0.0}, {"right": 0.0, "brief": 0.0})])
    assert crashed == 0.0
    assert [first, last] == without
    assert torch.tensor(without).abs().min() > 0


def test_a_reward_that_was_left_out_of_an_answer_is_no_zero_in_the_mean_of_the_others() -> None:
    """The first two differ from each other in `right` alone, the last two in `brief` alone."""
    each = replace(GRPO, advantage_rule=each_reward(GRPO.advantage_rule, WEIGHTS))
    apart = group({"right": 1.0}, {"right": 3.0}, {"brief": 20.0}, {"brief": 40.0})
    sums = [*standardised([1.0, 3.0]), *(0.5 * b for b in standardised([20.0, 40.0]))]
    assert first_advantages(each, [apart]) == pytest.approx(standardised(sums), abs=1e-5)  # float32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reward": ("math",)}, "needs at least two rewards"),
        ({"reward": ("math", "boxed=0.1"), "format": ("boxed",)}, "name the rules as rewards too"),
        ({"reward": ("math", "boxed=0.1"), "algorithm": "ppo"}, "ppo does not normalise rewards over a group"),
        ({"reward": ("math", "boxed=0.1"), "algorithm": "dapo"}, "refills groups by their sums"),
    ],
)
def test_options_that_contradict_it(options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        RunConfig(reward_normalization="each", **options)


def test_the_option_reaches_the_algorithm() -> None:
    config = RunConfig(reward=("math", "boxed=0.25"), reward_normalization="each")
    assert config.chosen_algorithm().advantage_rule.weights == (("math", 1.0), ("boxed", 0.25))
    assert RunConfig(reward=("math",)).chosen_algorithm() == replace(GRPO)
