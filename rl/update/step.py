"""One training step: sampling, verification, credit assignment, update and weight delivery."""

from __future__ import annotations

from dataclasses import dataclass

from rl.objective.algorithms import CreditedGroup
from rl.update.batch import pack
from rl.update.delivery import Delivery
from rl.update.learner import Learner
from rl.update.prefetch import Prefetcher
from rl.update.step_metrics import Metrics, describe, mean, timed
from rl.update.update import update
from rollout.collect import Collected, Collector
from rollout.demonstrations import demonstrate
from rollout.problem_stream import ProblemStream


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """sampled: all groups that were sampled. groups: those that were used in the update."""

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
    prefetcher: Prefetcher | None = None,
) -> StepResult:
    """Samples and verifies completions, assigns credit, packs a batch, updates the policy, delivers its weights.

    trains_policy: False while the critic is warmed up. prefetcher: samples the next step's completions during the update.
    """
    algorithm, max_tokens = learner.algorithm, collector.params.max_tokens

    def sample(step: int) -> Collected:
        if algorithm.samples_from == "dataset":
            return demonstrate(stream.take(num_problems), collector.renderer)
        if algorithm.dynamic_sampling:
            return collector.collect_with_signal(stream, num_problems, step=step)
        return collector.collect_from(stream, num_problems, step=step)

    if learner.initial_policy is not None:
        delivery.deliver(version=0, policy=learner.initial_policy)
    collected = prefetcher.take(step, sample) if prefetcher else sample(step)
    sampled = algorithm.assign_credit(collected.sampled, max_tokens)
    in_update = {id(group) for group in collected.groups}
    credited = [c for c in sampled if id(c.group) in in_update]
    num_parts = min(learner.num_minibatches, len(credited))
    batches = [pack(credited[i::num_parts], algorithm, max_tokens) for i in range(num_parts)]

    metrics = describe(collected, sampled)
    if step == 1:
        learner.start_values_at(metrics["reward/mean"])
    versions = [r.completion.policy_version for c in credited for r in c.group.rollouts]
    metrics["staleness"] = mean(step - 1 - version for version in versions)
    if prefetcher is None:
        collector.sampler.sleep()
    with timed(metrics, "time/train"):
        metrics |= update(learner, *batches, trains_policy=trains_policy)
        learner.refresh_reference(step)
    with timed(metrics, "time/deliver"):
        if prefetcher is not None:
            prefetcher.wait()
        metrics["delivery/error"] = delivery.deliver(version=step)
    if learner.reward_trainer is not None:  # one step ahead, no thread scores completions now
        with timed(metrics, "time/reward_model"):
            metrics |= learner.reward_trainer.after_step(collected.sampled, step)
    return StepResult(groups=credited, sampled=sampled, metrics=metrics)
