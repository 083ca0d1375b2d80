"""The Puzzle protocol, and validation of the fields of a reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from rewards.verdict import BadReference, Verdict

MAX_ANSWER = 2_000  # characters


class Puzzle(Protocol):
    @property
    def solution(self) -> str:
        """One correct answer."""
        ...

    def grade(self, answer: str) -> Verdict:
        """The verdict on a final answer of at most MAX_ANSWER characters."""
        ...


def integer(value: Any, field: str, least: int, most: int) -> int:
    """`value`, if it is an integer from `least` to `most`. Raises BadReference otherwise. field: for the message."""
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise BadReference(f"{field} is {str(value)[:60]}: it must be an integer in [{least}, {most}]")
    return value


def sequence(reference: Mapping[str, Any], field: str, least: int, most: int) -> Sequence[Any]:
    """The field of the reference, if it is a list of `least` to `most` items. Raises BadReference otherwise."""
    value = reference.get(field)
    if not isinstance(value, list | tuple) or not least <= len(value) <= most:
        raise BadReference(f"{field} is {str(value)[:60]}: it must be a list of {least} to {most} items")
    return value


def word(reference: Mapping[str, Any], field: str) -> str:
    """The field of the reference, if it is a text of 1 to MAX_ANSWER characters. Raises BadReference otherwise."""
    value = reference.get(field)
    if not isinstance(value, str) or not value or len(value) > MAX_ANSWER:
        raise BadReference(f"{field} is {str(value)[:60]}: it must be text of 1 to {MAX_ANSWER} characters")
    return value
