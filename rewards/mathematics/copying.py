r"""Detects answers that only repeat an expression of the question: \sqrt{242} for 11\sqrt{2} is equal but solves
nothing.

If such answers were rewarded, a policy would first learn to box an expression of the problem: one in 32 training
problems of MATH contains an expression that equals its reference.
"""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache
from math import prod
from typing import Any

from rewards.mathematics.equations import oriented
from rewards.mathematics.expression import Node, TooLarge, Unreadable
from rewards.mathematics.latex_parser import parse
from rewards.mathematics.normalise import normalise, text_key
from rewards.mathematics.quantity import quantity
from rewards.mathematics.structure import elements, split

Form = tuple[Any, ...]  # canonical form: texts with equal forms are the same expression, up to notation

_MAX_PROMPT = 20_000  # characters; the rest of a longer prompt is ignored
_MAX_EXPRESSION = 500
_SPAN = re.compile(
    r"\$\$([^$]+)\$\$|(?<!\\)\$((?:\\.|[^$\\])+)\$|\\\[((?:(?!\\[\[\]])[\s\S])+)\\\]|\\\(((?:(?!\\[()])[\s\S])+)\\\)"
)
# Boundaries of expressions in running text: words, math delimiters and punctuation.
_BETWEEN = re.compile(
    r"(?<![\\A-Za-z])(?!(?:arc)?(?:sin|cos|tan)(?![a-z])|(?:sqrt|log|ln|exp|pi)(?![a-z]))[A-Za-z]{2,}"
    r"|(?<!\\)\$|\\[\[\]()]|[.,:](?=\s|$)|[;?!](?=\s|$)|\n"
)
_RELATIONS = ("=", "<", ">", r"\le", r"\ge", r"\ne", r"\approx", ",", ";", "?")
_SCIENTIFIC = re.compile(r"10\s*\^|\d[eE][+-]?\d")
_NAME = re.compile(r"[A-Za-z](?:_\{?\w+\}?)?")
_NOTHING_TO_WORK_OUT = re.compile(r"(?:\\text|[A-Za-z'(){}.,\s])*")  # words, a choice letter, a name
_NEUTRAL = {"add": 0, "mul": 1}  # neutral elements
_ONE = ("num", 1, "")


def is_copied(answer: str, reference: str, prompt: str) -> bool:
    """Whether the normalised answer is an expression of the prompt, while the reference has another form."""
    if _NOTHING_TO_WORK_OUT.fullmatch(answer):
        return False
    form = _form(answer)
    return form != _form(reference) and form in _expressions(prompt)


@lru_cache(maxsize=256)  # the completions of a group share their prompt
def _expressions(prompt: str) -> frozenset[Form]:
    """The forms of all math spans of the prompt, of the text between words, and of the sides of equations in either."""
    prompt = prompt[:_MAX_PROMPT]
    spans = [next(filter(None, match.groups()), "") for match in _SPAN.finditer(prompt)]
    pieces = {span for span in spans + _BETWEEN.split(prompt) if 0 < len(span) <= _MAX_EXPRESSION}
    wholes = {normalise(piece) for piece in pieces}
    sides = {side for whole in wholes for side in split(whole, _RELATIONS)[0]}
    return frozenset(_form(text) for text in wholes | sides if text)


def _form(text: str) -> Form:
    """The canonical form. It ignores units, the name in x = 5, spacing, brackets, factors of 1, and the order of sums,
    products and lists."""
    sides, relations = split(text, ("=",))
    values = {_form(side) for side in sides if side and not _NAME.fullmatch(side)} if relations else set[Form]()
    if values:
        return next(iter(values)) if len(values) == 1 else ("equation", *sorted(values, key=repr))
    directed = oriented(text)
    if directed is not None:
        return ("relation", *directed[1], *map(_form, directed[0]))
    found = elements(text)
    if found is not None and found.items:
        items = [_form(item) for item in found.items]
        if found.kind == "tuple":
            return ("tuple", found.brackets, *items)
        return items[0] if len(items) == 1 else ("list", *sorted(items, key=repr))
    return _form_of_value(text)


def _form_of_value(text: str) -> Form:
    """The form of a single value. Percent and degree signs are part of it, since they are factors."""
    found = quantity(text)
    is_degrees = found.unit is not None and text.endswith((r"\circ", r"\circ}"))
    marks = (found.percent, is_degrees, found.scale, _SCIENTIFIC.search(text) is not None)
    try:
        return (*marks, _arranged(parse(found.value)))
    except (Unreadable, TooLarge):
        return (*marks, text_key(text))


def _arranged(node: Node) -> Form:
    """The tree with sums and products sorted and the sign of a product moved to the front."""
    if node.op in ("num", "var", "const"):
        return node.op, node.value, node.name
    parts = [_arranged(part) for part in node.args]
    if node.op == "apply":
        return "apply", node.name, *parts
    op = "frac" if node.op == "div" else node.op
    if op == "neg":
        return _negated(parts[0])
    if op not in ("mul", "frac"):
        return _joined(op, parts)
    joined = _joined(op, [_negated(part) if part[0] == "neg" else part for part in parts])
    return _negated(joined) if sum(part[0] == "neg" for part in parts) % 2 else joined


def _negated(form: Form) -> Form:
    return form[1] if form[0] == "neg" else ("neg", form)


def _joined(op: str, parts: list[Form]) -> Form:
    if op in ("frac", "pow") and parts[1] == _ONE:
        return parts[0]
    if op == "pow" and parts[1][:2] == ("frac", _ONE):
        return "root", parts[0], parts[1][2]
    exponent = _number(parts[1]) if op == "pow" else None
    if exponent is not None and exponent.numerator == 1:  # 0.5
        return "root", parts[0], ("num", Fraction(exponent.denominator), "")
    if op not in _NEUTRAL:
        return (op, *parts)
    flat = [inner for part in parts for inner in (part[1:] if part[0] == op else (part,))]
    flat = [part for part in flat if _number(part) != _NEUTRAL[op]] or flat[:1]
    numbers = [number for number in map(_number, flat) if number is not None]
    if (sum(numbers) if op == "add" else prod(numbers)) == _NEUTRAL[op]:
        flat = [part for part in flat if _number(part) is None] or [("num", Fraction(_NEUTRAL[op]), "")]
    return flat[0] if len(flat) == 1 else (op, *sorted(flat, key=repr))


def _number(form: Form) -> Fraction | None:
    """The value of a number, a fraction of numbers or the negative of either; else None."""
    if form[0] == "num":
        return form[1]
    inner = [_number(part) for part in form[1:]] if form[0] in ("neg", "frac") else [None]
    if None in inner or (form[0] == "frac" and not inner[1]):
        return None
    return -inner[0] if form[0] == "neg" else inner[0] / inner[1]  # type: ignore[operator]
