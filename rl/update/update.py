"""The update of a step: epochs over mini-batches, each with the summed gradient of its micro-batches and one optimizer step."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from rl.capacity.cost import Workload
from rl.forward.micro_batch import MicroBatch
from rl.objective.values import FrozenTargets
from rl.update.batch import Batch
from rl.update.learner import Learner
from rl.update.loss import compute_old_logprobs, differentiate, reference_targets
from rl.update.step_metrics import Metrics, TokenMeans


def update(learner: Learner, *minibatches: Batch, trains_policy: bool = True) -> Metrics:
    """Makes an optimizer step on each mini-batch, num_epochs times. Returns the update's metrics.

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
    loss_sum, norms, num_skipped, optimizer_seconds = 0.0, [0.0], 0, 0.0
    for view in views:
        for n in range(len(minibatches)):
            losses: list[Tensor] = []
            with runtime.keeping_casts():
                for i, micro in enumerate(micros[view, n]):
                    part, scores, completed = differentiate(
                        learner, micro, targets[view, n][i], trains_policy=trains_policy
                    )
                    targets[view, n][i] = completed
                    losses.append(part)
                    tracker.add(learner.algorithm, scores, completed, micro)
            runtime.sum_gradients(learner.parameters())
            # The host waits for the device once, after all work of the mini-batch is queued.
            local_loss = sum(map(sum, torch.stack(losses).cpu().tolist())) if losses else 0.0
            loss = sum(runtime.gather([local_loss]))
            started = time.perf_counter()
            was_stepped, norms = learner.step_if_finite(loss, trains_policy=trains_policy)
            num_skipped += not was_stepped
            loss_sum += loss / learner.num_epochs
            optimizer_seconds += time.perf_counter() - started
    groups = [group for batch in minibatches for group in batch.groups]
    metrics: Metrics = {
        "loss": loss_sum if minibatches else None,
        "grad_norm": norms[0] if minibatches else None,
        "updates/skipped": num_skipped,
        "learning_rate": learner.learning_rate,
        "groups/trained": len(groups),
        "tokens/trained": sum(batch.num_tokens for batch in minibatches) * learner.num_epochs,
        "flops/update": learner.flops(Workload.of(groups), needs_old_logprobs=needs_old_logprobs),
        "time/optimizer": optimizer_seconds,
        **TokenMeans.merged(runtime.gather([tracker.read()])).means(),
    }
    if len(norms) > 1:
        metrics["value/grad_norm"] = norms[1]
    return metrics


def own_micro_batches(learner: Learner, batch: Batch, epoch: int) -> list[MicroBatch]:
    """This process's micro-batches of a mini-batch, under the views that the policy's family gives completions in this epoch."""
    runtime, forward = learner.runtime, learner.policy.forward
    viewed = batch.viewed(learner.policy.family.view_at, epoch)
    micros = list(viewed.shard(runtime.rank, runtime.count).micro_batches(learner.token_budget, forward.num_tokens))
    if runtime.shards:  # forwards and backwards are collective, so every process needs the same number of micro-batches
        most = max(runtime.gather([len(micros)]))
        micros += [viewed.dummy()] * (most - len(micros))
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
