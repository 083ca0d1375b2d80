"""Tools for tests, as a user writes them, and some that do what tools should not do."""

from __future__ import annotations

import asyncio
import os
import time


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
