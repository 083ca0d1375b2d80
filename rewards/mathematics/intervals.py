"""Sets of real numbers as unions of intervals: 1 < x < 2 equals (1, 2), and [-3, 2) with {2} equals [-3, 2]."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import reduce

import mpmath

from rewards.mathematics.algebra import real_value
from rewards.mathematics.evaluation import Undefined, Value, field
from rewards.mathematics.expression import TooLarge, Unreadable
from rewards.mathematics.latex_parser import parse
from rewards.mathematics.structure import elements, enclosed, split

MARKS = (r"\cup", "<", ">", r"\le", r"\ge", r"\ne", r"\setminus", r"\mathbb", r"\infty")
_RELATIONS = ("<", ">", r"\le", r"\ge", r"\ne", "=")
_FLIPPED = {"=": "=", "<": ">", ">": "<", r"\le": r"\ge", r"\ge": r"\le", r"\ne": r"\ne"}
_VARIABLE = re.compile(r"[A-Za-z](?:_\{?\w\}?)?|\\(?:alpha|beta|theta|lambda|mu|phi)")
_MEMBER = re.compile(r"([A-Za-z](?:_\{?\w\}?)?|\\theta)\s*\\in(?![A-Za-z])\s*")
_BUILDER = re.compile(r"([A-Za-z])\s*(?:\\in\s*\\mathbb\s*\{R\}|\\in\s*\\mathbb R)?\s*[|:]\s*(.*)")
_REALS = re.compile(r"\\mathbb ?(?:\{R\}|R)|(?:\\text\{ ?)?all real(?:s| numbers)(?: ?\})?", re.IGNORECASE)
_REALS_WITHOUT = re.compile(r"\\mathbb ?(?:\{R\}|R) ?- ?(?=[(\[\\])")
_OR, _AND = (re.compile(rf"\\text\{{ ?,? ?{word} ?\}}|(?<![A-Za-z\\{{]){word}(?![A-Za-z}}])") for word in ("or", "and"))
_MODULUS = re.compile(r"\| ?([A-Za-z]) ?(?:([+-])([^|]+))?\|")
_DIGITS = 300  # of an endpoint, so that 10^{30} and 10^{30} + 1 differ
_CLOSE = field(_DIGITS).context.mpf(10) ** -200
_INFINITY = mpmath.inf


@dataclass(frozen=True)
class Interval:
    low: Value
    low_closed: bool
    high: Value
    high_closed: bool


@dataclass(frozen=True)
class RealSet:
    pieces: tuple[Interval, ...]
    variable: str = ""  # the variable of an inequality, if any


_EVERYTHING = (Interval(-_INFINITY, False, _INFINITY, False),)


class NotASet(ValueError):
    """The text is not a set of real numbers with constant endpoints."""


def real_set(text: str) -> RealSet:
    """The set that an interval, a union, an inequality or a finite set denotes. Raises NotASet for any other text."""
    text = text.strip()
    member = _MEMBER.match(text)
    if member:
        return RealSet(real_set(text[member.end() :]).pieces, member[1])
    if _REALS.fullmatch(text):
        return RealSet(_EVERYTHING)
    union = split(text, (r"\cup",))[0]
    if len(union) > 1:
        return _union([real_set(part) for part in union])
    without = split(_REALS_WITHOUT.sub(r"\\mathbb{R}\\setminus ", text), (r"\setminus",))[0]
    if len(without) == 2:
        return RealSet(_merged(_complement(real_set(without[1]).pieces, real_set(without[0]).pieces)))
    brackets = enclosed(text)
    if brackets:
        return _bracketed(text, brackets)
    return _alternatives(text)


def same_set(answer: RealSet, reference: RealSet) -> bool:
    if answer.variable and reference.variable and answer.variable != reference.variable:
        return False
    return len(answer.pieces) == len(reference.pieces) and all(
        a.low_closed == r.low_closed
        and a.high_closed == r.high_closed
        and _near(a.low, r.low)
        and _near(a.high, r.high)
        for a, r in zip(answer.pieces, reference.pieces)
    )


def _alternatives(text: str) -> RealSet:
    """The set of inequalities joined by "or", "and" or a comma. A comma means "and" unless the intersection would be
    empty: x > 1, x < 2 means "and", while x < 1, x > 2 can only mean "or"."""
    for word in (_OR, _AND, re.compile(",")):
        parts = [part for part in word.split(text) if part.strip(" ,")]
        if len(parts) < 2:
            continue
        sets = [real_set(part.strip(" ,")) for part in parts]
        joined = _union(sets)
        if word is not _OR:
            common = reduce(_intersection, [each.pieces for each in sets])
            joined = RealSet(_merged(common), joined.variable) if common or word is _AND else joined
        if any(each.pieces == joined.pieces for each in sets) and _EVERYTHING not in (each.pieces for each in sets):
            raise NotASet("one part implies the other")  # x > 3 or x > 5 is a hedge
        return joined
    return _inequality(text)


def _bracketed(text: str, brackets: tuple[str, str, str]) -> RealSet:
    opening, inside, closing = brackets
    if opening == "\\{":
        builder = _BUILDER.fullmatch(inside)
        if builder:
            return real_set(builder[2])
        found = elements(text)
        points = sorted(_end(item) for item in (found.items if found else ()))
        return RealSet(_merged([Interval(point, True, point, True) for point in points]))
    ends = split(inside, (",", ";"))[0]
    if len(ends) != 2 or opening not in "([" or closing not in ")]":
        raise NotASet(text)
    low, high = map(_end, ends)
    if low > high:
        raise NotASet(text)
    return RealSet((Interval(low, opening == "[", high, closing == "]"),))


def _inequality(text: str) -> RealSet:
    sides, relations = split(text, _RELATIONS)
    named = [index for index, side in enumerate(sides) if _VARIABLE.fullmatch(side) and side not in ("e", "i")]
    if len(relations) == 1 and "|" in text:
        return _around(sides, relations[0])
    if not relations or len(named) != 1 or len(sides) > 3:
        raise NotASet(text)
    pieces = _EVERYTHING
    for index, relation in enumerate(relations):
        if named[0] not in (index, index + 1):
            raise NotASet(text)
        bound = _end(sides[index + 1] if named[0] == index else sides[index])
        pieces = _intersection(pieces, _half(relation if named[0] == index else _FLIPPED[relation], bound))
    return RealSet(_merged(pieces), sides[named[0]])


def _around(sides: list[str], relation: str) -> RealSet:
    """The set of an inequality with an absolute value: |x - 3| < 2 is (1, 5), and |x - 3| > 2 is its outside."""
    if _MODULUS.fullmatch(sides[1]):
        sides, relation = sides[::-1], _FLIPPED[relation]
    modulus = _MODULUS.fullmatch(sides[0])
    if not modulus or relation == r"\ne":
        raise NotASet("not an inequality with one absolute value")
    offset, radius = _end(modulus[3] or "0"), _end(sides[1])
    centre = offset if modulus[2] == "-" else -offset
    if not 0 < radius < _INFINITY:
        raise NotASet("not an inequality with one absolute value")
    above, below = _half(relation, centre + radius), _half(_FLIPPED[relation], centre - radius)
    inside = relation in ("<", r"\le")
    return RealSet(_intersection(above, below) if inside else _merged(above + below), modulus[1])


def _half(relation: str, bound: Value) -> tuple[Interval, ...]:
    below = Interval(-_INFINITY, False, bound, relation == r"\le")
    above = Interval(bound, relation == r"\ge", _INFINITY, False)
    point = Interval(bound, True, bound, True)
    if relation == "=":
        return (point,)
    return {"<": (below,), r"\le": (below,), ">": (above,), r"\ge": (above,), r"\ne": (below, above)}[relation]


def _end(text: str) -> Value:
    sign = re.fullmatch(r"([+-]?)\s*\\infty", text.strip())
    if sign:
        return -_INFINITY if sign[1] == "-" else _INFINITY
    try:
        return real_value(parse(text), _DIGITS)
    except (Unreadable, TooLarge, Undefined) as error:
        raise NotASet(str(error)) from error


def _union(sets: list[RealSet]) -> RealSet:
    names = {each.variable for each in sets if each.variable}
    if len(names) > 1:
        raise NotASet("several variables")
    return RealSet(_merged([piece for each in sets for piece in each.pieces]), next(iter(names), ""))


def _merged(pieces: list[Interval] | tuple[Interval, ...]) -> tuple[Interval, ...]:
    """The pieces sorted, with those that overlap or touch merged."""
    merged: list[Interval] = []
    for piece in sorted(pieces, key=lambda p: (p.low, not p.low_closed)):
        last = merged[-1] if merged else None
        touches = last is not None and _near(piece.low, last.high) and (piece.low_closed or last.high_closed)
        if last is None or not (touches or (piece.low < last.high and not _near(piece.low, last.high))):
            merged.append(piece)
            continue
        end = max((last.high, last.high_closed), (piece.high, piece.high_closed))
        if _near(last.high, piece.high):
            end = (last.high, last.high_closed or piece.high_closed)
        merged[-1] = Interval(last.low, last.low_closed, *end)
    return tuple(merged)


def _complement(pieces: tuple[Interval, ...], whole: tuple[Interval, ...]) -> tuple[Interval, ...]:
    for piece in pieces:
        below = Interval(-_INFINITY, False, piece.low, not piece.low_closed)
        above = Interval(piece.high, not piece.high_closed, _INFINITY, False)
        whole = _intersection(whole, (below, above))
    return whole


def _intersection(first: tuple[Interval, ...], second: tuple[Interval, ...]) -> tuple[Interval, ...]:
    common = []
    for a in first:
        for b in second:
            low = max((a.low, not a.low_closed), (b.low, not b.low_closed))
            high = min((a.high, a.high_closed), (b.high, b.high_closed))
            if low[0] < high[0] or (low[0] == high[0] and not low[1] and high[1]):
                common.append(Interval(low[0], not low[1], high[0], high[1]))
    return tuple(common)


def _near(a: Value, b: Value) -> bool:
    return a == b or (mpmath.isfinite(a) and mpmath.isfinite(b) and abs(a - b) <= _CLOSE * max(abs(a), abs(b)))
