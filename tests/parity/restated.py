"""The whole step once more, a scalar at a time and straight from the papers: rewards -> advantages -> loss.

It shares nothing with rl/ but the records it reads. Numbers that a paper or docs/algorithms.md fixes stand here again.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rollout.records import RolloutGroup

Scores = list[list[Tensor]]  # of each group, of each completion: a number for every token

RESTATED = {
    "grpo",
    "grpo-process",
    "grpo-iterative",
    "dr-grpo",
    "dapo",
    "gspo",
    "rloo",
    "cispo",
    "plain",
    "scalerl",
    "sft",
    "rft",
    "online-rft",
}
CLIP = {"dapo": (0.2, 0.28), "plain": (0.2, 0.28), "gspo": (3e-4, 4e-4)}  # the others: (0.2, 0.2)
GROUP_EPS = 1e-4
WEIGHT_CAP = 2.0


def normalised(values: Sequence[float], eps: float = GROUP_EPS) -> list[float]:
    """(r - mean) / (std + eps), std over n - 1; no signal where all are equal or there is but one."""
    if len(values) < 2 or max(values) == min(values):
        return [0.0] * len(values)
    mean, std = statistics.fmean(values), statistics.stdev(values)
    return [(v - mean) / (std + eps) for v in values]


IMITATION = ("sft", "rft", "online-rft")


def above_the_others(values: Sequence[float]) -> list[float]:
    if len(values) < 2:
        return [0.0] * len(values)
    return [v - statistics.fmean([w for j, w in enumerate(values) if j != i]) for i, v in enumerate(values)]


def overlong(length: int, max_tokens: int, cache: float) -> float:
    """DAPO, equation 13: three cases."""
    if length <= max_tokens - cache:
        return 0.0
    return ((max_tokens - cache) - length) / cache if length <= max_tokens else -1.0


def steps_after(ends: Sequence[int], rewards: Sequence[float], length: int) -> list[float]:
    """DeepSeekMath, section 4.1.3: the sum of the normalised rewards of the steps that end at or after each token."""
    return [sum(r for end, r in zip(ends, rewards, strict=True) if end >= t) for t in range(length)]


def graded_values(group: RolloutGroup) -> list[float]:
    return [float(r.score.value) for r in group.rollouts if r.score.value is not None]


def spread(groups: Sequence[RolloutGroup]) -> float:
    """ScaleRL: the std of all centred rewards of the groups that are not all right or all wrong."""
    rows = [values for group in groups if len(set(values := graded_values(group))) > 1]
    return statistics.pstdev([v - statistics.fmean(values) for values in rows for v in values]) if rows else 0.0


def counted_lengths(name: str, groups: Sequence[RolloutGroup]) -> list[list[int]]:
    """The lengths of the graded completions of each group; none of groups without signal where these are in no count."""

    def is_counted(group: RolloutGroup) -> bool:
        return name not in ("plain", "scalerl") or len(set(graded_values(group))) > 1

    graded = [[len(r.completion.token_ids) for r in g.rollouts if r.score.value is not None] for g in groups]
    return [lengths if is_counted(group) else [] for lengths, group in zip(graded, groups, strict=True)]


def token_advantages(
    name: str, group: RolloutGroup, max_tokens: int, step: Sequence[RolloutGroup] = ()
) -> list[list[float]]:
    """Of each graded completion of the group. step: all groups, for what depends on the others."""
    graded = [r for r in group.rollouts if r.score.value is not None]
    lengths = [len(r.completion.token_ids) for r in graded]
    values = [float(r.score.value or 0) for r in graded]
    if name == "grpo-process":
        rewards = [[*r.step_rewards, v] for r, v in zip(graded, values, strict=True)]
        flat = iter(normalised([x for row in rewards for x in row]))
        scaled = [[next(flat) for _ in row] for row in rewards]
        ends = [[*r.step_ends, n - 1] for r, n in zip(graded, lengths, strict=True)]
        return [steps_after(e, s, n) for e, s, n in zip(ends, scaled, lengths, strict=True)]
    if name == "dapo":
        values = [v + overlong(n, max_tokens, 0.2 * max_tokens) for v, n in zip(values, lengths, strict=True)]
    if name in IMITATION:
        return [[v] * n for v, n in zip(values, lengths, strict=True)]
    mean = statistics.fmean(values)
    if name == "dr-grpo":
        rows = [v - mean for v in values]
    elif name == "scalerl":
        rows = [(v - mean) / (spread(step) + GROUP_EPS) for v in values]
    else:
        rows = above_the_others(values) if name == "rloo" else normalised(values)
    return [[a] * n for a, n in zip(rows, lengths, strict=True)]


def policy_term(name: str, ratio: Tensor, advantage: float, logprob: Tensor) -> Tensor:
    """What is to be maximised, of one token."""
    if name in ("cispo", "scalerl"):
        return min(ratio.detach(), torch.tensor(5.0)) * advantage * logprob
    if name in IMITATION:
        return advantage * logprob
    low, high = CLIP.get(name, (0.2, 0.2))
    clipped = torch.full_like(ratio, 1 - low) if ratio < 1 - low else ratio
    clipped = torch.full_like(ratio, 1 + high) if ratio > 1 + high else clipped
    return min(ratio * advantage, clipped * advantage)


def penalty(name: str, policy: Tensor, reference: Tensor) -> Tensor:
    """The KL's term of one token, weight included."""
    if name in ("grpo", "grpo-process", "grpo-iterative"):
        return 0.04 * ((reference - policy).exp() - (reference - policy) - 1)
    return 0.03 * (policy - reference) ** 2 / 2 if name == "rloo" else torch.zeros(())


def token_weight(name: str, length: int, group: Sequence[int], step: Sequence[Sequence[int]], max_tokens: int) -> float:
    """group, step: the counted lengths of the group, and of every group of the step."""
    lengths = [n for of_group in step for n in of_group]
    if name == "scalerl":
        return 1 / sum(group) / sum(map(bool, step))
    if name in ("sft", "dapo", "cispo", "plain"):
        return 1 / sum(lengths)
    return 1 / len(lengths) / {"dr-grpo": max_tokens, "rloo": 1}.get(name, length)


def step_loss(
    name: str, groups: Sequence[RolloutGroup], policy: Scores, behaviour: Scores, reference: Scores, max_tokens: int
) -> Tensor:
    """-sum of weight * (importance weight * policy term) + sum of weight * penalty, over graded completions alone."""
    lengths = counted_lengths(name, groups)
    total = torch.zeros(())
    for group, of_group, *columns in zip(groups, lengths, policy, behaviour, reference, strict=True):
        if not of_group:
            continue
        graded = [row for row in zip(group.rollouts, *columns, strict=True) if row[0].score.value is not None]
        rows = token_advantages(name, group, max_tokens, groups)
        for advantages, (rollout, ps, bs, fs) in zip(rows, graded, strict=True):
            sampler = torch.tensor(rollout.completion.sampler_logprobs)
            ratios = (ps - bs).mean().exp().expand(len(ps)) if name == "gspo" else (ps - bs).exp()
            ratios = (ps - sampler).exp() if name == "scalerl" else ratios
            weight = token_weight(name, len(ps), of_group, lengths, max_tokens)
            for rho, a, p, b, f, s in zip(ratios, advantages, ps, bs, fs, sampler, strict=True):
                uncorrected = name in (*IMITATION, "scalerl")
                correction = 1.0 if uncorrected else min(float((b - s).exp()), WEIGHT_CAP)
                total = total + weight * (penalty(name, p, f) - correction * policy_term(name, rho, a, p))
    return total


def padded_tables(model: PreTrainedModel, groups: Sequence[RolloutGroup], temperature: float) -> Scores:
    """Log-probs of the whole vocabulary at every token of every completion: each behind its own copy of the prompt,
    padded on the right, by the model's own forward."""
    rows = [[*g.prompt_ids, *r.completion.token_ids] for g in groups for r in g.rollouts]
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    lines = iter(zip((logits / temperature).log_softmax(-1), rows, strict=True))
    return [[_completion(*next(lines), len(g.prompt_ids)) for _ in g.rollouts] for g in groups]


def _completion(table: Tensor, row: Sequence[int], prompt_length: int) -> Tensor:
    """The place before a token predicts it."""
    return table[prompt_length - 1 : len(row) - 1]


def padded_logprobs(model: PreTrainedModel, groups: Sequence[RolloutGroup], temperature: float) -> Scores:
    tables = padded_tables(model, groups, temperature)
    return [
        [torch.stack([line[x] for line, x in zip(table, r.completion.token_ids, strict=True)]) for r, table in pairs]
        for pairs in (list(zip(g.rollouts, row, strict=True)) for g, row in zip(groups, tables, strict=True))
    ]
