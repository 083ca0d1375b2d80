"""The seed of a completion depends on its purpose alone and never changes: a resumed run must draw the same tokens."""

from __future__ import annotations

from itertools import product

from rollout.sampler import completion_seed


def test_seeds_are_distinct_and_fit_a_signed_word() -> None:
    """Also for ids with slashes and digits: (1, 12/3) must not collide with (11, 2/3). 52,800 draws of 63 bits collide by chance once in 6e9."""
    ids = ("1", "2", "12", "1/2", "12/3", "2/3", "1/turn 1", "a", "", "é", "1 ")
    keys = list(product(range(5), range(20), ids, range(16), range(3)))
    seeds = {completion_seed(*key) for key in keys}
    assert len(seeds) == len(keys)
    assert all(0 <= seed < 1 << 63 for seed in seeds)
    assert max(seeds) > 1 << 62  # all bits are used


def test_seeds_do_not_change_with_the_version_or_the_process() -> None:
    """`printf 1/2/gsm8k-3/4 | b2sum -l 64` gives 2fa89092918b7939, of which the lowest bit is dropped."""
    assert completion_seed(1, 2, "gsm8k-3", 4) == 0x2FA89092918B7939 >> 1
    assert completion_seed(1, 2, "gsm8k-3", 4, 0) == completion_seed(1, 2, "gsm8k-3", 4)
