"""The loss of one micro-batch and its gradient, and the targets that are computed before the first update."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from rl.forward.micro_batch import MicroBatch
from rl.objective.preferences import preferences
from rl.objective.tokens import TokenScores
from rl.objective.values import FrozenTargets, whitened
from rl.policy.policy import Policy
from rl.policy.served_teacher import ServedTeacher
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
    compute_loss = policy_loss if trains_policy else critic_only_loss
    loss, scores, targets = learner.policy.run(lambda: compute_loss(learner, micro, targets))
    if loss.requires_grad:
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
    learner: Learner, micro: MicroBatch, targets: FrozenTargets
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
    old, reference, teacher = targets.old_logprobs, targets.reference_logprobs, targets.teacher_logprobs
    advantages = targets.advantages

    def loss_of(scores: TokenScores, part: slice) -> Tensor:
        """The loss of one slice of the tokens, as the output layer is applied to a chunk of tokens at a time."""
        return algorithm.loss(
            scores,
            scores.logprobs.detach() if old is None else old[part],
            None if reference is None else reference[part],
            micro.tokens(part),
            None if advantages is None else advantages[part],
            None if teacher is None else teacher[part],
        )

    loss, scores = head.loss(states, micro.targets, temperature, loss_of, token_level=algorithm.token_level)
    if values is not None:
        loss = loss + shared_value_loss(learner, micro, targets, values)
    return loss, scores, with_old_logprobs(targets, scores)


def critic_only_loss(
    learner: Learner, micro: MicroBatch, targets: FrozenTargets
) -> tuple[Tensor, TokenScores, FrozenTargets]:
    """As policy_loss while only the critic is trained: the loss of a value head on the policy's trunk; 0 for a separate critic.

    The policy is scored without gradient, for old log-probs and metrics, so that none of its forward is kept for a backward.
    """
    policy = learner.policy
    with torch.no_grad():
        states = policy.hidden_states(micro)
        scores = policy.head.score(states, micro.targets, learner.temperature)
    targets = with_old_logprobs(targets, scores)
    if policy.value_head is None:
        return torch.zeros((), device=micro.device), scores, targets
    values = policy.value_head(states)
    if targets.values is None:
        targets = complete_values(learner, micro, targets, values.detach(), targets.old_logprobs)
    return shared_value_loss(learner, micro, targets, values), scores, targets


def shared_value_loss(learner: Learner, micro: MicroBatch, targets: FrozenTargets, values: Tensor) -> Tensor:
    """The weighted loss of values that a head on the policy's trunk has computed."""
    algorithm = learner.algorithm
    assert targets.values is not None and algorithm.value_rule is not None
    return algorithm.value_rule.value_weight * algorithm.value_loss(values, targets.values, micro)


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
def with_preferences(
    learner: Learner, micros: Sequence[MicroBatch], targets: Sequence[FrozenTargets]
) -> tuple[list[FrozenTargets], Tensor]:
    """The targets of a mini-batch with DPO's coefficients, and old log-probs if they have none; and the sums of its terms. Called before
    each of its updates, as the coefficients are those of the weights that are updated."""
    if not micros:
        return [], torch.zeros(4)
    logprobs = [learner.policy.logprobs_and_values(micro, learner.temperature)[0] for micro in micros]
    references = [t.reference_logprobs for t in targets if t.reference_logprobs is not None]
    found = preferences(micros, logprobs, references, learner.algorithm.dpo_beta)
    completed = [
        replace(t, preferences=c, old_logprobs=log_p if t.old_logprobs is None else t.old_logprobs)
        for t, c, log_p in zip(targets, found.advantages, logprobs, strict=True)
    ]
    return completed, found.terms.cpu()


@torch.no_grad()
def reference_targets(learner: Learner, micros: Sequence[MicroBatch]) -> list[FrozenTargets]:
    """Targets with the log-probs of the reference and the teacher, for all micro-batches of a step at once, so that their weights are
    needed only here."""

    def logprobs_of(frozen: Policy | ServedTeacher | None) -> list[Tensor] | list[None]:
        return [None] * len(micros) if frozen is None else frozen.frozen_logprobs(micros, learner.temperature)

    pairs = zip(logprobs_of(learner.reference), logprobs_of(learner.teacher), strict=True)
    return [FrozenTargets(reference_logprobs=of, teacher_logprobs=taught) for of, taught in pairs]
