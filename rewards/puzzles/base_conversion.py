"""A natural number written in one base, to be written in another."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from string import ascii_lowercase, digits
from typing import Any

from rewards.puzzles.puzzle import integer, word
from rewards.verdict import BadReference, Verdict, right, unparsed, wrong

_DIGITS = digits + ascii_lowercase
# 2f, \text{2F}, (2f)_{16}: the base may stand below, as it does in a textbook.
_NUMERAL = re.compile(
    r"\(?\s*(?:\\(?:text|texttt|mathrm)\s*\{\s*)?(?P<digits>[0-9A-Za-z]{1,200})\s*\}?\s*\)?"
    r"\s*(?:_\s*\{?\s*(?P<base>[0-9]{1,2})\s*\}?)?"
)


@dataclass(frozen=True)
class BaseConversion:
    """The digits after 9 are a, b, c ... in either case; zeros in front and a subscript with the right base are fine."""

    value: int
    to_base: int

    @classmethod
    def read(cls, reference: Mapping[str, Any]) -> BaseConversion:
        from_base, to_base = (integer(reference.get(f), f, 2, 36) for f in ("from_base", "to_base"))
        numeral = word(reference, "number")
        if not re.fullmatch("[0-9a-z]{1,50}", numeral):
            raise BadReference("number must be at most 50 digits, those after 9 as small letters")
        value = _value(numeral, from_base)
        if value is None:
            raise BadReference(f"number is {numeral}: it has a digit that base {from_base} does not have")
        return cls(value, to_base)

    @property
    def solution(self) -> str:
        return written(self.value, self.to_base)

    def judge(self, answer: str) -> Verdict:
        numeral = _NUMERAL.fullmatch(answer.strip(" \t\n$."))
        if numeral is None:
            return unparsed("not the digits of one number")
        if numeral["base"] not in (None, str(self.to_base)):
            return wrong(f"written in base {numeral['base']}")
        if _value(numeral["digits"].lower(), self.to_base) != self.value:
            return wrong("another number")
        return right("the same number")


def written(value: int, base: int) -> str:
    """The digits of a natural number."""
    numeral = ""
    while value or not numeral:
        value, digit = divmod(value, base)
        numeral = _DIGITS[digit] + numeral
    return numeral


def _value(numeral: str, base: int) -> int | None:
    """None where a digit is too large for the base."""
    return int(numeral, base) if all(digit in _DIGITS[:base] for digit in numeral) else None
