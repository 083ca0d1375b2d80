"""The algorithm box: one step from problems to a better policy."""

from __future__ import annotations

from dataclasses import dataclass

from rl.objective.algorithms import CreditedGroup
from rl.update.batch import pack
from rl.update.delivery import Delivery
from rl.update.learner import Learner
from rl.update.prefetch import Ahead
from rl.update.step_metrics import Metrics, describe, mean, timed
from rl.update.update import update
from rollout.collect import Collected, Collector
from rollout.demonstrations import demonstrate
from rollout.problems import ProblemStream


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """sampled: every group that was sampled. groups: those of them that went into the update."""

    groups: list[CreditedGroup]
    sampled: list[CreditedGroup]
    metrics: Metrics


def train_step(
    learner: Learner,
    collector: Collector,
    stream: ProblemStream,
    delivery: Delivery,
    *,
    step: int,
    num_problems: int,
    trains_policy: bool = True,
    ahead: Ahead | None = None,
) -> StepResult:
    """Sample and verify, compare within groups, pack, update, deliver.

    trains_policy: False while the critic is warmed up. ahead: samples the next step's completions meanwhile.
    """
    algorithm, max_tokens = learner.algorithm, collector.params.max_tokens

    def sample(step: int) -> Collected:
        if algorithm.samples_from == "dataset":
            return demonstrate(stream.take(num_problems), collector.renderer)
        if algorithm.dynamic_sampling:
            return collector.collect_with_signal(stream, num_problems, step=step)
        return collector.collect(stream.take(num_problems), step=step)

    if learner.initial_policy is not None:
        delivery.deliver(version=0, policy=learner.initial_policy)
    collected = ahead.take(step, sample) if ahead else sample(step)
    sampled = algorithm.assign_credit(collected.sampled, max_tokens)
    in_update = {id(group) for group in collected.groups}
    credited = [c for c in sampled if id(c.group) in in_update]
    num_parts = min(learner.num_minibatches, len(credited))
    batches = [pack(credited[i::num_parts], algorithm, max_tokens) for i in range(num_parts)]

    metrics = describe(collected, sampled)
    versions = [r.completion.policy_version for c in credited for r in c.group.rollouts]
    metrics["staleness"] = mean(step - 1 - version for version in versions)
    if ahead is None:
        collector.sampler.sleep()
    with timed(metrics, "time/train"):
        metrics |= update(learner, *batches, trains_policy=trains_policy)
        learner.refresh_reference(step)
    with timed(metrics, "time/deliver"):
        if ahead is not None:
            ahead.wait()
        metrics["delivery/error"] = delivery.deliver(version=step)
    return StepResult(groups=credited, sampled=sampled, metrics=metrics)
