"""The algorithm box: one step from problems to a better policy."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rl.capacity.cost import Work
from rl.forward.micro_batch import MicroBatch
from rl.objective.algorithms import CreditedGroup
from rl.objective.tokens import TokenScores
from rl.objective.values import Estimates, Seen, whitened
from rl.update.batch import Batch, pack
from rl.update.delivery import Delivery
from rl.update.learner import Learner
from rl.update.prefetch import Ahead
from rl.update.step_metrics import Metrics, TokenMeans, describe, mean, timed
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
    ahead: Ahead | None = None,
) -> StepResult:
    """Sample and verify, compare within groups, pack, update, deliver."""
    algorithm, max_tokens = learner.algorithm, collector.params.max_tokens

    def sample(step: int) -> Collected:
        if algorithm.samples_from == "dataset":
            return demonstrate(stream.take(num_problems), collector.renderer)
        if algorithm.dynamic_sampling:
            return collector.collect_with_signal(stream, num_problems, step=step)
        return collector.collect(stream.take(num_problems), step=step)

    if learner.start is not None:
        delivery.deliver(version=0, policy=learner.start)
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
        collector.sampler.rest()
    with timed(metrics, "time/train"):
        metrics |= update(learner, *batches)
        learner.refresh_reference(step)
    with timed(metrics, "time/deliver"):
        if ahead is not None:
            ahead.wait()
        metrics["delivery/error"] = delivery.deliver(version=step)
    return StepResult(groups=credited, sampled=sampled, metrics=metrics)


def update(learner: Learner, *minibatches: Batch) -> Metrics:
    """num_epochs times a gradient step on each mini-batch.

    With one mini-batch nobody looks at it beforehand: the training forward of the first epoch gives the log-probs and the values
    as they were when it was sampled.
    """
    tracker, runtime = TokenMeans(), learner.runtime
    minibatches = tuple(batch for batch in minibatches if batch.groups)
    parts = own_parts(learner, minibatches)
    looks_ahead = len(parts) > 1 or learner.algorithm.whitens
    references = reference_logprobs(learner, parts)
    seen = look_ahead(learner, parts, references) if looks_ahead else {}
    loss_sum, norms, num_skipped, seconds_of_optimizer = 0.0, [0.0], 0, 0.0
    for _ in range(learner.num_epochs):
        for n, micros in enumerate(parts):
            losses: list[Tensor] = []
            with runtime.keeping_casts():
                for i, micro in enumerate(micros):
                    part, scores, seen[n, i] = differentiate(learner, micro, references[n][i], seen.get((n, i)))
                    losses.append(part)
                    tracker.add(learner.algorithm, scores, seen[n, i], micro)
            runtime.sum_gradients(learner.parameters())
            # The host reads once, when all is under way.
            mine = sum(map(sum, torch.stack(losses).cpu().tolist())) if losses else 0.0
            loss = sum(runtime.gather([mine]))
            started = time.perf_counter()
            is_made, norms = learner.step_if_finite(loss)
            num_skipped += not is_made
            loss_sum += loss / learner.num_epochs
            seconds_of_optimizer += time.perf_counter() - started
    groups = [group for batch in minibatches for group in batch.groups]
    metrics: Metrics = {
        "loss": loss_sum if parts else None,
        "grad_norm": norms[0] if parts else None,
        "updates/skipped": num_skipped,
        "learning_rate": learner.learning_rate,
        "groups/trained": len(groups),
        "tokens/trained": sum(batch.num_tokens for batch in minibatches) * learner.num_epochs,
        "flops/update": learner.flops(Work.of(groups), looks_ahead=looks_ahead),
        "time/optimizer": seconds_of_optimizer,
        **TokenMeans.merged(runtime.gather([tracker.read()])).means(),
    }
    if len(norms) > 1:
        metrics["value/grad_norm"] = norms[1]
    return metrics


def own_parts(learner: Learner, minibatches: Sequence[Batch]) -> list[list[MicroBatch]]:
    """Of each mini-batch the micro-batches that this process makes the gradient of."""
    runtime = learner.runtime
    parts = [list(b.share(runtime.rank, runtime.count).micro_batches(learner.token_budget)) for b in minibatches]
    if runtime.shards:  # forwards and backwards are made together, so all processes have as many
        most = [max(lengths) for lengths in zip(*runtime.gather([[len(micros) for micros in parts]]), strict=True)]
        parts = [m + [b.idle()] * (n - len(m)) for m, b, n in zip(parts, minibatches, most, strict=True)]
    return [[micro.to(learner.policy.device) for micro in micros] for micros in parts]


def differentiate(
    learner: Learner, micro: MicroBatch, reference: Tensor | None, seen: Seen | None
) -> tuple[Tensor, TokenScores, Seen]:
    """Adds the gradients of a micro-batch's part of the loss. Unless it was seen before, it is now.

    -> (losses [2] of policy and critic, scores, seen)
    """
    policy, algorithm = learner.policy, learner.algorithm
    old, estimates = (seen.old_logprobs, seen.estimates) if seen else (None, None)
    critic_loss = torch.zeros((), device=micro.device)
    if learner.critic is not None:  # before the policy's forward: what the critic's kept is gone by then
        with learner.critic.weights():
            values = learner.critic.values(micro)
        if estimates is None:
            estimates = estimate(learner, micro, values.detach(), old, reference)
        of_values = algorithm.value_loss(values, estimates, micro)
        with learner.critic.weights():
            learner.runtime.backward(of_values)
        critic_loss = of_values.detach()

        if not learner.trains_policy:
            with torch.no_grad():
                scores = policy.score(micro, learner.temperature)
            losses = torch.stack([torch.zeros_like(critic_loss), critic_loss])
            return losses, scores, seen or Seen(scores.logprobs, reference, estimates)

    def loss_of(scores: TokenScores, part: slice) -> Tensor:
        nonlocal estimates
        logprobs = scores.logprobs.detach()
        if scores.values is not None and estimates is None:  # part is all of them then, see token_level
            estimates = estimate(learner, micro, scores.values.detach(), logprobs, reference)
        return algorithm.loss(
            scores,
            logprobs if old is None else old[part],
            None if reference is None else reference[part],
            micro.tokens(part),
            None if estimates is None else Estimates(*(x[part] for x in estimates)),
            policy_weight=float(learner.trains_policy),
        )

    # Advantages of a shared trunk's own values need the values of whole sequences.
    token_level = algorithm.token_level and (policy.value_head is None or estimates is not None)
    loss, scores = policy.loss(micro, learner.temperature, loss_of, token_level=token_level)
    learner.runtime.backward(loss)
    seen = seen or Seen(scores.logprobs, reference, estimates)
    return torch.stack([loss.detach(), critic_loss]), scores, seen


@torch.no_grad()
def look_ahead(
    learner: Learner, parts: list[list[MicroBatch]], references: list[list[Tensor | None]]
) -> dict[tuple[int, int], Seen]:
    """Every micro-batch before the first update."""
    seen: dict[tuple[int, int], Seen] = {}
    with learner.runtime.keeping_casts():  # of the policy's weights alone
        looked = [[learner.policy.look(micro, learner.temperature) for micro in micros] for micros in parts]
    for n, micros in enumerate(parts):
        for i, micro in enumerate(micros):
            logprobs, values = looked[n][i]
            reference = references[n][i]
            if learner.critic is not None:
                with learner.critic.weights():
                    values = learner.critic.values(micro)
            known = None if values is None else estimate(learner, micro, values, logprobs, reference)
            seen[n, i] = Seen(logprobs, reference, known)
    if learner.algorithm.whitens:
        looked_at = [micro for micros in parts for micro in micros]
        estimates = [s.estimates for s in seen.values() if s.estimates is not None]
        estimates = whitened(estimates, looked_at, learner.runtime)
        seen = {key: replace(s, estimates=e) for (key, s), e in zip(seen.items(), estimates, strict=True)}
    return seen


@torch.no_grad()
def estimate(
    learner: Learner, micro: MicroBatch, values: Tensor, old: Tensor | None, reference: Tensor | None
) -> Estimates:
    """What the values make of the rewards. Where the KL is part of these, the log-probs are needed first."""
    if learner.algorithm.kl_in_reward and old is None:
        old = learner.policy.look(micro, learner.temperature).logprobs
    return learner.algorithm.estimate(micro, values, old, reference)


@torch.no_grad()
def reference_logprobs(learner: Learner, parts: list[list[MicroBatch]]) -> list[list[Tensor | None]]:
    """Log-probs of every micro-batch under the reference, all before the first update, which needs only these of it."""
    reference = learner.reference
    if reference is None:
        return [[None] * len(micros) for micros in parts]
    with reference.at_hand():
        return [[reference.look(micro, learner.temperature).logprobs for micro in micros] for micros in parts]
