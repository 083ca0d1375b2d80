"""Tools for tests, as a user writes them, and some that do what tools should not do."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from enum import Enum
from functools import cache
from typing import TYPE_CHECKING, Any, List, Literal, Optional  # noqa: UP035

if TYPE_CHECKING:
    from fractions import Fraction


def add(a: int, b: int = 1) -> int:
    """Adds two numbers.

    Args:
        a: The first number.
        b: The second number.
    """
    print("this is not the answer")
    return a + b


async def later(text: str) -> str:
    """Repeats a text after a while.

    Args:
        text: The text.
    """
    await asyncio.sleep(0.01)
    return text


def misuse(how: str) -> object:
    """Does what a tool should not do.

    Args:
        how: One of hang, exit, die, bytes, long, surrogate, fork, note.
    """
    if how == "hang":
        time.sleep(60)
    if how == "note":
        error = ValueError("\nbelow")
        error.add_note("a note")
        raise error
    if how == "exit":
        raise SystemExit(3)
    if how == "die":
        os._exit(3)
    if how == "fork":
        os.fork()
        return "forked"
    return {"bytes": b"4", "long": "x" * 10_000_000, "surrogate": "\ud800", "none": None}[how]


def untyped(a, b):  # pyright: ignore[reportMissingParameterType]
    """Has no types.

    Args:
        a: A number.
        b: A number.
    """
    return a + b


def undocumented(a: int) -> int:
    return a


def half_documented(a: int, b: int) -> int:
    """Says nothing of b.

    Args:
        a: A number.
    """
    return a + b


def positional(a: int, /) -> int:
    """Cannot be called by name.

    Args:
        a: A number.
    """
    return a


def variable(*numbers: int) -> int:
    """Cannot be called by name.

    Args:
        numbers: Some numbers.
    """
    return sum(numbers)


def open_ended(**numbers: int) -> int:
    """Names no argument.

    Args:
        numbers: Some numbers.
    """
    return sum(numbers.values())


@dataclass
class Point:
    x: int
    y: int


class Colour(Enum):
    RED = "red"


def draws(point: Point) -> str:
    """Draws a point.

    Args:
        point: The point.
    """
    return str(point.x)


def paints(colours: list[Colour] | None = None) -> str:
    """Paints.

    Args:
        colours: The colours.
    """
    return str(colours)


def counts(to: int) -> Iterator[int]:
    """Counts.

    Args:
        to: The last number.
    """
    yield from range(to)


async def counts_later(to: int) -> AsyncIterator[int]:
    """Counts.

    Args:
        to: The last number.
    """
    yield to


def measures(length: Fraction) -> str:
    """Measures.

    Args:
        length: A length.
    """
    return str(length)


class Library:
    def search(self, query: str) -> str:
        """Searches.

        Args:
            query: What to look for.
        """
        return query

    def __call__(self, query: str) -> str:
        """Searches.

        Args:
            query: What to look for.
        """
        return query


library = Library()


@cache
def chooses(
    of: Literal["a", "b"],
    limits: dict[str, tuple[int, float]] | None = None,
    rest: Any = None,
    words: Optional[List[str]] = None,  # noqa: UP006, UP045  as older files have it
) -> str:
    """Has every type that JSON has.

    Args:
        of: A choice.
        limits: Some limits.
        rest: Whatever else.
        words: Some words.
    """
    return of
