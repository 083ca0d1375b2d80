"""Integers, to be put in order."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rewards.puzzles.puzzle import integer, sequence
from rewards.verdict import BadReference, Verdict, right, unparsed, wrong

_BRACKETS = re.compile(r"\\?[\[\](){}$]|\\[,;:! ]")
_INTEGER = re.compile(r"[-−–]?[0-9]{1,40}")


@dataclass(frozen=True)
class Sorting:
    """All numbers, in order, with commas or spaces between them."""

    expected: tuple[int, ...]

    @classmethod
    def read(cls, reference: Mapping[str, Any]) -> Sorting:
        if reference.get("order") not in ("ascending", "descending"):
            raise BadReference("order must be ascending or descending")
        numbers = [integer(n, "numbers", -(10**18), 10**18) for n in sequence(reference, "numbers", 2, 200)]
        return cls(tuple(sorted(numbers, reverse=reference["order"] == "descending")))

    @property
    def solution(self) -> str:
        return ", ".join(map(str, self.expected))

    def judge(self, answer: str) -> Verdict:
        items = re.split(r"[,;\s]+", _BRACKETS.sub(" ", answer).strip(" \t\n,;."))
        if not all(_INTEGER.fullmatch(item) for item in items):
            return unparsed("not a list of integers")
        given = tuple(int(item.translate({ord("−"): "-", ord("–"): "-"})) for item in items)
        if given == self.expected:
            return right("in order")
        return wrong("not in order" if sorted(given) == sorted(self.expected) else "other numbers")
