r"""Recognises lists, tuples, sets and matrices, and splits a text at its top level, in time linear in its length."""

from __future__ import annotations

import re
from collections.abc import Container
from dataclasses import dataclass

_TOKEN = re.compile(r"\\(?:begin|end)\{[a-zA-Z*]*\}|\\[A-Za-z]+|\\.|[\s\S]")
_OPENING = {
    "(": ")",
    "[": "]",
    "{": "}",
    "\\{": "\\}",
    "\\langle": "\\rangle",
    "\\lfloor": "\\rfloor",
    "\\lceil": "\\rceil",
}
_CLOSING = frozenset(_OPENING.values())
_CONJUNCTION = re.compile(r"\\text\{\s*,?\s*(?:and|or)\s*,?\s*\}|(?<![A-Za-z\\{])(?:and|or)(?![A-Za-z}])")
_MATRIX = re.compile(r"\\begin\{([pbBvV]?matrix|smallmatrix|array)\}(?:\{[^{}]*\})?([\s\S]*)\\end\{\1\}")
_NAME_OF_SET = re.compile(r"(?:[A-Za-z](?:_\{?\w\}?)?|\([A-Za-z, ]+\))\s?(?:\\in|=)\s?(?=\\\{)")
_PLUS_OR_MINUS = re.compile(r"\\(pm|mp)(?![A-Za-z])")  # but not \pmod
_EMPTY_SETS = frozenset([r"\emptyset", r"\{\}", r"\{ \}", r"\text{empty set}", r"\text{the empty set}"])


@dataclass(frozen=True)
class Elements:
    """The elements of a list such as 1, 2, of a set such as {1, 2}, or of a tuple or interval such as (1, 2]."""

    kind: str  # list, set or tuple
    items: tuple[str, ...]
    brackets: str = ""


def split(text: str, separators: Container[str]) -> tuple[list[str], list[str]]:
    """The parts of `text` between separators that stand outside every bracket, and the separators found."""
    parts, found, depth, start = [], [], 0, 0
    for match in _TOKEN.finditer(text):
        token = match[0]
        if token in _OPENING or token.startswith(r"\begin"):
            depth += 1
        elif token in _CLOSING or token.startswith(r"\end"):
            depth -= 1
        elif depth == 0 and token in separators:
            parts.append(text[start : match.start()].strip())
            found.append(token)
            start = match.end()
    return [*parts, text[start:].strip()], found


def enclosed(text: str) -> tuple[str, str, str] | None:
    """(opening bracket, content, closing bracket) if one pair encloses the whole of `text`, else None. Brackets of
    different kinds may pair, as in [1, 2)."""
    depth, opening = 0, ""
    for match in _TOKEN.finditer(text):
        token = match[0]
        if token in _OPENING or token.startswith(r"\begin"):
            depth += 1
            opening = opening or token
        elif token in _CLOSING or token.startswith(r"\end"):
            depth -= 1
            if depth == 0 and match.end() != len(text):
                return None
            if depth == 0 and opening in _OPENING and token in _CLOSING:
                return opening, text[len(opening) : match.start()].strip(), token
        if not opening:
            return None
    return None


def elements(text: str) -> Elements | None:
    r"""The elements of a list, tuple or set, which may be named as in x \in \{1, 2\}; None for a single value. A value
    with \pm counts as two elements."""
    if text in _EMPTY_SETS:
        return Elements("set", ())
    named = _NAME_OF_SET.match(text)
    text = text[named.end() :] if named else text
    brackets = enclosed(text)
    if brackets and brackets[0] == "\\{":
        return Elements("set", _items(brackets[1]))
    if brackets and brackets[0] in ("(", "[", "\\langle") and text.count("\\pm") != 1:  # (\pm 1, 0) is two points
        inside = split(brackets[1], (",", ";"))[0]
        if len(inside) > 1:
            return Elements(
                "tuple", tuple(inside), (brackets[0] + brackets[2]).replace("\\langle", "(").replace("\\rangle", ")")
            )
    items = _items(text)
    return Elements("list", items) if len(items) > 1 else None


def factor_of_matrix(text: str) -> tuple[str, str]:
    """The factor before a matrix ("" if there is none), and the matrix."""
    before, begin, rest = text.partition("\\begin")
    factor = before.rstrip("([ ")
    without_factor = before[len(factor) :].strip() + begin + rest
    factor = factor.removesuffix("\\cdot").removesuffix("\\times").strip()
    return "-1" if factor == "-" else factor, without_factor


def matrix(text: str) -> list[list[str]] | None:
    """The cells of a matrix with any kind of brackets; None for any other text, including a determinant."""
    brackets = enclosed(text)
    match = _MATRIX.fullmatch(brackets[1] if brackets else text)
    if not match or match[1] in ("vmatrix", "Vmatrix") or "\\begin" in match[2]:
        return None
    rows = [row for row in split(match[2], ("\\\\",))[0] if row]
    return [split(row, ("&",))[0] for row in rows]


def _items(text: str) -> tuple[str, ...]:
    parts = split(_CONJUNCTION.sub(" , ", text), (",", ";"))[0]
    return tuple(value for part in parts if part for value in _both_signs(part))


def _both_signs(text: str) -> list[str]:
    if not _PLUS_OR_MINUS.search(text):
        return [text]
    plus = _PLUS_OR_MINUS.sub(lambda m: "+" if m[1] == "pm" else "-", text)
    minus = _PLUS_OR_MINUS.sub(lambda m: "-" if m[1] == "pm" else "+", text)
    return [plus, minus]
