"""The algorithm box: one step from problems to a better policy."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rewards.score import Outcome
from rl.algorithms import Advantages, Algorithm
from rl.batch import Batch, MicroBatch
from rl.deliver import Delivery
from rl.forward import TokenScores
from rl.losses import kl_estimate, no_signal_probability, probability_ratio, truncated_importance_weight
from rl.policy import Policy
from rl.runtime import Runtime
from rollout.collect import Collected, Collector, has_signal
from rollout.errors import UserError
from rollout.problems import ProblemStream
from rollout.records import FinishReason, RolloutGroup


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


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """groups, with their advantages, went into the update; `sampled` is all that was sampled."""

    groups: list[RolloutGroup]
    sampled: list[RolloutGroup]
    advantages: Advantages
    metrics: dict[str, float | None]


def train_step(
    learner: Learner, collector: Collector, stream: ProblemStream, delivery: Delivery, *, step: int, num_problems: int
) -> StepResult:
    """Sample, verify, compare within groups, update, deliver."""
    algorithm, started = learner.algorithm, time.perf_counter()
    if algorithm.dynamic_sampling:
        collected = collector.collect_with_signal(stream, num_problems, step=step)
    else:
        collected = collector.collect(stream.take(num_problems), step=step)
    max_tokens = collector.params.max_tokens
    advantages = algorithm.advantages(collected.groups, max_tokens)
    batch = algorithm.pack(collected.groups, advantages, max_tokens)

    training = time.perf_counter()
    measured = update(learner, batch)
    trained = time.perf_counter()
    if algorithm.refresh_reference_every and step % algorithm.refresh_reference_every == 0:
        learner.reference = learner.policy.frozen_copy()
    error = delivery.deliver(version=step)
    ended = time.perf_counter()
    times = {"time/train": trained - training, "time/deliver": ended - trained, "time/step": ended - started}
    metrics = {**describe(collected, algorithm, max_tokens), **measured, "delivery/error": error, **times}
    return StepResult(groups=collected.groups, sampled=collected.sampled, advantages=advantages, metrics=metrics)


def update(learner: Learner, batch: Batch) -> dict[str, float | None]:
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
            scores = learner.policy.score(micro, learner.temperature)
            if epoch == 0:
                behaviour.append(scores.logprobs.detach())
            loss = learner.algorithm.loss(scores, behaviour[i], reference[i], micro)
            learner.runtime.backward(loss)
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


@torch.no_grad()
def reference_logprobs(learner: Learner, micro: MicroBatch) -> Tensor | None:
    if learner.reference is None:
        return None
    return learner.reference.score(micro, learner.temperature).logprobs


class TokenMeans:
    """Means over the tokens that went through the update."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = {}
        self.num_tokens = 0
        self.ratio_max = 0.0

    @torch.no_grad()
    def add(
        self, algorithm: Algorithm, scores: TokenScores, behaviour: Tensor, reference: Tensor | None, micro: MicroBatch
    ) -> None:
        ratio = probability_ratio(algorithm.ratio_level(scores.logprobs, behaviour, micro), behaviour)
        terms = {
            "entropy": scores.entropies,
            "kl/sampler": kl_estimate(micro.sampler_logprobs, behaviour, "k3"),
            "ratio/clipped": (ratio < 1 - algorithm.clip_low) | (ratio > 1 + algorithm.clip_high),
        }
        if reference is not None:
            terms["kl/reference"] = kl_estimate(scores.logprobs, reference, "k3")
        if algorithm.importance_cap is not None:
            weight = truncated_importance_weight(behaviour, micro.sampler_logprobs, algorithm.importance_cap)
            terms |= {"tis/weight": weight, "tis/truncated": weight >= algorithm.importance_cap}
        for key, values in terms.items():
            self.sums[key] = self.sums.get(key, 0.0) + values.sum().item()
        self.num_tokens += len(behaviour)
        self.ratio_max = max(self.ratio_max, ratio.max().item())

    def means(self) -> dict[str, float | None]:
        if self.num_tokens == 0:
            return {}
        return {**{key: total / self.num_tokens for key, total in self.sums.items()}, "ratio/max": self.ratio_max}


def describe(collected: Collected, algorithm: Algorithm, max_tokens: int) -> dict[str, float | None]:
    """What was sampled, in numbers."""
    rollouts = [r for group in collected.sampled for r in group.rollouts]
    rewards = torch.tensor([algorithm.reward(r, max_tokens) for r in rollouts if r.score.value is not None])
    values = [r.score.value for r in rollouts if r.score.value is not None]
    lengths = [len(r.completion.token_ids) for r in rollouts]
    pass_rate = mean(v == 1 for v in values)
    expected = None if pass_rate is None else no_signal_probability(pass_rate, len(collected.sampled[0].rollouts))
    return {
        "reward/mean": mean(rewards.tolist()),
        "reward/std": rewards.std(correction=0).item() if len(rewards) else None,
        "accuracy/sampled": pass_rate,
        "length/mean": mean(lengths),
        "length/max": max(lengths),
        "length/truncated": mean(r.completion.finish_reason is FinishReason.LENGTH for r in rollouts),
        "groups/no_signal": mean(not has_signal(group) for group in collected.sampled),
        "groups/no_signal_expected": expected,
        "groups/refilled": collected.num_refills,
        "tokens/sampled": collected.num_sampled_tokens,
        "tokens/per_second": collected.num_sampled_tokens / collected.sample_seconds,
        "time/sample": collected.sample_seconds,
        "time/verify": collected.verify_seconds,
    } | outcome_shares(collected.sampled)


def outcome_shares(groups: Iterable[RolloutGroup]) -> dict[str, float | None]:
    outcomes = [r.score.outcome for group in groups for r in group.rollouts]
    return {f"outcome/{kind.value}": mean(o is kind for o in outcomes) for kind in Outcome}


def mean(values: Iterable[Any]) -> float | None:
    listed = [float(v) for v in values]
    return sum(listed) / len(listed) if listed else None
