"""Draws tokens: counter-based uniforms, and inverse CDF sampling with the log-prob of the drawn token."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from rollout.engine import kernels
from rollout.sampler import SamplingParams

BLOCK = 128  # divides the size of nearly every vocabulary


def uniforms(seeds: Tensor, counters: Tensor) -> Tensor:
    """Draw number `counter` of the stream `seed`, in [0, 1), float64: SplitMix64 (Steele, Lea, Flood 2014) as a pure function.

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


def invert(weights: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """For each row the first token whose cumulative weight exceeds the share u of the total, and the total. [B, V], [B] -> [B], [B].

    u < 1 in steps of 2^-53 and right=True: a token of weight 0 is never drawn.
    """
    cdf = weights.cumsum(-1, dtype=torch.float64)
    total = cdf[:, -1]
    tokens = torch.searchsorted(cdf, (u * total)[:, None], right=True)[:, 0]
    return tokens.clamp_(max=weights.shape[-1] - 1), total


def invert_by_blocks(weights: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """The same as `invert`, first by sums of blocks, then within one block of each row: on a GPU a scan over a row of 150,000 columns
    is slow."""
    weights = F.pad(weights, (0, -weights.shape[-1] % BLOCK)) if weights.shape[-1] % BLOCK else weights
    blocks = weights.unflatten(-1, (-1, BLOCK))
    cdf = blocks.sum(-1, dtype=torch.float64).cumsum(-1)
    total = cdf[:, -1]
    target = (u * total)[:, None]
    block = torch.searchsorted(cdf, target, right=True).clamp_(max=cdf.shape[1] - 1)
    before = cdf.gather(1, (block - 1).clamp_(min=0)).masked_fill_(block == 0, 0)
    within = blocks.gather(1, block[:, :, None].expand(-1, -1, BLOCK))[:, 0].cumsum(-1, dtype=torch.float64)
    # The block's sum, added up in another order, may be less than the remainder by its last bit.
    remainder = torch.minimum(target - before, within[:, -1:].nextafter(torch.zeros_like(target)))
    return (block * BLOCK + torch.searchsorted(within, remainder, right=True))[:, 0], total


def draw(logits: Tensor, seeds: Tensor, counters: Tensor, params: SamplingParams) -> tuple[Tensor, Tensor]:
    """Draw number `counter` of the stream `seed` from each row, and its log-prob. [B, V], int64[B], int64[B] -> [B], [B]."""
    if params.top_p == 1 and logits.is_contiguous() and kernels.can_compute(kernels.LANES, logits.dtype, logits.device):
        return kernels.draw(logits, seeds, counters, params.temperature)
    return draw_tokens(logits, uniforms(seeds, counters), params)


def draw_tokens(logits: Tensor, u: Tensor, params: SamplingParams) -> tuple[Tensor, Tensor]:
    """One token per row by inverse CDF, and its log-prob under the distribution that is sampled from. [B, V], [B] -> [B], [B].

    Both come from one cumulative sum, in float64 as u is: its last column is the normalizer.
    """
    logits = logits.float()
    if params.temperature not in (0, 1):
        logits = logits / params.temperature
    if params.temperature > 0 and params.top_p < 1:
        logits = truncate_to_top_p(logits, params.top_p)
    logits = logits - logits.amax(-1, keepdim=True)
    tokens, total = (invert_by_blocks if logits.is_cuda else invert)(logits.exp(), u)
    if params.temperature == 0:
        tokens = logits.argmax(-1)
    return tokens, logits.gather(-1, tokens[:, None])[:, 0] - total.log().float()
