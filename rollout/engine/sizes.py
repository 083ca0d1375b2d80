"""The sizes of a decoder's buffers and of its steps, and the buckets to which they are rounded up."""

from __future__ import annotations

from typing import NamedTuple


class Capacity(NamedTuple):
    """The sizes of a decoder's buffers. shared_width: prompt tokens except the last; width: the last one and the completion's."""

    rows: int
    groups: int
    shared_width: int
    width: int

    def bucketed(self) -> Capacity:
        return Capacity(*map(power_of_two, self[:2]), *map(whole_blocks, self[2:]))

    def holding(self, needed: Capacity) -> Capacity:
        """This capacity if `needed` fits; otherwise a larger one, rounded up so that further growth is rare."""
        if all(size <= has for size, has in zip(needed, self, strict=True)):
            return self
        return Capacity(*map(max, self, needed.bucketed()))


class Sizes(NamedTuple):
    """The sizes of a step. members: rows of the largest group; shared_width, width: columns that shared and own keys fill."""

    rows: int
    groups: int
    members: int
    shared_width: int
    width: int

    def bucketed(self) -> Sizes:
        return Sizes(*map(power_of_two, self[:3]), *map(whole_blocks, self[3:]))


def power_of_two(size: int) -> int:
    return 1 << (size - 1).bit_length()


def whole_blocks(width: int) -> int:
    return -(-width // 64) * 64
