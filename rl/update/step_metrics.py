"""Metrics of a step's rollouts and of its update. rl/view/metrics.py describes each metric."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from rewards.score import Outcome
from rl.forward.micro_batch import MicroBatch
from rl.objective.algorithms import Algorithm, CreditedGroup
from rl.objective.losses import kl_estimate, no_signal_probability, probability_ratio, truncated_importance_weight
from rl.objective.tokens import TokenScores
from rl.objective.values import FrozenTargets
from rl.policy.reward_model import PART, rule_label
from rollout.collect import Collected, has_signal
from rollout.records import EndReason, FinishReason, Rollout, ToolUse

Metrics = dict[str, float | None]
TRUNCATED = "truncated"


@contextmanager
def timed(metrics: Metrics, key: str) -> Iterator[None]:
    """Stores the seconds that the block takes in metrics[key]."""
    started = time.perf_counter()
    yield
    metrics[key] = time.perf_counter() - started


class TokenMeans:
    """Accumulates means over the tokens in the loss of an update, without waiting for the device."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = {}
        self.num_tokens = 0
        self.ratio_max = self.mismatch_max = 0.0
        self.values_and_returns: list[tuple[Tensor, Tensor]] = []  # of the tokens in the loss, by micro-batch
        self.unread: list[Tensor] = []  # on the device, by micro-batch: sums in the order of `keys`, then both maxima
        self.keys: tuple[str, ...] = ()

    @torch.no_grad()
    def add(self, algorithm: Algorithm, scores: TokenScores, targets: FrozenTargets, micro: MicroBatch) -> None:
        if len(micro.loss_indices) == 0:  # Batch.dummy()
            return

        def in_loss(values: Tensor) -> Tensor:
            return values.index_select(0, micro.loss_indices)

        assert targets.old_logprobs is not None
        behaviour = algorithm.behaviour_logprobs(targets.old_logprobs, micro)
        ratios = algorithm.ratio_level(scores.logprobs, behaviour, micro)
        policy, old, sampler = map(in_loss, (scores.logprobs, targets.old_logprobs, micro.sampler_logprobs))
        ratio = probability_ratio(in_loss(ratios), in_loss(behaviour))
        mismatch = (old - sampler).abs()
        terms = {
            "entropy": in_loss(scores.entropies),
            "ratio/clipped": (ratio < 1 - algorithm.clip_low) | (ratio > 1 + algorithm.clip_high),
        }
        reference = None if targets.reference_logprobs is None else in_loss(targets.reference_logprobs)
        # Samples of another policy, or of nobody, do not compare the engine with the trainer, and are of no use to estimate a KL of the
        # policy; those of the start policy, which is the reference, estimate the KL of that.
        if algorithm.samples_from == "live":
            terms |= {"kl/sampler": kl_estimate(sampler, old, "k3"), "mismatch/mean": mismatch}
            if reference is not None:
                terms["kl/reference"] = kl_estimate(policy, reference, "k3")
        elif algorithm.samples_from == "start" and reference is not None:
            terms["kl/from_start"] = kl_estimate(reference, policy, "k3")
        if targets.teacher_logprobs is not None:
            terms["kl/teacher"] = old - in_loss(targets.teacher_logprobs)
        if algorithm.importance_cap is not None:
            weight = truncated_importance_weight(old, sampler, algorithm.importance_cap)
            terms |= {"tis/weight": weight, "tis/truncated": weight >= algorithm.importance_cap}
        sums = [values.sum().float() for values in terms.values()]
        self.keys = tuple(terms)
        self.unread.append(torch.stack([*sums, ratio.max(), mismatch.max()]))
        self.num_tokens += len(old)
        if targets.values is not None:
            values, _, returns = map(in_loss, targets.values)
            self.values_and_returns.append((values, returns))

    def read(self) -> TokenMeans:
        """Transfers all pending sums from the device at once. Returns self."""
        for *sums, ratio_max, mismatch_max in torch.stack(self.unread).cpu().tolist() if self.unread else []:
            for key, total in zip(self.keys, sums, strict=True):
                self.sums[key] = self.sums.get(key, 0.0) + total
            self.ratio_max = max(self.ratio_max, ratio_max)
            self.mismatch_max = max(self.mismatch_max, mismatch_max)
        self.unread = []
        return self

    @staticmethod
    def merged(parts: Iterable[TokenMeans]) -> TokenMeans:
        """The means over the tokens of all parts."""
        total_means = TokenMeans()
        for part in map(TokenMeans.read, parts):
            for key, total in part.sums.items():
                total_means.sums[key] = total_means.sums.get(key, 0.0) + total
            total_means.num_tokens += part.num_tokens
            total_means.ratio_max = max(total_means.ratio_max, part.ratio_max)
            total_means.mismatch_max = max(total_means.mismatch_max, part.mismatch_max)
            total_means.values_and_returns += part.values_and_returns
        return total_means

    def means(self) -> Metrics:
        """The metrics; empty without tokens."""
        if self.num_tokens == 0:
            return {}
        self.read()
        means: Metrics = {key: total / self.num_tokens for key, total in self.sums.items()}
        if self.values_and_returns:
            values, returns = map(torch.cat, zip(*self.values_and_returns, strict=True))
            error, spread = (returns - values).var(correction=0), returns.var(correction=0)
            means |= {
                "value/mean": values.mean().item(),
                "value/return": returns.mean().item(),
                "value/explained": (1 - error / spread).item() if spread > 0 else None,
            }
        if "mismatch/mean" in means:
            means["mismatch/max"] = self.mismatch_max
        return {**means, "ratio/max": self.ratio_max}


def preference_means(terms: Sequence[Tensor]) -> Metrics:
    """The means over groups with a pair, from the sums of all processes (rl/objective/preferences.py)."""
    *sums, count = torch.stack(list(terms)).sum(0).tolist()
    names = ("preference/loss", "preference/accuracy", "preference/margin")
    return {name: total / count if count else None for name, total in zip(names, sums, strict=True)}


def describe(collected: Collected, credited: Sequence[CreditedGroup]) -> Metrics:
    """Metrics of a step's sampled groups. credited: the same groups with their rewards."""
    rollouts = [r for group in collected.sampled for r in group.rollouts]
    rewards = torch.tensor([reward for c in credited for reward in c.rewards if reward is not None])
    lengths = [r.completion.num_chosen for r in rollouts]
    pass_rate = mean(r.score.outcome is Outcome.CORRECT for r in rollouts if r.is_graded)
    signal: Metrics = {}
    size = len(collected.sampled[0].rollouts)
    if size > 1:
        signal["groups/no_signal"] = mean(not has_signal(group) for group in collected.sampled)
        signal["groups/no_signal_expected"] = None if pass_rate is None else no_signal_probability(pass_rate, size)
    return (
        {
            "reward/mean": mean(rewards.tolist()),
            "reward/std": rewards.std(correction=0).item() if len(rewards) else None,
            "accuracy/sampled": pass_rate,
            "length/mean": mean(lengths),
            "length/max": max(lengths),
            "length/truncated": mean(r.completion.finish_reason is FinishReason.LENGTH for r in rollouts),
            **signal,
            "groups/refilled": collected.num_refills,
            "tokens/sampled": collected.num_sampled_tokens,
            "tokens/per_second": collected.num_sampled_tokens / collected.sample_seconds,
            "time/sample": collected.sample_seconds,
            "time/verify": collected.verify_seconds,
        }
        | thinking_means(rollouts)
        | outcome_shares(rollouts)
        | part_means(rollouts)
        | reward_model_agreement(rollouts)
        | tool_metrics([r.completion.tool_use for r in rollouts if r.completion.tool_use is not None])
    )


def thinking_means(rollouts: Sequence[Rollout]) -> Metrics:
    """How long the completions with a thinking budget have thought; empty without a budget."""
    found = [r.completion.thinking for r in rollouts if r.completion.thinking is not None]
    if not found:
        return {}
    return {
        "thinking/tokens": mean(t.num_tokens for t in found),
        "thinking/cut": mean(t.is_cut for t in found),
        "thinking/waits": mean(t.num_waits for t in found),
    }


def outcome_shares(rollouts: Sequence[Rollout]) -> Metrics:
    """The fraction of each outcome. Truncated completions count as TRUNCATED instead of their outcome."""
    kinds = [TRUNCATED if r.cut_short else r.score.outcome.value for r in rollouts]
    return {f"outcome/{kind}": kinds.count(kind) / len(kinds) for kind in (*(o.value for o in Outcome), TRUNCATED)}


def part_means(rollouts: Sequence[Rollout]) -> Metrics:
    """The mean of each named part of the scores."""
    names = dict.fromkeys(name for r in rollouts for name in r.score.parts)
    return {f"part/{name}": mean(r.score.parts[name] for r in rollouts if name in r.score.parts) for name in names}


def reward_model_agreement(rollouts: Sequence[Rollout]) -> Metrics:
    """The probability that a reward model gives a correct answer a higher score than a wrong one, which ties count half to: the area
    under the ROC curve. None without answers of both kinds; {} without a reward model."""
    scored = [(r.score.parts[PART], rule_label(r)) for r in rollouts if PART in r.score.parts]
    right, wrong = (torch.tensor([s for s, label in scored if label is kind]).sort().values for kind in (True, False))
    if not scored:
        return {}
    lower, not_higher = (torch.searchsorted(wrong, right, right=ties).float() for ties in (False, True))
    return {
        "reward_model/auc": mean(((lower + not_higher) / (2 * max(1, len(wrong)))).tolist()) if len(wrong) else None
    }


def tool_metrics(uses: Sequence[ToolUse]) -> Metrics:
    """What the step's rollouts did with their tools; {} without tools."""
    if not uses:
        return {}
    calls = sum(use.calls for use in uses)
    return {
        "tools/turns": mean(use.turns for use in uses),
        "tools/calls": calls / len(uses),
        "tools/used": mean(use.calls > 0 for use in uses),
        "tools/failed": sum(use.failed for use in uses) / calls if calls else None,
        "tools/malformed": sum(use.malformed for use in uses) / calls if calls else None,
        **{f"tools/end_{end.value}": mean(use.end is end for use in uses) for end in EndReason},
        "time/tools": sum(use.seconds for use in uses),
    }


def mean(values: Iterable[Any]) -> float | None:
    """The arithmetic mean; None without values."""
    listed = [float(v) for v in values]
    return sum(listed) / len(listed) if listed else None
