"""Compares results with the expected ones. Both are plain data, so a comparison runs no code of the program."""

from __future__ import annotations

import math
import re
from typing import Any

_PRINTED_NUMBER = re.compile(r"[+-]?(?:(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?|inf(?:inity)?)", re.ASCII | re.IGNORECASE)


def same_value(result: Any, expected: Any, float_tol: float) -> bool:
    """Whether the result has the type and value of the expected JSON value.

    Since JSON has fewer types, a tuple is accepted for a list and numbers as keys for their text. True is not 1, 2.0 is
    2, and NaN equals nothing. Numbers may differ by float_tol * max(1, |expected|).
    """
    if isinstance(expected, bool) or isinstance(result, bool) or expected is None or isinstance(expected, str):
        return type(result) is type(expected) and result == expected
    if isinstance(expected, int | float):
        return isinstance(result, int | float) and _same_number(result, expected, float_tol)
    if isinstance(expected, list):
        if not isinstance(result, list | tuple) or len(result) != len(expected):
            return False
        return all(same_value(r, e, float_tol) for r, e in zip(result, expected, strict=True))
    if not isinstance(result, dict) or len(result) != len(expected):
        return False
    by_text = {_key(key): value for key, value in result.items()}
    return by_text.keys() == expected.keys() and all(same_value(by_text[k], e, float_tol) for k, e in expected.items())


def _key(key: Any) -> Any:
    try:
        return str(key) if isinstance(key, int | float) and not isinstance(key, bool) else key
    except ValueError:  # an integer of thousands of digits
        return key


def _same_number(result: float, expected: float, float_tol: float) -> bool:
    if result == expected:
        return True
    try:  # the tolerance does not apply to infinities
        is_finite = math.isfinite(result) and math.isfinite(expected)
        return is_finite and abs(result - expected) <= float_tol * max(1.0, abs(expected))
    except OverflowError:  # an integer beyond every float
        return False


def same_output(output: str, expected: str, float_tol: float) -> bool:
    """Whether both have the same lines, ignoring spaces at the ends of lines and empty lines at the end of the text.

    With a tolerance the lines are compared word by word, and numbers may differ by it.
    """
    lines, expected_lines = _lines(output), _lines(expected)
    if lines == expected_lines:
        return True
    if not float_tol or len(lines) != len(expected_lines):
        return False
    return all(_same_words(line.split(), e.split(), float_tol) for line, e in zip(lines, expected_lines))


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.replace("\r\n", "\n").rstrip().split("\n")]


def _same_words(words: list[str], expected: list[str], float_tol: float) -> bool:
    return len(words) == len(expected) and all(
        word == e or _same_as_numbers(word, e, float_tol) for word, e in zip(words, expected)
    )


def _same_as_numbers(word: str, expected: str, float_tol: float) -> bool:
    number, expected_number = _number(word), _number(expected)
    return number is not None and expected_number is not None and _same_number(number, expected_number, float_tol)


def _number(word: str) -> float | None:
    """The printed number, None for any other word. Excludes texts that float() accepts but programs do not print (1_0,
    digits of other scripts), and numbers beyond the range of floats."""
    if not _PRINTED_NUMBER.fullmatch(word):
        return None
    number = float(word)
    return number if math.isfinite(number) or word[-1].isalpha() else None
