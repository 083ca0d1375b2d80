"""DPO: the coefficients of the gradient of a preference loss over all pairs of a group's completions of which one has a higher reward.

    loss of a group = mean over its pairs (i preferred to j) of -log sigmoid(beta (m_i - m_j))
    m_i = mean over the tokens of completion i of l - f                        DeepSeekMath, arXiv 2402.03300, appendix A.1.4

Its derivative by m_i is -c_i, with c_i = mean over all pairs of beta sigmoid(beta (m_j - m_i)) if i is preferred, of
-beta sigmoid(beta (m_i - m_j)) if j is. So the gradient is that of likelihood (rl/objective/losses.py) with advantage c_i, as long as c_i is
that of the weights that are updated.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from rl.objective.losses import sequence_means
from rl.objective.tokens import ScoredSequences


def preference_coefficients(
    margins: Float[Tensor, " G"], rewards: Float[Tensor, " G"], beta: float
) -> Float[Tensor, " G"]:
    """c_i of the completions of a group; 0 for all of them where no reward is higher than another."""
    preferred = (rewards[:, None] > rewards).to(margins.dtype)  # [i, j]: i to j
    of_pairs = preferred * beta * torch.sigmoid(beta * (margins - margins[:, None]))
    return (of_pairs.sum(1) - of_pairs.sum(0)) / preferred.sum().clamp(min=1)


def preference_advantages(
    sequences: Sequence[ScoredSequences],
    logprobs: Sequence[Float[Tensor, " S"]],
    reference_logprobs: Sequence[Float[Tensor, " S"]],
    beta: float,
) -> list[Float[Tensor, " S"]]:
    """c_i at every token of completion i. sequences: all micro-batches that hold a part of one of these groups."""
    of_each = list(zip(sequences, logprobs, reference_logprobs, strict=True))
    margins = torch.cat([sequence_means(p - f, s.loss_mask, s.sequence_of, s.num_sequences) for s, p, f in of_each])
    rewards = torch.cat([s.rewards for s in sequences])
    group_of = torch.cat([s.group_of for s in sequences])
    coefficients = torch.zeros_like(margins)
    for group in group_of.unique():
        (members,) = torch.where(group_of == group)
        coefficients[members] = preference_coefficients(margins[members], rewards[members], beta)
    of_micro = coefficients.split([s.num_sequences for s in sequences])
    return [c[s.sequence_of] for c, s in zip(of_micro, sequences, strict=True)]
