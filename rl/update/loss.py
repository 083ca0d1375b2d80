"""The loss of one micro-batch and its gradient, and the targets that are computed before the first update."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from rl.forward.micro_batch import MicroBatch
from rl.objective.tokens import TokenScores
from rl.objective.values import FrozenTargets, whitened
from rl.update.learner import Learner


class Differentiated(NamedTuple):
    """losses: [2], of the policy and of a separate critic (0 without one). scores: detached. targets: completed."""

    losses: Tensor
    scores: TokenScores
    targets: FrozenTargets


def differentiate(
    learner: Learner, micro: MicroBatch, targets: FrozenTargets, *, trains_policy: bool = True
) -> Differentiated:
    """Adds the gradient of a micro-batch's part of the loss to the parameters' gradients.

    Targets that are None are computed from this forward; the result contains them. trains_policy: False trains the critic only.
    """
    critic_loss = torch.zeros((), device=micro.device)
    if learner.critic is not None:
        critic_loss, targets = differentiate_critic(learner, micro, targets)
        if not trains_policy:
            with torch.no_grad():
                scores = learner.policy.score(micro, learner.temperature)
            return Differentiated(
                torch.stack([torch.zeros_like(critic_loss), critic_loss]), scores, with_old_logprobs(targets, scores)
            )
    loss, scores, targets = learner.policy.run(lambda: policy_loss(learner, micro, targets, trains_policy))
    learner.runtime.backward(loss)
    return Differentiated(torch.stack([loss.detach(), critic_loss]), scores, targets)


def differentiate_critic(learner: Learner, micro: MicroBatch, targets: FrozenTargets) -> tuple[Tensor, FrozenTargets]:
    """Adds the gradient of a separate critic's loss, and computes its value targets if they are None.

    It runs before the policy's forward, so that its activations are freed by then.
    """
    critic, algorithm = learner.critic, learner.algorithm
    assert critic is not None
    with critic.activate():
        values = critic.values(micro)
    if targets.values is None:
        targets = complete_values(learner, micro, targets, values.detach(), targets.old_logprobs)
    assert targets.values is not None
    loss = algorithm.value_loss(values, targets.values, micro)
    with critic.activate():
        learner.runtime.backward(loss)
    return loss.detach(), targets


def policy_loss(
    learner: Learner, micro: MicroBatch, targets: FrozenTargets, trains_policy: bool
) -> tuple[Tensor, TokenScores, FrozenTargets]:
    """One forward: the hidden states, with a shared trunk the values and their GAE, and the loss of every token.

    If `targets` has no old log-probs, this forward's own are used: the policy has not been updated since it sampled.
    """
    policy, algorithm, temperature = learner.policy, learner.algorithm, learner.temperature
    states, head = policy.hidden_states(micro), policy.head

    values = None if policy.value_head is None else policy.value_head(states)
    if values is not None and targets.values is None:
        old = targets.old_logprobs
        if old is None and algorithm.kl_in_reward:
            old = head.logprobs(states, micro.targets, temperature)
        targets = complete_values(learner, micro, targets, values.detach(), old)
    old, reference = targets.old_logprobs, targets.reference_logprobs
    advantages = None if targets.values is None else targets.values.advantages

    def loss_of(scores: TokenScores, part: slice) -> Tensor:
        """The loss of one slice of the tokens, as the output layer is applied to a chunk of tokens at a time."""
        return algorithm.loss(
            scores,
            scores.logprobs.detach() if old is None else old[part],
            None if reference is None else reference[part],
            micro.tokens(part),
            None if advantages is None else advantages[part],
        )

    loss, scores = head.loss(states, micro.targets, temperature, loss_of, token_level=algorithm.token_level)
    if values is not None:
        assert targets.values is not None and algorithm.value_rule is not None
        value_loss = algorithm.value_loss(values, targets.values, micro)
        loss = float(trains_policy) * loss + algorithm.value_rule.value_weight * value_loss
    return loss, scores, with_old_logprobs(targets, scores)


def with_old_logprobs(targets: FrozenTargets, scores: TokenScores) -> FrozenTargets:
    """The targets with `scores`, from a forward before the first update, as old log-probs if they have none."""
    return targets if targets.old_logprobs is not None else replace(targets, old_logprobs=scores.logprobs)


@torch.no_grad()
def complete_values(
    learner: Learner, micro: MicroBatch, targets: FrozenTargets, values: Tensor, old_logprobs: Tensor | None
) -> FrozenTargets:
    """The targets with advantages and returns from the critic's values. Computes old log-probs if the KL in the rewards needs them."""
    if learner.algorithm.kl_in_reward and old_logprobs is None:
        old_logprobs, _ = learner.policy.logprobs_and_values(micro, learner.temperature)
    value_targets = learner.algorithm.value_targets(micro, values, old_logprobs, targets.reference_logprobs)
    return replace(targets, values=value_targets)


@torch.no_grad()
def compute_old_logprobs(
    learner: Learner, micros: Sequence[MicroBatch], targets: Sequence[FrozenTargets]
) -> list[FrozenTargets]:
    """The targets of all micro-batches of a step with old log-probs, values and whitened advantages, before the first update."""
    with learner.runtime.keeping_casts():  # without the critic's forwards, whose casts would be kept too
        found = [learner.policy.logprobs_and_values(micro, learner.temperature) for micro in micros]
    completed = []
    for micro, target, (logprobs, values) in zip(micros, targets, found, strict=True):
        if learner.critic is not None:
            with learner.critic.activate():
                values = learner.critic.values(micro)
        target = replace(target, old_logprobs=logprobs)
        completed.append(target if values is None else complete_values(learner, micro, target, values, logprobs))
    if not learner.algorithm.whitens:
        return completed
    standardised = whitened([t.values for t in completed if t.values is not None], micros, learner.runtime)
    return [replace(t, values=values) for t, values in zip(completed, standardised, strict=True)]


@torch.no_grad()
def reference_targets(learner: Learner, micros: Sequence[MicroBatch]) -> list[FrozenTargets]:
    """Targets with the reference's log-probs, for all micro-batches of a step at once, so that its weights are needed only here."""
    reference = learner.reference
    if reference is None:
        return [FrozenTargets() for _ in micros]
    with reference.on_device():
        logprobs = [reference.logprobs_and_values(micro, learner.temperature)[0] for micro in micros]
    return [FrozenTargets(reference_logprobs=x) for x in logprobs]
