"""DPO: the coefficients of the gradient of a preference loss over all pairs of a group's completions of which one has a higher reward.

    loss of a group = mean over its pairs (i preferred to j) of -log sigmoid(beta (m_i - m_j))
    m_i = mean over the tokens of completion i of l - f                        DeepSeekMath, arXiv 2402.03300, appendix A.1.4

Its derivative by m_i is -c_i, with c_i = mean over all pairs of beta sigmoid(beta (m_j - m_i)) if i is preferred, of
-beta sigmoid(beta (m_i - m_j)) if j is. So the gradient is that of likelihood (rl/objective/losses.py) with advantage c_i, as long as c_i is
that of the weights that are updated.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from rl.objective.losses import sequence_means
from rl.objective.tokens import ScoredSequences


def preference_coefficients(
    margins: Float[Tensor, " G"], rewards: Float[Tensor, " G"], beta: float
) -> Float[Tensor, " G"]:
    """c_i of the completions of a group; 0 for all of them where no reward is higher than another."""
    preferred = preferences_of(rewards)
    of_pairs = preferred * beta * torch.sigmoid(beta * (margins - margins[:, None]))
    return (of_pairs.sum(1) - of_pairs.sum(0)) / preferred.sum().clamp(min=1)


def preferences_of(rewards: Float[Tensor, " G"]) -> Float[Tensor, "G G"]:
    """[i, j]: 1 where completion i has a higher reward than j."""
    return (rewards[:, None] > rewards).float()


def preference_terms(margins: Float[Tensor, " G"], rewards: Float[Tensor, " G"], beta: float) -> Float[Tensor, " 4"]:
    """Means over the pairs of a group of: the loss; whether m_i > m_j; m_i - m_j; 1. All are 0 without a pair."""
    preferred, apart = preferences_of(rewards), margins[:, None] - margins
    of_pairs = torch.stack([-F.logsigmoid(beta * apart), (apart > 0).float(), apart, torch.ones_like(apart)])
    return (preferred * of_pairs).sum((1, 2)) / preferred.sum().clamp(min=1)


class Preferences(NamedTuple):
    """advantages: c_i at every token of completion i, by micro-batch. terms: sums of `preference_terms` over the groups."""

    advantages: list[Float[Tensor, " S"]]
    terms: Float[Tensor, " 4"]


def preferences(
    sequences: Sequence[ScoredSequences],
    logprobs: Sequence[Float[Tensor, " S"]],
    reference_logprobs: Sequence[Float[Tensor, " S"]],
    beta: float,
) -> Preferences:
    """sequences: all micro-batches that hold a part of one of these groups, at least one."""
    of_each = list(zip(sequences, logprobs, reference_logprobs, strict=True))
    margins = torch.cat([sequence_means(p - f, s.loss_mask, s.sequence_of, s.num_sequences) for s, p, f in of_each])
    rewards = torch.cat([s.rewards for s in sequences])
    groups = defaultdict[int, list[int]](list)
    for i, group in enumerate(group for s in sequences for group in s.group_of):
        groups[group].append(i)
    coefficients, terms = torch.zeros_like(margins), margins.new_zeros(4)
    for indices in groups.values():
        members = torch.tensor(indices, device=margins.device)
        of_group = margins[members], rewards[members], beta
        coefficients[members] = preference_coefficients(*of_group)
        terms += preference_terms(*of_group)
    of_micro = coefficients.split([s.num_sequences for s in sequences])
    return Preferences([c[s.sequence_of] for c, s in zip(of_micro, sequences, strict=True)], terms)
