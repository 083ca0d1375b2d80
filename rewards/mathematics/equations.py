"""Equations, chains of equations and inequalities."""

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
_EQUALS = ("=", r"\in")  # x in [1, 3] names the set as x = 5 names the number
_ORDERS = {"<": "<", ">": "<", r"\le": r"\le", r"\ge": r"\le", r"\ne": r"\ne"}
_REVERSED = (">", r"\ge")


def compare_equations(answer: str, reference: str, comparison: Comparison) -> Verdict | None:
    """x = 5 for 5; every other side of a chain must be true; an equation may be any multiple of the reference."""
    sides, expected = split(answer, _EQUALS)[0], split(reference, _EQUALS)[0]
    if (len(sides) == 1 and len(expected) == 1) or _is_list(answer) or _is_list(reference):
        return None
    if not all(sides):
        return wrong("half an equation")
    labels, values = _unwrap(sides, _is_label)
    if any(_COORDINATES.fullmatch(label) for label in labels) and elements(values[-1]) is None:
        return wrong("coordinates are no single value")
    if len(expected) == 1:
        return _compare_chain(values, reference, comparison)
    expected_labels, expected_values = _unwrap(expected, is_name)
    if expected_labels and expected_values and (len(sides) == 1 or _same_labels(labels, expected_labels)):
        return _compare_chain(values or sides, expected_values[-1], comparison)
    if len(sides) == 1 and _is_ratio_of_names(expected[0]) and not any(map(has_unknowns, expected[1:])):
        return _compare_chain(sides, expected[-1], comparison)
    if len(sides) == 2 and len(expected) == 2:
        return _compare_curves(sides, expected, comparison)
    return wrong("other equation")


def compare_inequalities(answer: str, reference: str, comparison: Comparison) -> Verdict | None:
    """Inequalities, intervals and unions as sets of numbers; in several variables up to a positive factor."""
    if not any(mark in answer or mark in reference for mark in MARKS):
        return None
    try:
        return (
            right("the same set") if same_set(real_set(answer), real_set(reference)) else wrong("other set of numbers")
        )
    except NotASet:
        pass
    given, expected = oriented(answer), oriented(reference)
    if given is not None and expected is not None:
        return _compare_orders(given, expected, comparison)
    unions = split(answer, (r"\cup",))[0], split(reference, (r"\cup",))[0]
    if len(unions[0]) > 1 or len(unions[1]) > 1:
        same = len(unions[0]) == len(unions[1]) and comparison.all_equal(sorted(unions[0]), sorted(unions[1]))
        return right("the same union") if same else wrong("other union")
    return wrong("no such relation") if given is not None or expected is not None else None


def is_name(side: str) -> bool:
    """What a value may be the value of: x, f(x), AB, angle ABC, cos(1)."""
    if _FUNCTION.fullmatch(side) or _NAMED.fullmatch(side) or _COORDINATES.fullmatch(side):
        return True
    try:
        return parse(side).op in ("var", "apply")
    except (Unreadable, TooLarge):
        return False


def is_bare_name(side: str) -> bool:
    """A name that says nothing of its value."""
    return is_name(side) and _operations(side).isdisjoint(FUNCTIONS)


def has_unknowns(side: str) -> bool:
    """Letters, or functions of which nothing is known: 2x, f(0)+1."""
    return not _operations(quantity(side).value).isdisjoint(("var", "apply"))


def _is_label(side: str) -> bool:
    """A name, or what a question may ask for of several: a+b, a/b. (x+y+z = 0 as a reference is a plane.)"""
    return is_name(side) or _operations(_as_letters(side)) <= {"var", "add", "neg", "mul", "frac", "div", "apply"}


def _is_ratio_of_names(side: str) -> bool:
    """a/b or AB/CD: beside a number it is what a question asked for, and hardly a line. (x+y = 5 may be one.)"""
    found = _operations(side)
    return not found.isdisjoint(("frac", "div")) and "var" in found and found <= {"var", "mul", "frac", "div"}


def _as_letters(side: str) -> str:
    r"""\bar{x} and \vec{x} as x, and words that name something, as in \text{Area of } ABC, as one more factor."""
    return _PHRASE.sub(lambda m: "w " if _is_plain(m[1].strip(" ,:")) else m[0], _DECORATED.sub(r" \1 ", side))


def _is_plain(words: str) -> bool:
    """Words that name something and do nothing to its value, as twice or half would."""
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
    """The labels of a chain and its values. The last of several names is a value: y = x."""
    labels = [side for side in sides if is_label(side)]
    values = [side for side in sides if not is_label(side)]
    return (labels, values) if values else (sides[:-1], sides[-1:])


def _same_labels(first: list[str], second: list[str]) -> bool:
    """The same names in any order; y may stand for f(x)."""
    if first == ["y"] and len(second) == 1 and _FUNCTION.fullmatch(second[0]):
        return True
    return sorted(map(text_key, first)) == sorted(map(text_key, second))


def _compare_chain(values: list[str], reference: str, comparison: Comparison) -> Verdict | None:
    """Every value must be the reference, and one of them worked out: 2 * 3 = 6 and 6 = 2 * 3."""
    if len(values) > 1 and not all(
        comparison.compare(value, reference, unevaluated=True).is_correct for value in values
    ):
        return wrong("a side of the chain is not the answer")
    return max((comparison.compare(value, reference) for value in values), key=lambda verdict: verdict.is_correct)


def _compare_curves(sides: list[str], expected: list[str], comparison: Comparison) -> Verdict:
    try:
        same = proportional(_difference(sides), _difference(expected)) != 0
        return right("the same equation") if same else wrong("other equation")
    except Unreadable:
        same = comparison.all_equal(sides, expected) or comparison.all_equal(sides[::-1], expected)
        return right("the same sides") if same else wrong("other equation")
    except TooLarge:
        return wrong("too large to evaluate")


def _difference(sides: list[str]) -> Node:
    return Node("add", (parse(sides[0]), Node("neg", (parse(sides[1]),))))


def oriented(text: str) -> tuple[list[str], list[str]] | None:
    """The sides and relations of an inequality, turned so that every relation points to the larger side."""
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
        return wrong("other relation")
    if comparison.all_equal(given[0], expected[0]):
        return right("the same inequality")
    if len(given[0]) == 2 and len(expected[0]) == 2:
        try:
            sign = proportional(_difference(given[0]), _difference(expected[0]))
        except (Unreadable, TooLarge):
            sign = 0
        if sign > 0 or (sign and given[1] == [r"\ne"]):
            return right("the same inequality")
    return wrong("other inequality")
