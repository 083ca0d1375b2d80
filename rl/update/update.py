"""The update: epochs over mini-batches, each a sum of micro-batches' gradients and one optimiser step."""

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
    """num_epochs times a gradient step on each mini-batch.

    With one mini-batch nothing is computed beforehand: the training forward of the first epoch gives the log-probs and the values as
    they were when it was sampled. trains_policy: False while the critic is warmed up.
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
    loss_sum, norms, num_skipped, seconds_of_optimizer = 0.0, [0.0], 0, 0.0
    for view in views:
        for n in range(len(minibatches)):
            losses: list[Tensor] = []
            with runtime.keeping_casts():
                for i, micro in enumerate(micros[view, n]):
                    part, scores, known = differentiate(
                        learner, micro, targets[view, n][i], trains_policy=trains_policy
                    )
                    targets[view, n][i] = known
                    losses.append(part)
                    tracker.add(learner.algorithm, scores, known, micro)
            runtime.sum_gradients(learner.parameters())
            # The host reads once, when all is under way.
            mine = sum(map(sum, torch.stack(losses).cpu().tolist())) if losses else 0.0
            loss = sum(runtime.gather([mine]))
            started = time.perf_counter()
            is_made, norms = learner.step_if_finite(loss, trains_policy=trains_policy)
            num_skipped += not is_made
            loss_sum += loss / learner.num_epochs
            seconds_of_optimizer += time.perf_counter() - started
    groups = [group for batch in minibatches for group in batch.groups]
    metrics: Metrics = {
        "loss": loss_sum if minibatches else None,
        "grad_norm": norms[0] if minibatches else None,
        "updates/skipped": num_skipped,
        "learning_rate": learner.learning_rate,
        "groups/trained": len(groups),
        "tokens/trained": sum(batch.num_tokens for batch in minibatches) * learner.num_epochs,
        "flops/update": learner.flops(Workload.of(groups), looks_ahead=needs_old_logprobs),
        "time/optimizer": seconds_of_optimizer,
        **TokenMeans.merged(runtime.gather([tracker.read()])).means(),
    }
    if len(norms) > 1:
        metrics["value/grad_norm"] = norms[1]
    return metrics


def own_micro_batches(learner: Learner, batch: Batch, epoch: int) -> list[MicroBatch]:
    """Of a mini-batch, as the policy's family views it in this epoch, what this process makes the gradient of."""
    runtime, forward = learner.runtime, learner.policy.forward
    viewed = batch.viewed(learner.policy.family.view_at, epoch)
    micros = list(viewed.share(runtime.rank, runtime.count).micro_batches(learner.token_budget, forward.num_tokens))
    if runtime.shards:  # forwards and backwards are made together, so all processes have as many
        most = max(runtime.gather([len(micros)]))
        micros += [viewed.idle()] * (most - len(micros))
    return [micro.to(learner.policy.device) for micro in micros]


Key = tuple[int, int]  # the epoch whose views the micro-batches have, and the mini-batch


def frozen_targets(
    learner: Learner, micros: Mapping[Key, Sequence[MicroBatch]], needs_old_logprobs: bool
) -> dict[Key, list[FrozenTargets]]:
    """What is fixed before the first update, for every micro-batch of the step under the views of every epoch (d1, arXiv 2504.12216,
    Algorithm 1: old log-probs are taken anew under each epoch's mask)."""
    every = [micro for of_key in micros.values() for micro in of_key]
    targets = reference_targets(learner, every)
    if needs_old_logprobs:
        targets = compute_old_logprobs(learner, every, targets)
    found = iter(targets)
    return {key: [next(found) for _ in of_key] for key, of_key in micros.items()}
