"""Draws depend on (seed, counter) alone, and are those of the published generator."""

from __future__ import annotations

import pytest
import torch

from rollout.engine.draw import BLOCK, draw_tokens, invert, invert_by_blocks, uniforms
from rollout.sampler import SamplingParams
from tests.rollout.uniform_reference import uniform

SEEDS = (0, 1, 2, 0x9E3779B97F4A7C15 >> 1, 1 << 32, (1 << 62) + 12345, (1 << 63) - 1)
COUNTERS = (0, 1, 2, 63, 1000, 40_000)


def drawn(seeds: list[int], counters: list[int]) -> list[float]:
    return uniforms(torch.tensor(seeds), torch.tensor(counters)).tolist()


def test_draws_are_splitmix64_bit_for_bit() -> None:
    """Another engine, or another device, can give the same draws only if they are exactly these."""
    pairs = [(seed, counter) for seed in SEEDS for counter in COUNTERS]
    assert drawn(*map(list, zip(*pairs, strict=True))) == [uniform(*pair) for pair in pairs]


def test_the_reference_is_the_published_generator() -> None:
    """First outputs for seed 1234567, as Rosetta Code's task "Pseudo-random numbers/Splitmix64" lists them."""
    outputs = (6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821)
    assert [uniform(1234567, i) for i in range(5)] == [(z >> 11) / 2**53 for z in outputs]


def test_draws_lie_in_the_unit_interval_and_differ() -> None:
    """1.0 would be beyond the end of the distribution; 40,000 draws of 53 bits collide with probability 1e-7."""
    pairs = [(seed, counter) for seed in range(400) for counter in range(100)]
    draws = drawn(*map(list, zip(*pairs, strict=True)))
    assert min(draws) >= 0.0
    assert max(draws) < 1.0
    assert len(set(draws)) == len(pairs)


def test_neighbouring_seeds_and_counters_are_unrelated() -> None:
    """Correlation of draws with the next counter's and the next seed's: 4 standard errors of 40,000 pairs are 0.02."""
    table = torch.tensor([[uniform(seed, counter) for counter in range(201)] for seed in range(201)])
    ours = uniforms(torch.arange(201).repeat_interleave(201), torch.arange(201).repeat(201)).reshape(201, 201)
    assert torch.equal(ours.float(), table)
    for following in (ours[:-1, 1:], ours[1:, :-1]):
        both = torch.stack([ours[:-1, :-1].flatten(), following.flatten()])
        assert abs(torch.corrcoef(both)[0, 1].item()) < 0.02


EDGES = torch.tensor([0.0, 0.5, 1 - 2.0**-53], dtype=torch.float64)


def test_a_token_of_probability_0_is_never_drawn() -> None:
    """Also not at u = 0, which draws the first token with a positive probability: here the second of four, and at 1/2 the third."""
    logits = torch.tensor([[-torch.inf, 0.0, 0.0, -torch.inf]] * 3)
    tokens, _ = draw_tokens(logits, EDGES, SamplingParams(max_tokens=1))
    assert tokens.tolist() == [1, 2, 2]


@pytest.mark.parametrize("size", [5, BLOCK, 3 * BLOCK, 10_007])
def test_blocks_draw_what_one_sum_draws(size: int) -> None:
    """Their sums differ in the last bits of float64 only, and none of 20,000 draws falls between them. Half of the weights are 0."""
    generator = torch.Generator().manual_seed(size)
    weights = torch.randn(200, size, generator=generator).mul_(3).exp_() * (
        torch.rand(200, size, generator=generator) < 0.5
    )
    weights[:, size // 2] = 1.0  # no row is empty
    for _ in range(100):
        u = torch.rand(200, dtype=torch.float64, generator=generator)
        (tokens, total), (by_blocks, sum_of_blocks) = invert(weights, u), invert_by_blocks(weights, u)
        assert torch.equal(by_blocks, tokens)
    assert torch.allclose(sum_of_blocks, total, rtol=1e-12, atol=0)


@pytest.mark.parametrize("size", [4, BLOCK, 4 * BLOCK])
def test_blocks_never_draw_a_token_of_weight_0(size: int) -> None:
    """At the ends of u and in the middle, for any position of the tokens with a positive weight."""
    for first in range(0, size - 1, max(1, size // 7)):
        weights = torch.zeros(3, size)
        weights[:, first : first + 2] = torch.tensor([0.1, 0.3])
        assert invert_by_blocks(weights, EDGES)[0].tolist() == [first, first + 1, first + 1]
