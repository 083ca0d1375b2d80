"""The algorithms, each an `Algorithm` value composed of functions and constants. A new algorithm is a new value in this file.

docs/algorithms.md lists the equation, the paper and the options of each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from rl.objective.advantages import group_normalized, leave_one_out, process_supervised
from rl.objective.losses import (
    KLKind,
    clipped_surrogate,
    clipped_weight_reinforce,
    kl_estimate,
    likelihood,
    mean_over_sequence,
    overlong_penalty,
    truncated_importance_weight,
    value_loss,
)
from rl.objective.names import CriticSource
from rl.objective.preferences import preference_coefficients
from rl.objective.reductions import (
    Reduction,
    constant_length,
    mean_of_token_means,
    prompt_mean,
    sequence_sum,
    sum_of_token_means,
    token_mean,
)
from rl.objective.tokens import ScoredSequences, ScoredTokens, TokenScores
from rl.objective.values import ValueRule, ValueTargets
from rollout.records import Rollout, RolloutGroup

GROUP_EPS = 1e-4  # added to the group's std; TRL adds the same
REST_EPS = 1e-6  # relative to the sum of the rewards' sizes; ten times what float32 rounds
Advantages = list[list[Tensor]]  # per group and completion: Float[T], an advantage for each of its tokens
AdvantageRule = Callable[[Sequence[RolloutGroup], Tensor, Tensor], Advantages]  # groups, rewards [P, G], graded [P, G]
Surrogate = Callable[..., Tensor]  # policy_logprobs, old_logprobs, advantages, clip_low=, clip_high= -> per-token loss


@dataclass(frozen=True, kw_only=True)
class OutcomeSupervision:
    """The advantage rule that gives every token of a completion the completion's advantage within its group.

    normalise: rewards Float[P, G] and mask=graded Bool[P, G] -> advantages Float[P, G].
    weights: of rewards by their names in the scores' parts; without any only the completion's whole reward is normalised.
        Otherwise A = Z(sum_k w_k normalise(r_k) + normalise(r - sum_k w_k r_k)), where the rest holds what is not a named reward
        (the overlong penalty), and Z standardises over all graded completions of the step: GDPO, arXiv 2601.05242.
    """

    normalise: Callable[..., Tensor]
    weights: tuple[tuple[str, float], ...] = ()

    def __call__(self, groups: Sequence[RolloutGroup], rewards: Tensor, graded: Tensor) -> Advantages:
        rows = self._each(groups, rewards, graded) if self.weights else self.normalise(rewards, mask=graded)
        return [
            [a.expand(len(r.completion.token_ids)) for r, a in zip(group.rollouts, row, strict=True)]
            for group, row in zip(groups, rows, strict=True)
        ]

    def _each(self, groups: Sequence[RolloutGroup], rewards: Tensor, graded: Tensor) -> Tensor:
        total, rest, size = torch.zeros_like(rewards), rewards.double(), rewards.abs().double()
        for name, weight in self.weights:
            reward = torch.tensor([[r.score.parts.get(name, 0.0) for r in group.rollouts] for group in groups])
            has_it = torch.tensor([[name in r.score.parts for r in group.rollouts] for group in groups])
            total += weight * self.normalise(reward, mask=graded & has_it)  # a reward that was left out is no 0
            rest, size = rest - weight * reward.double(), size + (weight * reward).abs()
        rest = torch.where(
            rest.abs() <= REST_EPS * size, 0.0, rest
        ).float()  # rounding must not become a unit of variance
        total += self.normalise(rest, mask=graded)
        scores = group_normalized(total.flatten()[None], scale="std", eps=GROUP_EPS, mask=graded.flatten()[None])
        silent = (total == 0).all(-1, keepdim=True)  # the mean over the step is 0 but for rounding, which is no signal
        return scores.view_as(total).masked_fill(silent, 0.0)


def each_reward(rule: AdvantageRule | None, weights: Mapping[str, float]) -> AdvantageRule:
    """The rule with each of these rewards normalised on its own."""
    assert isinstance(rule, OutcomeSupervision)
    return replace(rule, weights=tuple(weights.items()))


def process_supervision(groups: Sequence[RolloutGroup], rewards: Tensor, graded: Tensor) -> Advantages:
    """GRPO with process supervision: step rewards, normalised over the group.

    The outcome counts as the reward of one more step, which ends at the completion's last token.
    """
    advantages = []
    for group, outcomes, ok in zip(groups, rewards.tolist(), graded.tolist(), strict=True):
        lengths = [len(r.completion.token_ids) for r in group.rollouts]
        step_rewards = [
            [*r.step_rewards, outcome] if g else [] for r, outcome, g in zip(group.rollouts, outcomes, ok, strict=True)
        ]
        step_ends = [[*r.step_ends, n - 1] if g else [] for r, n, g in zip(group.rollouts, lengths, ok, strict=True)]
        advantages.append(process_supervised(step_rewards, step_ends, lengths))
    return advantages


def imitation(groups: Sequence[RolloutGroup], rewards: Tensor, graded: Tensor) -> Advantages:
    """The reward itself as the advantage of every token: 1 for completions to imitate, 0 for the others."""
    return [
        [torch.full((len(r.completion.token_ids),), float(x)) for r, x in zip(group.rollouts, row, strict=True)]
        for group, row in zip(groups, rewards, strict=True)
    ]


def no_reward(groups: Sequence[RolloutGroup], rewards: Tensor, graded: Tensor) -> Advantages:
    """0 for every token: rewards are measured, and a teacher alone is learnt from."""
    return [[torch.zeros(len(r.completion.token_ids)) for r in group.rollouts] for group in groups]


def preferences(groups: Sequence[RolloutGroup], rewards: Tensor, graded: Tensor) -> Advantages:
    """DPO's coefficients while policy and reference are equal, relative to beta. The update computes them anew."""
    advantages = []
    for group, row, ok in zip(groups, rewards, graded, strict=True):
        coefficients = torch.zeros_like(row)
        coefficients[ok] = preference_coefficients(torch.zeros_like(row[ok]), row[ok], beta=1.0)
        advantages.append(
            [c.expand(len(r.completion.token_ids)) for r, c in zip(group.rollouts, coefficients, strict=True)]
        )
    return advantages


def token_ratio(policy_logprobs: Tensor, old_logprobs: Tensor, tokens: ScoredTokens) -> Tensor:
    """The policy log-probs unchanged, so that every token has its own ratio."""
    return policy_logprobs


def sequence_ratio(policy_logprobs: Tensor, old_logprobs: Tensor, tokens: ScoredTokens) -> Tensor:
    """Log-probs that give every token its sequence's ratio, exp(mean over tokens of (l - b)): GSPO, arXiv 2507.18071, equation 7."""
    log_ratio = policy_logprobs - old_logprobs
    return old_logprobs + mean_over_sequence(log_ratio, tokens.loss_mask, tokens.sequence_of, tokens.num_sequences)


@dataclass(frozen=True, kw_only=True)
class CreditedGroup:
    """A group, the reward of each of its G completions, and the advantage of each of their tokens.

    rewards: None for a completion that could not be graded. advantages: Float[T] for each completion; None if a critic computes
    them during the update.
    """

    group: RolloutGroup
    rewards: tuple[float | None, ...]
    advantages: tuple[Float[Tensor, " T"], ...] | None

    def rows(self) -> Iterator[tuple[Rollout, float | None, Float[Tensor, " T"] | None]]:
        """Yields each rollout with its reward and its advantages."""
        advantages = self.advantages or (None,) * len(self.rewards)
        yield from zip(self.group.rollouts, self.rewards, advantages, strict=True)

    @property
    def is_silent(self) -> bool:
        """Whether no completion is better than another: all advantages are 0; with a critic, several rewards are all equal."""
        if self.advantages is not None:
            return not any(bool(a.any()) for a in self.advantages)
        graded = [reward for reward in self.rewards if reward is not None]
        return len(graded) > 1 and min(graded) == max(graded)


@dataclass(frozen=True, kw_only=True)
class Algorithm:
    """The objective of a training step.

    advantage_rule: groups and their rewards -> an advantage for every token. None: a critic computes them during the update.
    surrogate, clip_low, clip_high, ratio_level: the policy term of each token.
    ratio_to: the denominator of its ratio: the policy before the update, as the trainer computes it ("old"), or as the sampling
        engine reported it ("sampler"), so that one weight corrects for both differences.
    reduction: the weight of each token in the sum.
    count_silent: whether groups in which no completion is better than another are in the counts of the reduction. Otherwise they are
        in no sum and no count: the step is the mean over the others ("effective batch", ScaleRL, arXiv 2510.13786, section 3).
    kl_weight, kl_kind: the KL penalty towards the reference, a term of the same sum; with weight 0 the reference is not run.
    entropy_weight: the weight of the entropy bonus, a term of the same sum.
    dpo_beta: the weight beta of the log-ratio to the reference in the preference between two completions (rl/objective/preferences.py);
        0 is an algorithm without preferences.
    teacher_weight: the weight w_T of a teacher's advantage of each token, log p_teacher - old log-prob, which is added to that of the
        rewards. Its mean over samples of the policy is -KL(policy || teacher): on-policy distillation (arXiv 2306.13649; 2306.08543).
        0 is no teacher.
    importance_cap: the upper bound of the importance weight that corrects for the sampling engine; None disables the weight.
    overlong_fraction: the last fraction of max_tokens in which the overlong penalty grows; 0 disables the penalty.
    dynamic_sampling: groups without signal are replaced by new ones before the update.
    drop_mastered: problems whose pass rate reached this are not drawn again.
    refresh_reference_every: the number of steps after which the policy is copied to the reference; 0 is never.
    scores_steps: each reasoning step gets a reward.
    value_rule: the critic's trunk and its targets; None is no critic.
    samples_from: the source of the completions: the current policy ("live"), the policy at the start of the run ("start"), or the
        solutions in the data set ("dataset").
    """

    name: str
    advantage_rule: AdvantageRule | None
    surrogate: Surrogate = clipped_surrogate
    clip_low: float = 0.2
    clip_high: float = 0.2
    ratio_level: Callable[[Tensor, Tensor, ScoredTokens], Tensor] = token_ratio
    ratio_to: Literal["old", "sampler"] = "old"
    reduction: Reduction = mean_of_token_means
    count_silent: bool = True
    kl_weight: float = 0.0
    kl_kind: KLKind = "k3"
    entropy_weight: float = 0.0
    dpo_beta: float = 0.0
    teacher_weight: float = 0.0
    importance_cap: float | None = 2.0
    overlong_fraction: float = 0.0
    dynamic_sampling: bool = False
    drop_mastered: float | None = None
    refresh_reference_every: int = 0
    scores_steps: bool = False
    value_rule: ValueRule | None = None
    samples_from: Literal["live", "start", "dataset"] = "live"

    @property
    def critic(self) -> CriticSource:
        return "none" if self.value_rule is None else self.value_rule.source

    @property
    def compares_within_groups(self) -> bool:
        """Whether a completion's advantage depends on the others of its group, so that a group of one has none."""
        return self.advantage_rule not in (imitation, no_reward, None)

    @property
    def prefers(self) -> bool:
        """Whether it learns from preferences between the completions of a group."""
        return self.dpo_beta > 0

    @property
    def needs_reference(self) -> bool:
        return self.kl_weight > 0 or self.prefers

    def reward(self, rollout: Rollout, max_tokens: int) -> float:
        """The score's value plus the overlong penalty. A completion that could not be graded has value 0."""
        value = rollout.score.value or 0.0
        if self.overlong_fraction > 0:
            buffer = max(1, round(self.overlong_fraction * max_tokens))
            value += overlong_penalty(rollout.completion.num_chosen, max_tokens, buffer)
        return value

    @property
    def token_level(self) -> bool:
        """Whether each token's loss depends on its own log-prob only."""
        return self.ratio_level is token_ratio

    @property
    def corrects_for_sampler(self) -> bool:
        """Whether the loss takes into account that the sampler's log-probs are not the policy's, as with older samples."""
        return self.importance_cap is not None or self.ratio_to == "sampler"

    def behaviour_logprobs(self, old_logprobs: Tensor, tokens: ScoredTokens) -> Tensor:
        """The log-probs b of the ratio exp(l - b)."""
        return tokens.sampler_logprobs if self.ratio_to == "sampler" else old_logprobs

    @property
    def drops_zero_advantages(self) -> bool:
        """Whether a completion whose advantages are all zero contributes nothing to the loss."""
        return (
            not self.prefers
            and self.kl_weight == self.entropy_weight == self.teacher_weight == 0
            and self.value_rule is None
        )

    @property
    def leaves_out_silent(self) -> bool:
        """Whether silent groups are in no count. A teacher has something to say about each of them."""
        return not self.count_silent and self.teacher_weight == 0

    @property
    def bootstraps_cut(self) -> bool:
        """Whether the critic's value replaces what follows a completion that max_tokens truncated."""
        return self.value_rule is not None and self.value_rule.bootstrap_cut

    def assign_credit(self, groups: Sequence[RolloutGroup], max_tokens: int) -> list[CreditedGroup]:
        """The rewards of the groups' completions, and the advantages of their tokens unless a critic computes these."""
        if not groups:  # dynamic sampling found none with signal
            return []
        rewards = torch.tensor([[self.reward(r, max_tokens) for r in group.rollouts] for group in groups])
        graded = torch.tensor([[r.is_graded for r in group.rollouts] for group in groups])
        rule = self.advantage_rule
        advantages = [None] * len(groups) if rule is None else rule(groups, rewards, graded)
        return [
            CreditedGroup(
                group=group,
                rewards=tuple(x if ok else None for x, ok in zip(row, is_graded, strict=True)),
                advantages=None if token_advantages is None else tuple(token_advantages),
            )
            for group, row, is_graded, token_advantages in zip(
                groups, rewards.tolist(), graded.tolist(), advantages, strict=True
            )
        ]

    def loss(
        self,
        scores: TokenScores,
        old_logprobs: Float[Tensor, " S"],
        reference_logprobs: Float[Tensor, " S"] | None,
        tokens: ScoredTokens,
        advantages: Float[Tensor, " S"] | None = None,
        teacher_logprobs: Float[Tensor, " S"] | None = None,
    ) -> Float[Tensor, ""]:
        """sum_t weight_t (w_t surrogate_t + kl_weight KL_t - entropy_weight H_t): these tokens' part of the step's policy loss.

        advantages: those that are computed during the update (FrozenTargets.advantages); None: those of `tokens` are used.
        """
        advantages = tokens.advantages if advantages is None else advantages
        assert advantages is not None
        if teacher_logprobs is not None:
            advantages = advantages + self.teacher_weight * (teacher_logprobs - old_logprobs)
        behaviour = self.behaviour_logprobs(old_logprobs, tokens)
        policy_logprobs = self.ratio_level(scores.logprobs, behaviour, tokens)
        terms = self.surrogate(policy_logprobs, behaviour, advantages, clip_low=self.clip_low, clip_high=self.clip_high)
        if self.importance_cap is not None:
            terms = terms * truncated_importance_weight(old_logprobs, tokens.sampler_logprobs, self.importance_cap)
        if reference_logprobs is not None and self.kl_weight > 0 and not self.kl_in_reward:
            terms = terms + self.kl_weight * kl_estimate(scores.logprobs, reference_logprobs, self.kl_kind)
        if self.entropy_weight != 0:
            terms = terms - self.entropy_weight * scores.entropies
        return (tokens.weights * terms).sum()

    def value_loss(self, values: Float[Tensor, " S"], targets: ValueTargets, tokens: ScoredTokens) -> Float[Tensor, ""]:
        """sum_t weight_t value_loss_t: these tokens' part of the critic's loss."""
        assert self.value_rule is not None
        terms = value_loss(values, targets.values, targets.returns, clip=self.value_rule.value_clip)
        return (tokens.weights * terms).sum()

    def value_targets(
        self,
        sequences: ScoredSequences,
        values: Float[Tensor, " S"],
        old_logprobs: Float[Tensor, " S"] | None,
        reference_logprobs: Float[Tensor, " S"] | None,
    ) -> ValueTargets:
        """GAE of the rewards and the critic's values. If the KL is part of the reward, the log-probs are needed for it."""
        assert self.value_rule is not None
        if not self.kl_in_reward or reference_logprobs is None:
            return self.value_rule.targets(sequences, values)
        assert old_logprobs is not None
        kl = kl_estimate(old_logprobs, reference_logprobs, "k1")
        return self.value_rule.targets(sequences, values, self.kl_weight * kl)

    @property
    def whitens(self) -> bool:
        """Whether advantages are standardised over the whole step."""
        return self.value_rule is not None and self.value_rule.whiten

    @property
    def kl_in_reward(self) -> bool:
        """Whether the KL penalty is subtracted from each token's reward instead of being a term of the loss."""
        return self.value_rule is not None and self.value_rule.kl_in_reward


_group_normalized = OutcomeSupervision(normalise=partial(group_normalized, scale="std", eps=GROUP_EPS))
_batch_normalized = OutcomeSupervision(normalise=partial(group_normalized, scale="batch", eps=GROUP_EPS))
_group_centred = OutcomeSupervision(normalise=partial(group_normalized, scale="none", eps=0.0))

GRPO = Algorithm(name="grpo", advantage_rule=_group_normalized, kl_weight=0.04)
GRPO_PROCESS = Algorithm(name="grpo-process", advantage_rule=process_supervision, kl_weight=0.04, scores_steps=True)
GRPO_ITERATIVE = Algorithm(
    name="grpo-iterative", advantage_rule=_group_normalized, kl_weight=0.04, refresh_reference_every=20
)
DR_GRPO = Algorithm(name="dr-grpo", advantage_rule=_group_centred, reduction=constant_length)
DAPO = Algorithm(
    name="dapo",
    advantage_rule=_group_normalized,
    clip_high=0.28,
    reduction=token_mean,
    overlong_fraction=0.2,
    dynamic_sampling=True,
)
GSPO = Algorithm(
    name="gspo", advantage_rule=_group_normalized, ratio_level=sequence_ratio, clip_low=3e-4, clip_high=4e-4
)
RLOO = Algorithm(
    name="rloo",
    advantage_rule=OutcomeSupervision(normalise=leave_one_out),
    reduction=sequence_sum,
    kl_weight=0.03,
    kl_kind="k2",
)
CISPO = Algorithm(
    name="cispo",
    advantage_rule=_group_normalized,
    surrogate=clipped_weight_reinforce,
    clip_low=1.0,
    clip_high=4.0,  # the cap 5 of TRL, SkyRL and ART
    reduction=token_mean,
)
# What most current runs on pretrained models agree on; docs/algorithms.md names the source of each value.
PLAIN = Algorithm(
    name="plain", advantage_rule=_group_normalized, clip_high=0.28, reduction=token_mean, count_silent=False
)
SCALERL = replace(
    CISPO,
    name="scalerl",
    advantage_rule=_batch_normalized,
    ratio_to="sampler",
    importance_cap=None,
    reduction=prompt_mean,
    count_silent=False,
    drop_mastered=0.9,
)
DISTILL = Algorithm(name="distill", advantage_rule=no_reward, clip_high=0.28, reduction=token_mean, teacher_weight=1.0)
# Supervised fine-tuning is the same step with advantage 1 for every demonstration.
SFT = Algorithm(
    name="sft",
    advantage_rule=imitation,
    surrogate=likelihood,
    reduction=token_mean,
    importance_cap=None,
    samples_from="dataset",
)
# Rejection fine-tuning imitates the correct completions of the policy at the start of the run, or of the current one (online). Wrong
# completions have advantage 0 but count in the mean.
RFT = Algorithm(name="rft", advantage_rule=imitation, surrogate=likelihood, importance_cap=None, samples_from="start")
ONLINE_RFT = replace(RFT, name="online-rft", samples_from="live")
# Pairs of a right and a wrong completion, of the policy at the start of the run, or of the current one (online).
DPO = Algorithm(
    name="dpo",
    advantage_rule=preferences,
    surrogate=likelihood,
    reduction=sum_of_token_means,
    count_silent=False,
    dpo_beta=2.0,  # SimPO, arXiv 2405.14734, whose margins are means over tokens too
    importance_cap=None,
    samples_from="start",
)
ONLINE_DPO = replace(DPO, name="online-dpo", samples_from="live")
PPO = Algorithm(name="ppo", advantage_rule=None, reduction=token_mean, kl_weight=0.04, value_rule=ValueRule())
PPO_SEPARATE = replace(PPO, name="ppo-separate", value_rule=ValueRule(source="separate"))

ALGORITHMS = {
    a.name: a
    for a in (
        GRPO,
        GRPO_PROCESS,
        GRPO_ITERATIVE,
        DR_GRPO,
        DAPO,
        GSPO,
        RLOO,
        CISPO,
        PLAIN,
        SCALERL,
        DISTILL,
        SFT,
        RFT,
        ONLINE_RFT,
        DPO,
        ONLINE_DPO,
        PPO,
        PPO_SEPARATE,
    )
}
