"""Per-token losses, to be minimised, and their terms: pure functions of log-probs, elementwise unless the docstring says otherwise.

l: policy log-prob, b: old log-prob, f: reference log-prob, s: the sampler's log-prob, A: advantage, rho = exp(l - b).
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

MAX_LOG_RATIO = 20.0  # exp(20) is 5e8: larger ratios carry no further information, and float32 exp overflows at 88

KLKind = Literal["k1", "k2", "k3"]


def probability_ratio(policy_logprobs: Float[Tensor, "*n"], old_logprobs: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """rho = exp(l - b), |l - b| clamped at 20."""
    return (policy_logprobs - old_logprobs).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()


def sequence_means(
    values: Float[Tensor, " S"], mask: Float[Tensor, " S"], sequence_of: Int[Tensor, " S"], num_sequences: int
) -> Float[Tensor, " B"]:
    """For each sequence the mean of `values` over its tokens whose mask is 1; gradients flow through it."""
    zeros, mask = values.new_zeros(num_sequences), mask.to(values.dtype)
    sums = zeros.index_add(0, sequence_of, values * mask)
    counts = zeros.index_add(0, sequence_of, mask)
    return sums / counts.clamp(min=1)


def mean_over_sequence(
    values: Float[Tensor, " S"], mask: Float[Tensor, " S"], sequence_of: Int[Tensor, " S"], num_sequences: int
) -> Float[Tensor, " S"]:
    """For each token the mean of its sequence (sequence_means)."""
    return sequence_means(values, mask, sequence_of, num_sequences)[sequence_of]


def clipped_surrogate(
    policy_logprobs: Float[Tensor, "*n"],
    old_logprobs: Float[Tensor, "*n"],
    advantages: Float[Tensor, "*n"],
    *,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None = None,
) -> Float[Tensor, "*n"]:
    """-min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A). PPO, arXiv 1707.06347, equation 7; GRPO, 2402.03300, eq. 3.

    Asymmetric bounds are DAPO's, arXiv 2503.14476, equation 10. dual_clip = c > 1 bounds the objective from below by c A
    where A < 0 (arXiv 1912.09729, equation 5); None disables it. Differs from: verl, whose default is c = 3.
    """
    ratio = probability_ratio(policy_logprobs, old_logprobs)
    objective = torch.minimum(ratio * advantages, ratio.clamp(1 - clip_low, 1 + clip_high) * advantages)
    if dual_clip is not None:
        bounded = torch.maximum(objective, dual_clip * advantages)
        objective = torch.where(advantages < 0, bounded, objective)
    return -objective


def clipped_weight_reinforce(
    policy_logprobs: Float[Tensor, "*n"],
    old_logprobs: Float[Tensor, "*n"],
    advantages: Float[Tensor, "*n"],
    *,
    clip_low: float,
    clip_high: float,
) -> Float[Tensor, "*n"]:
    """-sg(clip(rho, 1 - clip_low, 1 + clip_high)) A l, sg = no gradient. CISPO, MiniMax-M1, arXiv 2506.13585, eq. 4.

    Every token keeps its gradient, as only the weight is clipped. Implementations differ in the two bounds: clip_low = 1 caps the
    weight at 1 + clip_high (the paper's experiments, open-instruct); clip_low < 1 is the two-sided clamp of verl and NeMo-RL; TRL's
    absolute cap c is clip_low = 1, clip_high = c - 1.
    """
    weight = probability_ratio(policy_logprobs, old_logprobs).clamp(1 - clip_low, 1 + clip_high).detach()
    return -weight * advantages * policy_logprobs


def likelihood(
    policy_logprobs: Float[Tensor, "*n"],
    old_logprobs: Float[Tensor, "*n"],
    advantages: Float[Tensor, "*n"],
    **_: float,
) -> Float[Tensor, "*n"]:
    """-A l, whichever policy sampled the tokens. SFT and RFT, arXiv 2402.03300, appendix A.1."""
    return -advantages * policy_logprobs


def kl_estimate(
    policy_logprobs: Float[Tensor, "*n"], reference_logprobs: Float[Tensor, "*n"], kind: KLKind
) -> Float[Tensor, "*n"]:
    """Estimate of KL(policy || reference) per token, for tokens that the policy sampled, with d = l - f. (Schulman 2020)

    k1 = d, k2 = d^2 / 2, k3 = exp(-d) + d - 1 (GRPO, arXiv 2402.03300, equation 4). The values of k1 and k3 are unbiased.
    As a loss term on the policy's own samples, k1 has zero expected gradient, k2 has the gradient of the reverse KL and k3 that of a
    forward-like KL.
    """
    difference = policy_logprobs - reference_logprobs
    if kind == "k1":
        return difference
    if kind == "k2":
        return difference.square() / 2
    if kind == "k3":
        return (-difference).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp() + difference - 1
    raise ValueError(f"kind is {kind!r}: it must be 'k1', 'k2' or 'k3'")


def value_loss(
    values: Float[Tensor, "*n"],
    old_values: Float[Tensor, "*n"],
    returns: Float[Tensor, "*n"],
    *,
    clip: float | None,
) -> Float[Tensor, "*n"]:
    """1/2 max((V - R)^2, (V_old + clip(V - V_old, -c, c) - R)^2); with clip None, 1/2 (V - R)^2. (PPO2, OpenAI baselines)"""
    squared = (values - returns).square()
    if clip is not None:
        clipped = old_values + (values - old_values).clamp(-clip, clip)
        squared = torch.maximum(squared, (clipped - returns).square())
    return squared / 2


def truncated_importance_weight(
    old_logprobs: Float[Tensor, "*n"], sampler_logprobs: Float[Tensor, "*n"], cap: float
) -> Float[Tensor, "*n"]:
    """w = min(exp(b - s), cap), without gradient: corrects for the difference between the sampling engine and the trainer.

    Truncated importance sampling (Ionides 2008). It multiplies the policy term of the loss, not the KL.
    """
    return probability_ratio(old_logprobs, sampler_logprobs).clamp(max=cap).detach()


def no_signal_probability(pass_rate: float, group_size: int) -> float:
    """p^G + (1 - p)^G: the probability that G independent answers of pass rate p are all right or all wrong."""
    return pass_rate**group_size + (1 - pass_rate) ** group_size


def overlong_penalty(length: int, max_tokens: int, buffer: int) -> float:
    """0 up to a length of max_tokens - buffer, then linear to -1 at max_tokens. DAPO, arXiv 2503.14476, equation 13."""
    return -min(max((length - (max_tokens - buffer)) / buffer, 0.0), 1.0)
