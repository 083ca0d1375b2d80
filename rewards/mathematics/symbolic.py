"""Compares with math-verify, the last resort for references that no other module can read. The only file that imports
it.

Import this file in a worker process only: the import takes 0.6 s, and an evaluation can take unbounded time and memory.
math-verify decides nothing else, because it drops text that it cannot read: it finds 13 in 1'3 and 5 in 5".
"""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import accumulate
from typing import Any

import math_verify
from latex2sympy2_extended import latex2sympy
from latex2sympy2_extended.latex2sympy2 import ConversionConfig
from sympy.core.cache import clear_cache

from rewards.verdict import Verdict, right, unparsed, wrong

_CLEAR_EVERY = 500  # comparisons; sympy's caches would grow throughout the run
_MAX_LENGTH = 200  # the parser needs seconds for a hundred brackets or bars
_MAX_DEPTH = 10
_CONVERSION = ConversionConfig(lowercase_symbols=False)
# Notations that sympy would evaluate at any cost, or that its parser reads differently from mathematical convention.
_REFUSED = re.compile(
    r"\d{100}|!|\\[dt]?binom"
    r"|\^\s*\{?[^{}]*(?:\d{3}|\^)|[)}\]]\s*\^\s*\{?\s*-?\d{2}"  # a large or a stacked exponent
    r"|(?:\^[^^]*){6}"
    r"|\\(?:prod|sum|int|iint|oint|lim)(?![A-Za-z])"
    r"|\\infty|\d\s+\d|\^\s*\{?\s*\\?(?:T|top|prime|text)(?![A-Za-z])"
    r"|[^\w\s\\{}()\[\]^+\-*/=<>|!,.&:]"
)
_NAMES = re.compile(r"\\[A-Za-z]+|[A-Za-z]")
_ARITHMETIC = frozenset([r"\frac", r"\sqrt", r"\cdot", r"\times", r"\div", r"\pi"])
_num_compared = 0


def same(answer: str, reference: str) -> bool | None:
    """Whether math-verify finds both equal; None if it cannot read one of them completely.

    Both must use the same names, because sympy evaluates the gcd(a, b) of two symbols to 1.
    """
    global _num_compared
    if not (_is_harmless(answer) and _is_harmless(reference)) or _names(answer) != _names(reference):
        return None
    _num_compared += 1
    if _num_compared % _CLEAR_EVERY == 0:
        clear_cache()
    expected, given = _read(reference), _read(answer)
    if expected is None or given is None:
        return None
    # No timeout of math-verify: its alarm works in the main thread only and would replace that of the worker.
    return bool(math_verify.verify(expected, given, timeout_seconds=None, strict=True))


def _is_harmless(text: str) -> bool:
    depths = accumulate((char in "([{") - (char in ")]}") for char in text)
    return len(text) <= _MAX_LENGTH and max(depths, default=0) <= _MAX_DEPTH and not _REFUSED.search(text)


def _names(text: str) -> set[str]:
    return set(_NAMES.findall(text)) - _ARITHMETIC


def _read(text: str) -> Any:
    """The sympy object that `text` denotes, or None. Calls the parser directly, since math_verify.parse would search
    the text for a part that it can read."""
    try:
        return latex2sympy(text, normalization_config=None, conversion_config=_CONVERSION)
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001  the parser raises a bare Exception for a syntax error, and any type for odd text
        return None


def load_alone() -> Callable[[str, str], Verdict]:
    """Builds a grading function for a second opinion: math-verify on its own, which also extracts the answer. A worker
    calls this once."""
    return _grade_alone


def _grade_alone(completion: str, reference: str) -> Verdict:
    expected = math_verify.parse(f"\\boxed{{{reference}}}", parsing_timeout=0)
    given = math_verify.parse(completion, parsing_timeout=0)
    if not expected or not given:
        return unparsed("math-verify finds no answer")
    equal = math_verify.verify(expected, given, timeout_seconds=None)
    return (right if equal else wrong)(f"math-verify reads {given[-1]}")
