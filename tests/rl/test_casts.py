"""Trained weights are cast once an optimiser step, and what is learnt is what it was when they were cast at each forward."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from rl.objective.algorithms import ALGORITHMS
from rl.objective.values import FrozenTargets
from rl.policy.critic import Critic
from rl.policy.lora import LoraPolicy, add_adapters, lora_critic
from rl.policy.policy import Policy
from rl.processes.runtime import Runtime
from rl.update.batch import Batch
from rl.update.learner import Learner
from rl.update.loss import compute_old_logprobs
from rl.update.update import update
from tests.rl.models import make, random_batch


@pytest.fixture(scope="module")
def runtime() -> Runtime:
    return Runtime.start(dtype="bfloat16", device="cpu")


def make_learner(
    runtime: Runtime,
    name: str,
    *,
    lora: bool = False,
    checkpointed: bool = False,
    kl_in_reward: bool = False,
    **options: Any,
) -> Learner:
    algorithm, model = ALGORITHMS[name], make("qwen2")
    if kl_in_reward:
        assert algorithm.value_rule is not None
        algorithm = replace(algorithm, value_rule=replace(algorithm.value_rule, kl_in_reward=True))
    scoring: dict[str, Any] = {"autocast": runtime.autocast, "gradient_checkpointing": checkpointed}
    if lora:
        adapted = add_adapters(model, rank=4, alpha=8.0, targets=("all-linear",), seed=0)
        policy: Policy = LoraPolicy.of(adapted, **scoring)
    else:
        policy = Policy.of(model, **scoring)
    reference, critic = policy.frozen_copy(), None
    if isinstance(policy, LoraPolicy) and algorithm.critic == "separate":
        critic = lora_critic(policy, seed=1)
    elif algorithm.critic == "separate":
        critic = Critic.of(Policy.of(copy.deepcopy(model), **scoring))
    elif algorithm.critic == "shared":
        policy = policy.with_value_head(1.0)
    of_critic = critic.parameters() if critic else policy.value_head.parameters() if policy.value_head else []
    return Learner(
        policy=policy,
        reference=reference,
        critic=critic,
        optimizer=torch.optim.AdamW([{"params": p} for p in (policy.trainable_parameters(), of_critic) if p], lr=1e-2),
        runtime=runtime,
        algorithm=algorithm,
        temperature=0.8,
        token_budget=40,
        max_grad_norm=1.0,
        **options,
    )


def batches(count: int) -> list[Batch]:
    whole = random_batch(groups=4, size=3)
    groups = [replace(g, sequences=tuple(replace(s, reward=1.0) for s in g.sequences)) for g in whole.groups]
    return [replace(whole, groups=tuple(groups[i::count])) for i in range(count)]


@contextmanager
def casts_counted(weights: list[Tensor]) -> Iterator[Counter[int]]:
    """How often each of the weights is cast, by its place in the list."""
    found: Counter[int] = Counter()
    places = {w.data_ptr(): i for i, w in enumerate(weights)}

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function is torch.ops.aten._to_copy.default and args[0].data_ptr() in places:
                found[places[args[0].data_ptr()]] += 1
            return function(*args, **(kwargs or {}))

    with Recorder():
        yield found


CASES: dict[str, dict[str, Any]] = {
    "full": {"name": "grpo"},
    "sequence ratios": {"name": "gspo"},
    "checkpointed": {"name": "grpo", "checkpointed": True},
    "adapters": {"name": "grpo", "lora": True},
    "checkpointed adapters": {"name": "grpo", "lora": True, "checkpointed": True},
    "a critic on the trunk": {"name": "ppo"},
    "a critic": {"name": "ppo-separate"},
    "a critic of adapters": {"name": "ppo-separate", "lora": True},
    "a look without gradient before": {"name": "ppo-separate", "kl_in_reward": True},
}


@pytest.mark.parametrize(
    ("case", "minibatches"), [*((case, 1) for case in CASES), *((c, 2) for c in ("full", "adapters", "a critic"))]
)
def test_weights_and_losses_are_those_of_casts_at_each_forward(
    case: str, minibatches: int, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit, over updates in which the weights move: a cast that outlives a step, or lacks its gradient, or is one of a
    reference's adapters, shows."""

    def run() -> tuple[list[float | None], Tensor]:
        of = make_learner(runtime, **CASES[case], num_epochs=minibatches)
        losses = [update(of, *batches(minibatches))["loss"] for _ in range(2)]
        return losses, torch.cat([p.detach().flatten() for p in of.parameters()])

    losses, weights = run()
    monkeypatch.setattr(Runtime, "keeping_casts", lambda self: nullcontext())
    expected_losses, expected = run()
    assert losses == expected_losses and losses[0] != losses[1]
    assert torch.equal(weights, expected)


@pytest.mark.parametrize("checkpointed", [False, True])
def test_a_trained_weight_is_cast_once_a_step(checkpointed: bool, runtime: Runtime) -> None:
    """The embedding, which the output layer shares, too; layers that are run again in the backward find the cast."""
    of = make_learner(runtime, "grpo", checkpointed=checkpointed)
    of.token_budget, (batch,) = 28, batches(1)
    assert len(list(batch.micro_batches(of.token_budget))) > 2
    weights = [p for p in of.policy.trainable_parameters() if p.dim() == 2]
    with casts_counted(weights) as found:
        update(of, batch)
    assert found == dict.fromkeys(range(len(weights)), 1)


def test_a_look_ahead_casts_once_and_each_step_once(runtime: Runtime) -> None:
    of = make_learner(runtime, "grpo")
    weights = [p for p in of.policy.trainable_parameters() if p.dim() == 2]
    with casts_counted(weights) as found:
        update(of, *batches(2))
    assert found == dict.fromkeys(range(len(weights)), 3)


def test_a_critic_computes_in_16_bits_as_the_policy_does(runtime: Runtime) -> None:
    critic = make_learner(runtime, "ppo-separate").critic
    assert critic is not None
    torch.nn.init.normal_(critic.head.weight)
    (micro,) = batches(1)[0].micro_batches(10_000)
    with torch.no_grad():
        found = critic.values(micro)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = critic.trunk.hidden_states(micro)
        exact = critic.head(critic.trunk.hidden_states(micro))
    assert torch.equal(found, critic.head(rounded)) and not torch.equal(found, exact)


def test_what_is_seen_beforehand_is_seen_with_the_critics_adapters(runtime: Runtime) -> None:
    of = make_learner(runtime, "ppo-separate", lora=True)
    assert of.critic is not None
    with torch.no_grad():
        for parameter in of.critic.parameters():
            parameter.normal_(0, 0.3)
    micros = list(batches(1)[0].micro_batches(40))
    found = compute_old_logprobs(of, micros, [FrozenTargets()] * len(micros))
    for i, micro in enumerate(micros):
        with of.critic.activate(), torch.no_grad():
            expected = of.critic.values(micro)
        values = found[i].values
        assert values is not None and torch.equal(values.values, expected)
