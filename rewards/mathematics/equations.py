"""Stages for equations, chains of equations and inequalities."""

from __future__ import annotations

import re
from collections.abc import Callable

from rewards.mathematics.algebra import proportional
from rewards.mathematics.comparison import Comparison
from rewards.mathematics.expression import FUNCTIONS, Node, TooLarge, Unreadable, operations
from rewards.mathematics.intervals import MARKS, NotASet, real_set, same_set
from rewards.mathematics.latex_parser import parse
from rewards.mathematics.normalise import text_key
from rewards.mathematics.quantity import quantity, read_unit
from rewards.mathematics.structure import elements, split
from rewards.verdict import Verdict, right, wrong

_FUNCTION = re.compile(r"(?:[A-Za-z]|\\(?!frac|sqrt)[A-Za-z]+)(?:_\{?\w+\}?)?(?:\^\{-1\})?'*\s*\([^()]*\)")
_NAMED = re.compile(
    r"m? ?(?:\\(?:angle|triangle|overline|text|vec|measuredangle|hat)\s*)+\{?[A-Za-z][A-Za-z0-9 _']*\}?|[A-Z]{2,4}|\|[A-Z]{1,4}\||\[[A-Z]{3,6}\]"
)
_DECORATED = re.compile(r"\\(?:bar|hat|vec|tilde|overline|overrightarrow|widehat) ?\{? ?([A-Za-z]+) ?\}?")
_PHRASE = re.compile(r"\\text\{([^{}]*)\}")
_COORDINATES = re.compile(r"\( ?(?:[A-Za-z]|\\[a-z]+)(?:_\{?\w\}?)?(?: ?, ?(?:[A-Za-z]|\\[a-z]+)(?:_\{?\w\}?)?)+ ?\)")
_EQUALS = ("=", r"\in")  # x \in [1, 3] labels a set as x = 5 labels a number
_ORDERS = {"<": "<", ">": "<", r"\le": r"\le", r"\ge": r"\le", r"\ne": r"\ne"}
_REVERSED = (">", r"\ge")


def compare_equations(answer: str, reference: str, comparison: Comparison) -> Verdict | None:
    """Compares equations. x = 5 is accepted for 5; every side of a chain that is not a label must be true; an equation
    may be any multiple of the reference."""
    sides, expected = split(answer, _EQUALS)[0], split(reference, _EQUALS)[0]
    if (len(sides) == 1 and len(expected) == 1) or _is_list(answer) or _is_list(reference):
        return None
    if not all(sides):
        return wrong("a side of the equation is empty")
    labels, values = _unwrap(sides, _is_label)
    if any(_COORDINATES.fullmatch(label) for label in labels) and elements(values[-1]) is None:
        return wrong("a single value for several coordinates")
    if len(expected) == 1:
        return _compare_chain(values, reference, comparison)
    expected_labels, expected_values = _unwrap(expected, is_name)
    if expected_labels and expected_values and (len(sides) == 1 or _same_labels(labels, expected_labels)):
        return _compare_chain(values or sides, expected_values[-1], comparison)
    if len(sides) == 1 and _is_ratio_of_names(expected[0]) and not any(map(has_unknowns, expected[1:])):
        return _compare_chain(sides, expected[-1], comparison)
    if len(sides) == 2 and len(expected) == 2:
        return _compare_curves(sides, expected, comparison)
    return wrong("a different equation")


def compare_inequalities(answer: str, reference: str, comparison: Comparison) -> Verdict | None:
    """Compares inequalities, intervals and unions as sets of numbers, and inequalities in several variables up to a
    positive factor."""
    if not any(mark in answer or mark in reference for mark in MARKS):
        return None
    try:
        return (
            right("the same set")
            if same_set(real_set(answer), real_set(reference))
            else wrong("a different set of numbers")
        )
    except NotASet:
        pass
    given, expected = oriented(answer), oriented(reference)
    if given is not None and expected is not None:
        return _compare_orders(given, expected, comparison)
    unions = split(answer, (r"\cup",))[0], split(reference, (r"\cup",))[0]
    if len(unions[0]) > 1 or len(unions[1]) > 1:
        same = len(unions[0]) == len(unions[1]) and comparison.all_equal(sorted(unions[0]), sorted(unions[1]))
        return right("the same union") if same else wrong("a different union")
    return wrong("only one of the two is a relation") if given is not None or expected is not None else None


def is_name(side: str) -> bool:
    """Whether a side can name a value, as x, f(x), AB, angle ABC and cos(1) do."""
    if _FUNCTION.fullmatch(side) or _NAMED.fullmatch(side) or _COORDINATES.fullmatch(side):
        return True
    try:
        return parse(side).op in ("var", "apply")
    except (Unreadable, TooLarge):
        return False


def is_bare_name(side: str) -> bool:
    """Whether a side is a name that does not determine its value, unlike cos(1)."""
    return is_name(side) and _operations(side).isdisjoint(FUNCTIONS)


def has_unknowns(side: str) -> bool:
    """Whether a side contains variables or unknown functions, as 2x and f(0)+1 do."""
    return not _operations(quantity(side).value).isdisjoint(("var", "apply"))


def _is_label(side: str) -> bool:
    """Whether a side is a name, or a combination of names that a question may ask for, such as a+b or a/b.

    For answers only: x+y+z = 0 as a reference is a plane.
    """
    return is_name(side) or _operations(_as_letters(side)) <= {"var", "add", "neg", "mul", "frac", "div", "apply"}


def _is_ratio_of_names(side: str) -> bool:
    """Whether a side is a ratio such as a/b or AB/CD. Equated to a number it is a quantity that a question asked for,
    hardly the equation of a line (as x+y = 5 may be)."""
    found = _operations(side)
    return not found.isdisjoint(("frac", "div")) and "var" in found and found <= {"var", "mul", "frac", "div"}


def _as_letters(side: str) -> str:
    r"""The side with \bar{x} and \vec{x} as x, and with words that name something (\text{Area of } ABC) as a factor."""
    return _PHRASE.sub(lambda m: "w " if _is_plain(m[1].strip(" ,:")) else m[0], _DECORATED.sub(r" \1 ", side))


def _is_plain(words: str) -> bool:
    """Whether words name something without changing its value, unlike twice or half."""
    unit = read_unit(words)
    return unit is not None and not unit.numbers


def _operations(side: str) -> frozenset[str]:
    try:
        return operations(parse(side))
    except (Unreadable, TooLarge):
        return frozenset(["unreadable"])


def _is_list(text: str) -> bool:
    found = elements(text)
    return found is not None and found.kind == "list"


def _unwrap(sides: list[str], is_label: Callable[[str], bool]) -> tuple[list[str], list[str]]:
    """(labels, values) of a chain. If every side is a label, the last one is the value, as in y = x."""
    labels = [side for side in sides if is_label(side)]
    values = [side for side in sides if not is_label(side)]
    return (labels, values) if values else (sides[:-1], sides[-1:])


def _same_labels(first: list[str], second: list[str]) -> bool:
    """Whether both have the same names in any order. y may stand for f(x)."""
    if first == ["y"] and len(second) == 1 and _FUNCTION.fullmatch(second[0]):
        return True
    return sorted(map(text_key, first)) == sorted(map(text_key, second))


def _compare_chain(values: list[str], reference: str, comparison: Comparison) -> Verdict | None:
    """Compares a chain such as 2 * 3 = 6: every value must equal the reference, and one of them must be evaluated."""
    if len(values) > 1 and not all(
        comparison.compare(value, reference, unevaluated=True).is_correct for value in values
    ):
        return wrong("a side of the chain is not the answer")
    return max((comparison.compare(value, reference) for value in values), key=lambda verdict: verdict.is_correct)


def _compare_curves(sides: list[str], expected: list[str], comparison: Comparison) -> Verdict:
    try:
        same = proportional(_difference(sides), _difference(expected)) != 0
        return right("the same equation") if same else wrong("a different equation")
    except Unreadable:
        same = comparison.all_equal(sides, expected) or comparison.all_equal(sides[::-1], expected)
        return right("the same sides") if same else wrong("a different equation")
    except TooLarge:
        return wrong("too large to evaluate")


def _difference(sides: list[str]) -> Node:
    return Node("add", (parse(sides[0]), Node("neg", (parse(sides[1]),))))


def oriented(text: str) -> tuple[list[str], list[str]] | None:
    r"""(sides, relations) of an inequality with relations <, \le and \ne only; None for any other text. The order of
    the sides is reversed if the first relation is > or \ge."""
    sides, relations = split(text, tuple(_ORDERS))
    if not relations:
        return None
    if relations[0] in _REVERSED:
        sides, relations = sides[::-1], relations[::-1]
    return sides, [_ORDERS[relation] for relation in relations]


def _compare_orders(
    given: tuple[list[str], list[str]], expected: tuple[list[str], list[str]], comparison: Comparison
) -> Verdict:
    if given[1] != expected[1]:
        return wrong("a different relation")
    if comparison.all_equal(given[0], expected[0]):
        return right("the same inequality")
    if len(given[0]) == 2 and len(expected[0]) == 2:
        try:
            sign = proportional(_difference(given[0]), _difference(expected[0]))
        except (Unreadable, TooLarge):
            sign = 0
        if sign > 0 or (sign and given[1] == [r"\ne"]):
            return right("the same inequality")
    return wrong("a different inequality")
