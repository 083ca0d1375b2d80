"""Converts quantities in several units, such as 1 hour 30 minutes or 5 ft 3 in, to the smallest of their units."""

from __future__ import annotations

import re
from fractions import Fraction
from itertools import pairwise

from rewards.mathematics.comparison import Comparison
from rewards.mathematics.quantity import read_unit
from rewards.verdict import Verdict

_TEXT = re.compile(r"\\text\s*\{([^{}]*)\}")
_PART = r"(\d+(?:\.\d+)?) ?([A-Za-z]+)\.?"
_COMPOUND = re.compile(rf"{_PART}(?: ?,)?(?: and)? ?{_PART}(?:(?: ?,)?(?: and)? ?{_PART})?")


def compare_compounds(answer: str, reference: str, comparison: Comparison) -> Verdict | None:
    given, expected = _in_smallest_unit(answer), _in_smallest_unit(reference)
    if given is None and expected is None:
        return None
    return comparison.compare(given or answer, expected or reference)


def _in_smallest_unit(text: str) -> str | None:
    """The sum in the last unit, if each unit has the dimension of the previous one and is smaller; else None."""
    if "\\" in text:
        text = " ".join(_TEXT.sub(r" \1 ", text).split())
    match = _COMPOUND.fullmatch(text)
    if match is None:
        return None
    found = [part for part in match.groups() if part is not None]
    amounts, names = found[::2], found[1::2]
    units = [unit for unit in map(read_unit, names) if unit is not None and unit.known]
    if len(units) < len(names) or any(a.dimensions != b.dimensions or a.size <= b.size for a, b in pairwise(units)):
        return None
    total = sum((Fraction(n) * unit.size for n, unit in zip(amounts, units)), Fraction(0)) / units[-1].size
    return rf"\frac{{{total.numerator}}}{{{total.denominator}}}\text{{ {names[-1]}}}"
