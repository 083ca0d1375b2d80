"""Sorting: put integers in order."""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from rewards.puzzles.puzzle import integer, sequence
from rewards.verdict import BadReference, Verdict, right, unparsed, wrong

_BRACKETS = re.compile(r"\\?[\[\](){}$]|\\[,;:! ]")
_RELATION = re.compile(r"<=|>=|[<>≤≥⩽⩾]|\\(?:leqslant|geqslant|leq?|geq?|lt|gt)(?![A-Za-z])")
_LESS, _MORE = ("≤", "⩽", r"\le", r"\leq", r"\leqslant"), ("≥", "⩾", r"\ge", r"\geq", r"\geqslant")
_SIGNS = {**dict.fromkeys(_LESS, "<="), **dict.fromkeys(_MORE, ">="), r"\lt": "<", r"\gt": ">"}
_HOLDS = {"<": operator.lt, ">": operator.gt, "<=": operator.le, ">=": operator.ge}
_INTEGER = re.compile(r"[-−–]?[0-9]{1,40}")


@dataclass(frozen=True)
class Sorting:
    """An answer is all numbers in order, separated by commas, spaces or true relations, as in -3 < 5 < 12."""

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

    def grade(self, answer: str) -> Verdict:
        text = _RELATION.sub(lambda m: f" {_SIGNS.get(m[0], m[0])} ", answer)
        items = re.split(r"[,;\s]+", _BRACKETS.sub(" ", text).strip(" \t\n,;."))
        relations = items[1::2] if len(items) > 2 and {*items[1::2]} <= _HOLDS.keys() else []
        items = items[::2] if relations else items
        if not all(_INTEGER.fullmatch(item) for item in items):
            return unparsed("not a list of integers")
        given = tuple(int(item.translate({ord("−"): "-", ord("–"): "-"})) for item in items)
        if not all(_HOLDS[sign](a, b) for sign, (a, b) in zip(relations, pairwise(given))):
            return unparsed("a relation between the numbers is false")
        if given == self.expected:
            return right("in order")
        return wrong("not in order" if sorted(given) == sorted(self.expected) else "different numbers")
