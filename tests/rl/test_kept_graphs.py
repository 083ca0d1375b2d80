"""Of a micro-batch's forward nothing that it kept for its backward is there when the next one begins, in any phase of training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from weakref import WeakSet

import pytest
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

import rl.update.update
from rl.processes.runtime import Runtime
from rl.update.loss import differentiate
from rl.update.update import update
from tests.rl.test_casts import batches, make_learner

PHASES: dict[str, tuple[str, dict[str, Any]]] = {
    "a reference": ("grpo", {}),
    "checkpointed": ("grpo", {"checkpointed": True}),
    "adapters": ("grpo", {"lora": True}),
    "the ratio of whole sequences": ("gspo", {}),
    "several epochs": ("grpo", {"num_epochs": 2}),
    "two mini-batches": ("ppo", {"num_minibatches": 2}),
    "a critic on the policy's trunk": ("ppo", {}),
    "a critic of its own": ("ppo-separate", {}),
    "the critic on the policy's trunk is warmed up": ("ppo", {}),
    "the critic is updated more often": ("ppo-separate", {"critic_updates": 3}),
    "the critic is warmed up": ("ppo-separate", {}),
    "the critic's adapters are warmed up": ("ppo-separate", {"lora": True}),
}


@dataclass(eq=False)
class Kept:
    """One tensor that autograd keeps; gone with the graph that keeps it."""

    tensor: Tensor


@pytest.fixture(scope="module")
def runtime() -> Runtime:
    return Runtime.start(dtype="float32", device="cpu")


@pytest.mark.parametrize("phase", PHASES)
def test_no_graph_outlives_its_micro_batch(phase: str, runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    name, options = PHASES[phase]
    trains_policy = "warmed up" not in phase
    learner = make_learner(runtime, name, **options)
    learner.token_budget = 20
    alive: WeakSet[Kept] = WeakSet()
    counts: list[int] = []  # before a micro-batch, then after it

    def keep(tensor: Tensor) -> Kept:
        kept = Kept(tensor)
        alive.add(kept)
        return kept

    def counted(*of_micro_batch: Any, **options: Any) -> Any:
        counts.append(len(alive))
        found = differentiate(*of_micro_batch, **options)
        counts.append(len(alive))
        return found

    monkeypatch.setattr(rl.update.update, "differentiate", counted)
    with saved_tensors_hooks(keep, lambda kept: kept.tensor):
        update(learner, *batches(learner.num_minibatches), trains_policy=trains_policy)
    assert len(counts) >= 2 * 4  # of several micro-batches
    assert set(counts) == {0}
