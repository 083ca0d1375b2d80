"""Drawing tokens: counter-based uniforms, and inverse CDF with the log-prob of what was drawn."""

from __future__ import annotations

import torch
from torch import Tensor

from rollout.sampler import SamplingParams


def uniforms(seeds: Tensor, counters: Tensor) -> Tensor:
    """Draw `counter` of the stream `seed`, in [0, 1), float64: SplitMix64 (Steele, Lea, Flood 2014) as a pure function.

    seeds, counters: Int64[N]. No generator holds state, so a draw depends on nothing but (seed, counter).
    """

    def shifted(z: Tensor, bits: int) -> Tensor:  # a logical shift: torch's is arithmetic
        return (z >> bits) & ((1 << (64 - bits)) - 1)

    z = seeds + (counters + 1) * -0x61C8864680B583EB  # 0x9E3779B97F4A7C15 as a signed number, likewise below
    z = (z ^ shifted(z, 30)) * -0x40A7B892E31B1A47
    z = (z ^ shifted(z, 27)) * -0x6B2FB644ECCEEE15
    return shifted(z ^ shifted(z, 31), 11).double() * 2.0**-53


def truncate_to_top_p(logits: Tensor, top_p: float) -> Tensor:
    """-inf outside the smallest set of tokens whose probabilities sum to at least top_p (arXiv 1904.09751). [B, V] -> [B, V]."""
    ordered, order = logits.softmax(-1).sort(dim=-1, descending=True)
    mass_before = ordered.cumsum(-1) - ordered
    dropped = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, order, mass_before >= top_p)
    return logits.masked_fill(dropped, -torch.inf)


def draw_tokens(logits: Tensor, u: Tensor, params: SamplingParams) -> tuple[Tensor, Tensor]:
    """One token per row by inverse CDF, and its log-prob under the distribution sampled from. [B, V], [B] -> [B], [B].

    Both come from one cumulative sum, in float64 as u is: its last column is the normaliser.
    """
    logits = logits.float()
    if params.temperature not in (0, 1):
        logits = logits / params.temperature
    if params.temperature > 0 and params.top_p < 1:
        logits = truncate_to_top_p(logits, params.top_p)
    logits = logits - logits.amax(-1, keepdim=True)
    cdf = logits.exp().cumsum(-1, dtype=torch.float64)
    total = cdf[:, -1]
    if params.temperature == 0:
        tokens = logits.argmax(-1)
    else:
        # u < 1 in steps of 2^-53 and right=True: a token of probability 0 is never drawn.
        tokens = torch.searchsorted(cdf, (u * total)[:, None], right=True)[:, 0]
        tokens = tokens.clamp_(max=logits.shape[-1] - 1)
    return tokens, logits.gather(-1, tokens[:, None])[:, 0] - total.log().float()
