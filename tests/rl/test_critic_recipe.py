"""The critic's own schedule: where its values start, how often it is updated, and what its first steps alone keep of the policy."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any
from weakref import WeakSet

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from rewards.math_answer import MathVerifier
from rl.forward.output_head import ValueHead
from rl.objective.algorithms import Algorithm
from rl.processes.runtime import Runtime
from rl.run.loop import train
from rl.update.batch import Batch
from rl.update.learner import Learner
from rl.update.update import update
from rl.view.metrics import read_metrics
from tests.rl.models import random_batch
from tests.rl.test_casts import batches, make_learner
from tests.rl.test_kept_graphs import Kept
from tests.rl.test_loop import odd_lengths, options
from tests.rl.test_ppo import SAME, learner, ppo, rewarded, state

EXACT = 1e-6  # means of numbers near 1, summed in another order


@pytest.fixture(scope="module")
def runtime() -> Runtime:
    return Runtime.start(dtype="float32", device="cpu")


STARTS: list[dict[str, object]] = [
    {"algorithm": "ppo"},
    {"algorithm": "ppo-separate", "critic_updates": 2},
    {"algorithm": "ppo", "lora_rank": 4, "group_size": 1, "problems_per_step": 12, "critic_warmup_steps": 1},
    {"algorithm": "ppo-separate", "lora_rank": 4, "num_minibatches": 2},
    {"algorithm": "ppo", "kl_in": "reward", "kl_weight": 0.5},
    {"algorithm": "ppo-separate", "bootstrap_cut": True, "max_tokens": 4},
]


@pytest.mark.parametrize("changed", STARTS, ids=lambda c: "-".join(map(str, c.values())))
def test_values_start_at_the_mean_reward_of_the_first_step_and_only_there(
    changed: dict[str, object], model: Path, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The head's weights are 0, so every value is its bias. Neither a KL in the rewards nor a bootstrapped value is part of the mean."""
    monkeypatch.setattr(MathVerifier, "verify_batch", odd_lengths)
    rows = read_metrics(train(options(model, digits, tmp_path / "run", num_steps=2, **changed)))
    first, second = rows[1], rows[2]
    assert 0 < (first["reward/mean"] or 0) < 1
    assert first["value/mean"] == pytest.approx(first["reward/mean"], abs=EXACT)
    assert second["value/mean"] != pytest.approx(second["reward/mean"], abs=EXACT)


def all_right(batch: Batch) -> Batch:
    groups = (replace(g, sequences=tuple(replace(s, reward=1.0) for s in g.sequences)) for g in batch.groups)
    return Batch(tuple(groups), batch.counts)


@pytest.mark.parametrize("source", ["shared", "separate"])
def test_a_critic_that_starts_at_the_reward_has_nothing_left_to_learn_from_a_constant_one(
    source: str, runtime: Runtime
) -> None:
    norms = []
    for start in (None, 1.0):
        of = learner(runtime, ppo(source))
        head = of.value_head
        assert isinstance(head, ValueHead)
        with torch.no_grad():
            head.weight.zero_()
            head.bias.zero_()
        of.start_values_at(start)
        norms.append(update(of, all_right(random_batch()))["value/grad_norm"])
    assert norms[0] > 0.1 and norms[1] == 0


CRITICS: dict[str, Algorithm] = {
    "plain": ppo("separate", lam=0.7),
    "lambda by length": ppo("separate", lam_length=0.5),
    "KL in the reward": ppo("separate", kl_weight=0.1, kl_in_reward=True),
}


@pytest.mark.parametrize("case", CRITICS)
def test_a_critic_is_updated_n_times_towards_the_same_returns_and_the_policy_once(case: str, runtime: Runtime) -> None:
    """Against gradient descent written out on the returns of before the first update, clipped around the first values."""
    algorithm, batch = CRITICS[case], rewarded(random_batch())
    once, thrice, by_hand = (learner(runtime, algorithm, critic_updates=n) for n in (1, 3, 1))
    (micro,) = batch.micro_batches(10_000)
    critic = by_hand.critic
    assert critic is not None
    values = critic.values(micro).detach()
    old, _ = by_hand.policy.logprobs_and_values(micro, 1.0)
    reference = by_hand.reference and by_hand.reference.logprobs_and_values(micro, 1.0)[0]
    targets = algorithm.value_targets(micro, values, old, reference)
    for _ in range(3):
        algorithm.value_loss(critic.values(micro), targets, micro).backward()
        by_hand.optimizer.step()
        by_hand.optimizer.zero_grad()
    update(once, batch)
    update(thrice, batch)
    policies = [torch.cat([p.detach().flatten() for p in of.policy.trainable_parameters()]) for of in (once, thrice)]
    assert torch.equal(*policies)
    critics = [torch.cat([p.detach().flatten() for p in of.parameters(of_policy=False)]) for of in (thrice, by_hand)]
    assert (critics[0] - critics[1]).abs().max() < 3 * SAME
    assert (state(once) - state(thrice)).abs().max() > 1e-3


@pytest.mark.parametrize("options", [{"lora": True}, {"num_minibatches": 2}, {"lora": True, "checkpointed": True}])
def test_further_updates_of_the_critic_leave_the_policys_step_as_it_is(
    options: dict[str, Any], runtime: Runtime
) -> None:
    found = []
    for n in (1, 3):
        of = make_learner(runtime, "ppo-separate", critic_updates=n, **options)
        update(of, *batches(of.num_minibatches))
        found.append([[p.detach().clone() for p in group["params"]] for group in of.optimizer.param_groups])
    (policy, critic), (same, other) = found
    assert all(torch.equal(a, b) for a, b in zip(policy, same, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(critic, other, strict=True))


@pytest.mark.parametrize("source", ["shared", "separate"])
def test_critic_only_steps_keep_nothing_of_the_policys_forward(
    source: str, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither gradients of the policy nor, on its trunk, more than the head's input; and of many micro-batches no more than of one."""
    step_if_finite, left = Learner.step_if_finite, list[bool]()

    def noted(of: Learner, loss: float) -> Any:
        left.append(any(p.grad is not None for p in of.optimizer.param_groups[0]["params"]))
        return step_if_finite(of, loss)

    monkeypatch.setattr(Learner, "step_if_finite", noted)
    group = replace(rewarded(random_batch(groups=1)).groups[0])
    peaks = []
    for count in (1, 6):
        of, alive = learner(runtime, ppo(source), token_budget=group.num_tokens), WeakSet[Kept]()
        peak = 0

        def keep(tensor: Tensor) -> Kept:
            nonlocal peak
            alive.add(kept := Kept(tensor))  # noqa: B023
            peak = max(peak, sum(k.tensor.nbytes for k in alive))  # noqa: B023
            return kept

        with saved_tensors_hooks(keep, lambda kept: kept.tensor):
            update(of, Batch((group,) * count, random_batch().counts), trains_policy=False)
        peaks.append(peak)
    assert left == [False, False]
    assert peaks[0] == peaks[1] > 0
    if source == "shared":
        head = of.value_head
        assert head is not None
        num_tokens = sum(len(s.token_ids) for s in group.sequences)
        assert peaks[0] < 4 * num_tokens * (len(head.weight) + 16)  # bytes: its input, and a few numbers of each token


@pytest.mark.parametrize(("source", "kl_in_reward"), [("shared", False), ("shared", True), ("separate", False)])
def test_critic_only_steps_teach_the_critic_what_steps_of_both_do(
    source: str, kl_in_reward: bool, runtime: Runtime
) -> None:
    """A value head whose gradient does not enter the trunk, or a second model: the same update, with the policy or without it."""
    algorithm = ppo(source, kl_weight=0.1, kl_in_reward=kl_in_reward)
    found = []
    for trains_policy in (False, True):
        of = learner(runtime, algorithm, **({"trunk_scale": 0.0} if source == "shared" else {}))
        before = [p.detach().clone() for p in of.policy.trainable_parameters()]
        update(of, rewarded(random_batch()), trains_policy=trains_policy)
        found.append(torch.cat([p.detach().flatten() for p in of.parameters(of_policy=False)]))
        stayed = [torch.equal(a, b) for a, b in zip(before, of.policy.trainable_parameters(), strict=True)]
        assert all(stayed) != trains_policy
    assert torch.equal(*found)
