"""Base conversion: a natural number given in one base is to be written in another."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from string import ascii_lowercase, digits
from typing import Any
from unicodedata import normalize

from rewards.puzzles.puzzle import integer, word
from rewards.verdict import BadReference, Verdict, right, unparsed, wrong

_DIGITS = digits + ascii_lowercase
_PREFIXES = {2: "0b", 8: "0o", 16: "0x"}  # the letter is not a digit of the base
# Accepts 2f, \text{2F}, (2f)_{16} and 2f (base 16), as written in textbooks.
_MARKUP = re.compile(r"\\(?:text|texttt|mathrm)(?![A-Za-z])|[{}()]")
_NUMERAL = re.compile(
    r"(?P<digits>[0-9A-Za-z]{1,200}) ?(?:(?:_|(?:in )?base[ -]) ?(?:base )?(?P<base>[0-9]{1,2}))?", re.IGNORECASE
)
_SUBSCRIPT = re.compile("[₀-₉]+")


@dataclass(frozen=True)
class BaseConversion:
    """A number to write in base `to_base`.

    Digits after 9 are a, b, c ... in either case. Leading zeros are accepted, as is the correct base as a subscript,
    suffix or prefix.
    """

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

    def grade(self, answer: str) -> Verdict:
        text = _SUBSCRIPT.sub(lambda m: "_" + normalize("NFKC", m[0]), answer.strip(" \t\n$."))
        numeral = _NUMERAL.fullmatch(" ".join(_MARKUP.sub(" ", text).split()))
        if numeral is None:
            return unparsed("not the digits of one number")
        if numeral["base"] not in (None, str(self.to_base)):
            return wrong(f"written in base {numeral['base']}")
        digits = numeral["digits"].lower().removeprefix(_PREFIXES.get(self.to_base, ""))
        if _value(digits, self.to_base) != self.value:
            return wrong("a different number")
        return right("the same number")


def written(value: int, base: int) -> str:
    """The digits of a natural number in a base from 2 to 36."""
    numeral = ""
    while value or not numeral:
        value, digit = divmod(value, base)
        numeral = _DIGITS[digit] + numeral
    return numeral


def _value(numeral: str, base: int) -> int | None:
    """The value of a numeral, None if a digit is too large for the base or there are no digits."""
    return int(numeral, base) if numeral and all(digit in _DIGITS[:base] for digit in numeral) else None
