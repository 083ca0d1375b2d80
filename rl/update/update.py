"""The update of a step: epochs over mini-batches, each with the summed gradient of its micro-batches and one optimizer step."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product

import torch
from torch import Tensor

from rl.capacity.cost import Workload
from rl.forward.micro_batch import MicroBatch
from rl.objective.values import FrozenTargets
from rl.update.batch import Batch
from rl.update.learner import Learner
from rl.update.loss import (
    compute_old_logprobs,
    differentiate,
    differentiate_critic,
    reference_targets,
    with_preferences,
)
from rl.update.step_metrics import Metrics, TokenMeans, preference_means


def update(learner: Learner, *minibatches: Batch, trains_policy: bool = True) -> Metrics:
    """Makes an optimizer step on each mini-batch, num_epochs times, each after critic_updates - 1 of the critic alone. Returns metrics.

    With one mini-batch and without whitening or views, old log-probs and values are those of the first epoch's training forward;
    otherwise they are computed beforehand. trains_policy: False while the critic is warmed up.
    """
    tracker, runtime = TokenMeans(), learner.runtime
    minibatches = tuple(batch for batch in minibatches if batch.groups)
    redraws = learner.policy.family.view_at is not None
    views = [epoch if redraws else 0 for epoch in range(learner.num_epochs)]
    micros = {
        (view, n): own_micro_batches(learner, batch, view)
        for view in dict.fromkeys(views)
        for n, batch in enumerate(minibatches)
    }
    needs_old_logprobs = learner.needs_old_logprobs(len(minibatches))
    targets = frozen_targets(learner, micros, needs_old_logprobs)
    steps, loss_sum, preference_terms = OptimizerSteps(learner), 0.0, torch.zeros(4)
    for key in product(views, range(len(minibatches))):
        for _ in range(learner.critic_updates - 1):
            update_critic(steps, micros[key], targets[key])
        losses: list[Tensor] = []
        with runtime.keeping_casts():
            if learner.algorithm.prefers:
                targets[key], terms = with_preferences(learner, micros[key], targets[key])
                preference_terms += terms
            for i, micro in enumerate(micros[key]):
                part, scores, completed = differentiate(learner, micro, targets[key][i], trains_policy=trains_policy)
                targets[key][i] = completed
                losses.append(part)
                tracker.add(learner.algorithm, scores, completed, micro)
        loss_sum += steps.step(losses, trains_policy=trains_policy) / learner.num_epochs
    groups = [group for batch in minibatches for group in batch.groups]
    metrics: Metrics = {
        "loss": loss_sum if minibatches else None,
        "grad_norm": steps.norms[0] if minibatches else None,
        "updates/skipped": steps.num_skipped,
        "learning_rate": learner.learning_rate,
        "groups/trained": len(groups),
        "tokens/trained": sum(batch.num_tokens for batch in minibatches) * learner.num_epochs,
        "flops/update": learner.flops(
            Workload.of(groups), needs_old_logprobs=needs_old_logprobs, trains_policy=trains_policy
        ),
        "time/optimizer": steps.seconds,
        **TokenMeans.merged(runtime.gather([tracker.read()])).means(),
    }
    if learner.algorithm.prefers:
        metrics |= preference_means(runtime.gather([preference_terms]))
    if len(steps.norms) > 1:
        metrics["value/grad_norm"] = steps.norms[1]
    return metrics


@dataclass
class OptimizerSteps:
    """The optimizer steps of an update. norms: of the last one's gradients. seconds: in the optimizer."""

    learner: Learner
    norms: list[float] = field(default_factory=lambda: [0.0])
    num_skipped: int = 0
    seconds: float = 0.0

    def step(self, losses: Sequence[Tensor], *, trains_policy: bool) -> float:
        """Sums gradients and losses of a mini-batch over the processes, and steps if they are finite. Returns the loss.

        losses: of this process's micro-batches. trains_policy: False where only the critic has gradients.
        """
        learner, runtime = self.learner, self.learner.runtime
        runtime.sum_gradients(learner.parameters(of_policy=trains_policy))
        # The host waits for the device once, after all work of the mini-batch is queued.
        local_loss = torch.stack(list(losses)).cpu().double().sum().item() if losses else 0.0
        loss = sum(runtime.gather([local_loss]))
        started = time.perf_counter()
        was_stepped, self.norms = learner.step_if_finite(loss)
        self.num_skipped += not was_stepped
        self.seconds += time.perf_counter() - started
        return loss


def update_critic(steps: OptimizerSteps, micros: Sequence[MicroBatch], targets: list[FrozenTargets]) -> None:
    """One optimizer step of a separate critic alone on a mini-batch. Completes its value targets."""
    losses: list[Tensor] = []
    with steps.learner.runtime.keeping_casts():
        for i, micro in enumerate(micros):
            loss, targets[i] = differentiate_critic(steps.learner, micro, targets[i])
            losses.append(loss)
    steps.step(losses, trains_policy=False)


def own_micro_batches(learner: Learner, batch: Batch, epoch: int) -> list[MicroBatch]:
    """This process's micro-batches of a mini-batch, under the views that the policy's family gives completions in this epoch."""
    runtime, forward, view_at = learner.runtime, learner.policy.forward, learner.policy.family.view_at
    # Divided before views divide groups: the pairs of a group are compared in one process.
    viewed = batch.shard(runtime.rank, runtime.count).viewed(view_at, epoch)
    micros = list(viewed.micro_batches(learner.token_budget, forward.num_tokens))
    if runtime.shards:  # forwards and backwards are collective, so every process needs the same number of micro-batches
        most = max(runtime.gather([len(micros)]))
        micros += [batch.viewed(view_at, epoch).dummy()] * (most - len(micros))
    return [micro.to(learner.policy.device) for micro in micros]


Key = tuple[int, int]  # (the epoch whose views the micro-batches have, the index of the mini-batch)


def frozen_targets(
    learner: Learner, micros: Mapping[Key, Sequence[MicroBatch]], needs_old_logprobs: bool
) -> dict[Key, list[FrozenTargets]]:
    """The targets of every micro-batch of the step under the views of every epoch, before the first update.

    d1, arXiv 2504.12216, Algorithm 1: old log-probs are computed under each epoch's mask.
    """
    all_micros = [micro for group in micros.values() for micro in group]
    targets = reference_targets(learner, all_micros)
    if needs_old_logprobs:
        targets = compute_old_logprobs(learner, all_micros, targets)
    remaining = iter(targets)
    return {key: [next(remaining) for _ in group] for key, group in micros.items()}
