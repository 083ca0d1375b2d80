"""The algorithm box: one step from problems to a better policy."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from rewards.errors import UserError
from rl.algorithms import Advantages, Algorithm
from rl.batch import Batch, MicroBatch
from rl.deliver import Delivery
from rl.head import TokenScores
from rl.measure import Metrics, TokenMeans, describe, timed
from rl.policy import Policy
from rl.runtime import Runtime
from rollout.collect import Collector
from rollout.problems import ProblemStream
from rollout.records import RolloutGroup


@dataclass(kw_only=True)
class Learner:
    """What a step changes: the policy, its reference, the optimiser."""

    policy: Policy
    reference: Policy | None
    optimizer: torch.optim.Optimizer
    runtime: Runtime
    algorithm: Algorithm
    temperature: float
    token_budget: int
    max_grad_norm: float
    num_epochs: int = 1

    @property
    def learning_rate(self) -> float:
        return self.optimizer.param_groups[0]["lr"]

    def set_learning_rate(self, rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def refresh_reference(self, step: int) -> None:
        """Iterative GRPO: at the end of an outer iteration the policy becomes the reference."""
        every = self.algorithm.refresh_reference_every
        if every and step % every == 0:
            self.reference = self.policy.frozen_copy()


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """groups, with their advantages, went into the update; `sampled` is all that was sampled."""

    groups: list[RolloutGroup]
    sampled: list[RolloutGroup]
    advantages: Advantages
    metrics: Metrics


def train_step(
    learner: Learner, collector: Collector, stream: ProblemStream, delivery: Delivery, *, step: int, num_problems: int
) -> StepResult:
    """Sample and verify, compare within groups, pack, update, deliver."""
    algorithm, max_tokens = learner.algorithm, collector.params.max_tokens

    if algorithm.dynamic_sampling:
        collected = collector.collect_with_signal(stream, num_problems, step=step)
    else:
        collected = collector.collect(stream.take(num_problems), step=step)
    advantages = algorithm.advantages(collected.groups, max_tokens)
    batch = algorithm.pack(collected.groups, advantages, max_tokens)

    metrics = describe(collected, algorithm, max_tokens)
    with timed(metrics, "time/train"):
        metrics |= update(learner, batch)
        learner.refresh_reference(step)
    with timed(metrics, "time/deliver"):
        metrics["delivery/error"] = delivery.deliver(version=step)
    return StepResult(groups=collected.groups, sampled=collected.sampled, advantages=advantages, metrics=metrics)


def update(learner: Learner, batch: Batch) -> Metrics:
    """num_epochs gradient steps on the batch. The first epoch's log-probs are the behaviour's: no forward is spent on them."""
    tracker = TokenMeans()
    behaviour: list[Tensor] = []
    reference: list[Tensor | None] = []
    loss_sum, grad_norm = 0.0, 0.0
    for epoch in range(learner.num_epochs if batch.groups else 0):
        for i, micro in enumerate(batch.micro_batches(learner.token_budget)):
            micro = micro.to(learner.policy.device)
            if epoch == 0:
                reference.append(reference_logprobs(learner, micro))
            loss_of = partial(part_loss, learner.algorithm, micro, behaviour[i] if epoch > 0 else None, reference[i])
            loss, scores = learner.policy.loss(
                micro, learner.temperature, loss_of, token_level=learner.algorithm.token_level
            )
            learner.runtime.backward(loss)
            if epoch == 0:
                behaviour.append(scores.logprobs)
            loss_sum += loss.item() / learner.num_epochs
            tracker.add(learner.algorithm, scores, behaviour[i], reference[i], micro)
        grad_norm = learner.runtime.clip_grad_norm(learner.policy.model, learner.max_grad_norm)
        if not math.isfinite(loss_sum + grad_norm):
            learner.optimizer.zero_grad()
            raise UserError(
                f"loss is {loss_sum} and the gradient's norm {grad_norm}: training has diverged, and this update was not made. "
                f"Lower learning_rate (now {learner.learning_rate:g}) and resume from the last checkpoint"
            )
        learner.optimizer.step()
        learner.optimizer.zero_grad()
    return {
        "loss": loss_sum if batch.groups else None,
        "grad_norm": grad_norm if batch.groups else None,
        "learning_rate": learner.learning_rate,
        "groups/trained": len(batch.groups),
        "tokens/trained": batch.num_tokens * learner.num_epochs,
        **tracker.means(),
    }


def part_loss(
    algorithm: Algorithm,
    micro: MicroBatch,
    behaviour: Tensor | None,
    reference: Tensor | None,
    scores: TokenScores,
    part: slice,
) -> Tensor:
    """The loss of a part of the micro-batch's tokens. Without `behaviour` the policy is the behaviour."""
    return algorithm.loss(
        scores,
        scores.logprobs.detach() if behaviour is None else behaviour[part],
        None if reference is None else reference[part],
        micro.tokens(part),
    )


@torch.no_grad()
def reference_logprobs(learner: Learner, micro: MicroBatch) -> Tensor | None:
    if learner.reference is None:
        return None
    return learner.reference.score(micro, learner.temperature).logprobs
