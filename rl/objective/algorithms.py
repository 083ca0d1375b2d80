"""Algorithms as values: what each paper's method is made of. A new one is a new value here, and nothing else.

docs/algorithms.md has the equation, the paper and the options of each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
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
from rl.objective.reductions import Reduction, constant_length, mean_of_token_means, sequence_sum, token_mean
from rl.objective.tokens import ScoredSequences, ScoredTokens, TokenScores
from rl.objective.values import ValueRule, ValueTargets
from rollout.records import Rollout, RolloutGroup

Advantages = list[list[Tensor]]  # of each group, of each completion: Float[T], one a token
AdvantageRule = Callable[[Sequence[RolloutGroup], Tensor, Tensor], Advantages]  # groups, rewards [P, G], graded [P, G]
Surrogate = Callable[..., Tensor]  # policy_logprobs, old_logprobs, advantages, clip_low=, clip_high= -> per token


def outcome_supervision(normalise: Callable[..., Tensor]) -> AdvantageRule:
    """The completion's advantage within its group, the same for all its tokens."""

    def rule(groups: Sequence[RolloutGroup], rewards: Tensor, graded: Tensor) -> Advantages:
        rows = normalise(rewards, mask=graded)
        return [
            [a.expand(len(r.completion.token_ids)) for r, a in zip(group.rollouts, row, strict=True)]
            for group, row in zip(groups, rows, strict=True)
        ]

    return rule


def process_supervision(groups: Sequence[RolloutGroup], rewards: Tensor, graded: Tensor) -> Advantages:
    """Step rewards normalised over the group; the outcome is the reward of the last step, which ends with the completion."""
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
    """1 for what is to be imitated, 0 for the rest."""
    return [
        [torch.full((len(r.completion.token_ids),), float(x)) for r, x in zip(group.rollouts, row, strict=True)]
        for group, row in zip(groups, rewards, strict=True)
    ]


def token_ratio(policy_logprobs: Tensor, old_logprobs: Tensor, tokens: ScoredTokens) -> Tensor:
    """Every token has its own ratio."""
    return policy_logprobs


def sequence_ratio(policy_logprobs: Tensor, old_logprobs: Tensor, tokens: ScoredTokens) -> Tensor:
    """Every token has its sequence's ratio, exp(mean over tokens of (l - b)): GSPO, arXiv 2507.18071, equation 7."""
    log_ratio = policy_logprobs - old_logprobs
    return old_logprobs + mean_over_sequence(log_ratio, tokens.loss_mask, tokens.sequence_of, tokens.num_sequences)


@dataclass(frozen=True, kw_only=True)
class CreditedGroup:
    """A group with the reward of each of its G completions and the advantage of each of their tokens.

    rewards: None for a completion that could not be graded. advantages: of each completion Float[T]; None where a critic computes
    them during the update.
    """

    group: RolloutGroup
    rewards: tuple[float | None, ...]
    advantages: tuple[Float[Tensor, " T"], ...] | None

    def rows(self) -> Iterator[tuple[Rollout, float | None, Float[Tensor, " T"] | None]]:
        """Each rollout with its reward and its advantages."""
        advantages = self.advantages or (None,) * len(self.rewards)
        yield from zip(self.group.rollouts, self.rewards, advantages, strict=True)


@dataclass(frozen=True, kw_only=True)
class Algorithm:
    """What a step optimises.

    advantage_rule: groups and their rewards -> an advantage for every token. None: a critic computes them during the update.
    surrogate, clip_low, clip_high, ratio_level: the policy term of each token.
    reduction: how much each token weighs in the sum.
    kl_weight, kl_kind: the penalty towards the reference, inside the same sum; at 0 the reference is not run.
    entropy_weight: of the entropy bonus, inside the same sum.
    importance_cap: bound of the weight that corrects for the sampling engine; None is off.
    overlong_fraction: the last share of max_tokens in which a completion is punished for its length; 0 is off.
    dynamic_sampling: replace groups without signal by new ones before the update.
    refresh_reference_every: steps after which the reference becomes the policy; 0 is never.
    scores_steps: reasoning steps get rewards of their own.
    value_rule: where a critic's values come from, and what is made of them; None is no critic.
    samples_from: whose completions are trained on: the live policy's, those of the policy that the run began with, or the
        problems' own worked solutions.
    """

    name: str
    advantage_rule: AdvantageRule | None
    surrogate: Surrogate = clipped_surrogate
    clip_low: float = 0.2
    clip_high: float = 0.2
    ratio_level: Callable[[Tensor, Tensor, ScoredTokens], Tensor] = token_ratio
    reduction: Reduction = mean_of_token_means
    kl_weight: float = 0.0
    kl_kind: KLKind = "k3"
    entropy_weight: float = 0.0
    importance_cap: float | None = 2.0
    overlong_fraction: float = 0.0
    dynamic_sampling: bool = False
    refresh_reference_every: int = 0
    scores_steps: bool = False
    value_rule: ValueRule | None = None
    samples_from: Literal["live", "start", "dataset"] = "live"

    @property
    def critic(self) -> CriticSource:
        return "none" if self.value_rule is None else self.value_rule.source

    @property
    def compares_within_groups(self) -> bool:
        """Whether one completion alone would have no advantage."""
        return self.advantage_rule not in (imitation, None)

    def reward(self, rollout: Rollout, max_tokens: int) -> float:
        """The score's value, less what an overlong completion costs; 0 stands in for what could not be graded."""
        value = rollout.score.value or 0.0
        if self.overlong_fraction > 0:
            buffer = max(1, round(self.overlong_fraction * max_tokens))
            value += overlong_penalty(rollout.completion.num_chosen, max_tokens, buffer)
        return value

    @property
    def token_level(self) -> bool:
        """Whether the loss of a token depends on no other token's log-prob."""
        return self.ratio_level is token_ratio

    @property
    def drops_zero_advantages(self) -> bool:
        """Whether a completion whose advantages are all zero adds nothing to the loss."""
        return self.kl_weight == 0 and self.entropy_weight == 0 and self.value_rule is None

    @property
    def bootstraps_cut(self) -> bool:
        return self.value_rule is not None and self.value_rule.bootstrap_cut

    def assign_credit(self, groups: Sequence[RolloutGroup], max_tokens: int) -> list[CreditedGroup]:
        """The reward of each completion, and what these make of each token where no critic does."""
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
                advantages=None if of_group is None else tuple(of_group),
            )
            for group, row, is_graded, of_group in zip(
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
    ) -> Float[Tensor, ""]:
        """sum_t weight_t (w_t surrogate_t + kl_weight KL_t - entropy_weight H_t): these tokens' part of the step's policy loss.

        advantages: a critic's; otherwise those that the tokens carry.
        """
        advantages = tokens.advantages if advantages is None else advantages
        policy_logprobs = self.ratio_level(scores.logprobs, old_logprobs, tokens)
        terms = self.surrogate(
            policy_logprobs, old_logprobs, advantages, clip_low=self.clip_low, clip_high=self.clip_high
        )
        if self.importance_cap is not None:
            terms = terms * truncated_importance_weight(old_logprobs, tokens.sampler_logprobs, self.importance_cap)
        if reference_logprobs is not None and not self.kl_in_reward:
            terms = terms + self.kl_weight * kl_estimate(scores.logprobs, reference_logprobs, self.kl_kind)
        if self.entropy_weight != 0:
            terms = terms - self.entropy_weight * scores.entropies
        return (tokens.weights * terms).sum()

    def value_loss(self, values: Float[Tensor, " S"], targets: ValueTargets, tokens: ScoredTokens) -> Float[Tensor, ""]:
        """sum_t weight_t of the loss of each value: these tokens' part of the critic's loss."""
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
        """GAE of the rewards and the critic's values. The log-probs are needed where the KL is part of the reward."""
        assert self.value_rule is not None
        if not self.kl_in_reward or reference_logprobs is None:
            return self.value_rule.targets(sequences, values)
        assert old_logprobs is not None
        kl = kl_estimate(old_logprobs, reference_logprobs, "k1")
        return self.value_rule.targets(sequences, values, self.kl_weight * kl)

    @property
    def whitens(self) -> bool:
        return self.value_rule is not None and self.value_rule.whiten

    @property
    def kl_in_reward(self) -> bool:
        return self.value_rule is not None and self.value_rule.kl_in_reward


GROUP_EPS = 1e-4  # added to the group's std, as in TRL

_group_normalized = outcome_supervision(partial(group_normalized, scale="std", eps=GROUP_EPS))
_group_centred = outcome_supervision(partial(group_normalized, scale="none", eps=0.0))

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
    advantage_rule=outcome_supervision(leave_one_out),
    reduction=sequence_sum,
    kl_weight=0.03,
    kl_kind="k2",
)
CISPO = Algorithm(
    name="cispo",
    advantage_rule=_group_normalized,
    surrogate=clipped_weight_reinforce,
    clip_low=1.0,
    clip_high=0.28,
    reduction=token_mean,
)
# Supervised learning is the same step with every demonstration worth 1.
SFT = Algorithm(
    name="sft",
    advantage_rule=imitation,
    surrogate=likelihood,
    reduction=token_mean,
    importance_cap=None,
    samples_from="dataset",
)
# Of the start policy's completions those that are right, or of the live policy's; wrong ones count in the mean.
RFT = Algorithm(name="rft", advantage_rule=imitation, surrogate=likelihood, importance_cap=None, samples_from="start")
ONLINE_RFT = replace(RFT, name="online-rft", samples_from="live")
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
        SFT,
        RFT,
        ONLINE_RFT,
        PPO,
        PPO_SEPARATE,
    )
}
