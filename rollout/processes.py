"""The processes that a step is shared out to: each samples and scores its part, then all know all of it."""

from __future__ import annotations

from typing import Protocol, TypeVar

T = TypeVar("T")


class Processes(Protocol):
    """rank: of this one, from 0. count: of all."""

    @property
    def rank(self) -> int: ...

    @property
    def count(self) -> int: ...

    def gather(self, mine: list[T]) -> list[T]:
        """Everybody's, in order of the ranks. All processes must call it."""
        ...


class Alone:
    """One process."""

    rank, count = 0, 1

    def gather(self, mine: list[T]) -> list[T]:
        return mine
