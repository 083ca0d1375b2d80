"""Advantage estimators, as pure functions of rewards. Shapes: P problems, G completions of each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Scale = Literal["std", "batch", "none"]


def _standardise(values: Tensor, mask: Tensor, scale: Literal["std", "none"], eps: float) -> Tensor:
    """(v - mean) / (std + eps) over the entries of the last dimension where mask is True.

    The result is 0 where mask is False, and where all masked entries of a row are equal. Equality is tested by max == min, not by
    std == 0: in float32, seven rewards of 0.7 have a std of about 1e-9.
    """
    count = mask.sum(-1, keepdim=True)
    mean = (values * mask).sum(-1, keepdim=True) / count.clamp(min=1)
    centred = (values - mean) * mask
    highest = values.masked_fill(~mask, -torch.inf).amax(-1, keepdim=True)
    lowest = values.masked_fill(~mask, torch.inf).amin(-1, keepdim=True)
    constant = highest <= lowest
    if scale == "none":
        return centred.masked_fill(constant, 0.0)
    std = (centred.square().sum(-1, keepdim=True) / (count - 1).clamp(min=1)).sqrt()  # Bessel's correction
    return (centred / (std + eps)).masked_fill(constant, 0.0)


def group_normalized(
    rewards: Float[Tensor, "P G"],
    *,
    scale: Scale,
    eps: float,
    mask: Bool[Tensor, "P G"] | None = None,
) -> Float[Tensor, "P G"]:
    """A_i = (r_i - mean_j r_j) / (std_j r_j + eps), std with Bessel's correction; with scale "none", r_i - mean_j r_j.

    GRPO, arXiv 2402.03300, section 4.1.2; scale "none" is Dr. GRPO, arXiv 2503.20783. With scale "batch" the std is the same for all
    groups: the root of the mean of (r - mean)^2 over the completions of all groups that are not constant (ScaleRL, arXiv 2510.13786,
    section 3). A constant group, and a group of one, has advantage 0. `mask` is False for completions that could not be graded: mean
    and std leave them out, and their advantage is 0.
    Differs from: verl (eps 1e-6, a group of one keeps its reward), open-instruct (population std), TRL's ScaleRL trainer (a running
    std over the steps).
    """
    if scale not in ("std", "batch", "none"):
        raise ValueError(f"scale is {scale!r}: it must be 'std', 'batch' or 'none'")
    mask = torch.ones_like(rewards, dtype=torch.bool) if mask is None else mask
    rewards = torch.where(mask, rewards, 0.0)
    if scale != "batch":
        return _standardise(rewards, mask, scale, eps)
    centred = _standardise(rewards, mask, "none", eps)
    varies = mask & (centred != 0).any(-1, keepdim=True)
    return centred / ((centred.square().sum() / varies.sum().clamp(min=1)).sqrt() + eps)


def leave_one_out(rewards: Float[Tensor, "P G"], *, mask: Bool[Tensor, "P G"] | None = None) -> Float[Tensor, "P G"]:
    """A_i = r_i - mean_{j != i} r_j = (r_i - mean_j r_j) G / (G - 1). RLOO, arXiv 2402.14740, section 3.2.

    `mask` as in group_normalized; G is then the number of graded completions of the group.
    """
    mask = torch.ones_like(rewards, dtype=torch.bool) if mask is None else mask
    count = mask.sum(-1, keepdim=True)
    centred = _standardise(torch.where(mask, rewards, 0.0), mask, "none", 0.0)
    return centred * count / (count - 1).clamp(min=1)


def process_supervised(
    step_rewards: Sequence[Sequence[float]],
    step_ends: Sequence[Sequence[int]],
    lengths: Sequence[int],
    *,
    eps: float = 1e-4,
) -> list[Float[Tensor, " T"]]:
    """A_{i,t} = sum of the normalised rewards of the steps of output i that end at token t or later.

    GRPO with process supervision, arXiv 2402.03300, section 4.1.3. The step rewards of all outputs of the group are
    normalised together: (r - mean) / (std + eps). step_ends[i][k] is the index in output i of the last token of step k;
    lengths[i] is the number of tokens of output i. A token after the last step has advantage 0.
    """
    flat = torch.tensor([reward for rewards in step_rewards for reward in rewards], dtype=torch.float32)
    if len(flat) > 0:
        flat = _standardise(flat, torch.ones_like(flat, dtype=torch.bool), "std", eps)
    advantages, start = [], 0
    for rewards, ends, length in zip(step_rewards, step_ends, lengths, strict=True):
        if len(rewards) != len(ends) or not all(0 <= end < length for end in ends):
            raise ValueError(f"step_ends is {list(ends)} for {len(rewards)} step rewards and {length} tokens")
        at_end = torch.zeros(length)
        at_end.index_add_(0, torch.tensor(list(ends), dtype=torch.long), flat[start : start + len(rewards)])
        advantages.append(at_end.flip(0).cumsum(0).flip(0))
        start += len(rewards)
    return advantages


def gae(
    rewards: Float[Tensor, "B T"],
    values: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    *,
    gamma: float,
    lam: float | Float[Tensor, " B"],
) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"]]:
    """A_t = delta_t + gamma lam A_{t+1}, delta_t = r_t + gamma V_{t+1} - V_t; returns = A + V.

    Generalised advantage estimation, arXiv 1506.02438, equation 16 (PPO, 1707.06347, equations 11 and 12), over the tokens of each
    row where mask is True: t+1 is the next such token, and after the last one V and A are 0. Advantages and returns are 0 where mask
    is False. values[:, t] is V of the state before token t. lam: of all rows, or of each.
    """
    advantages = torch.zeros_like(values)
    next_value = torch.zeros_like(values[:, 0])
    next_advantage = torch.zeros_like(next_value)
    for t in range(values.shape[1] - 1, -1, -1):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        advantage = delta + gamma * lam * next_advantage
        advantages[:, t] = torch.where(mask[:, t], advantage, 0.0)
        next_advantage = torch.where(mask[:, t], advantage, next_advantage)
        next_value = torch.where(mask[:, t], values[:, t], next_value)
    return advantages, torch.where(mask, advantages + values, 0.0)
