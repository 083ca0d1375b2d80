"""The processes that share a step: each samples and grades its part, then all exchange their results."""

from __future__ import annotations

from typing import Protocol, TypeVar

T = TypeVar("T")


class Processes(Protocol):
    """rank: this process's number, from 0. count: the number of processes."""

    @property
    def rank(self) -> int: ...

    @property
    def count(self) -> int: ...

    def gather(self, mine: list[T]) -> list[T]:
        """All processes' items, ordered by rank. All processes must call it."""
        ...


class SingleProcess:
    """A run of one process."""

    rank, count = 0, 1

    def gather(self, mine: list[T]) -> list[T]:
        return mine
