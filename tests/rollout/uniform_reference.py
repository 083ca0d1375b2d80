"""A reference SplitMix64 with Python integers, after the published C code."""

from __future__ import annotations

MASK = (1 << 64) - 1


def uniform(seed: int, counter: int) -> float:
    """Output number `counter` of the generator started at `seed`: its top 53 bits, as a fraction."""
    z = (seed + (counter + 1) * 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return ((z ^ (z >> 31)) >> 11) / 2**53
