"""Compares single values: units and percent signs first, then exact rationals, then algebra, then math-verify."""

from __future__ import annotations

import re
from fractions import Fraction

from rewards.math_policy import MathPolicy
from rewards.mathematics import algebra
from rewards.mathematics.comparison import Comparison
from rewards.mathematics.evaluation import Undefined
from rewards.mathematics.expression import Node, TooLarge, Unreadable, operations
from rewards.mathematics.latex_parser import parse
from rewards.mathematics.quantity import Quantity, compatible, quantity, read_unit
from rewards.mathematics.rational import (
    LITERAL,
    Irrational,
    decimal_digits,
    has_finite_decimal,
    is_evaluated,
    last_place,
    plain_number,
    rational,
)
from rewards.verdict import Verdict, right, unparsed, wrong

_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{5,}")
_INFINITY = re.compile(r"([+-]?)\s*\\infty")
_DEGREE, _RADIAN = read_unit("degree"), read_unit("radian")


def compare_scalars(answer: str, reference: str, comparison: Comparison) -> Verdict | None:
    if plain_number(answer) is not None and plain_number(reference) is not None:
        return _compare_values(answer, reference, [Fraction(1)], comparison)
    expected = quantity(reference)
    given = quantity(answer, bare_letters=expected.unit is not None)
    if given.unit is not None and expected.unit is None:
        expected = quantity(reference, bare_letters=True)  # 10 m is 10 metres here; on its own it may be 10 times m
    if not comparison.trust_text and _WORD.search(expected.value):
        return unparsed("it contains words that name no unit and are not a product of letters")
    given, expected = _in_radians(given, expected), _in_radians(expected, given)
    if not compatible(given.unit, expected.unit):
        return wrong("contradicting units")
    scales = _scales(given, expected, comparison.policy)
    return _compare_values(given.value, expected.value, scales, comparison)


def _in_radians(angle: Quantity, other: Quantity) -> Quantity:
    """The angle in radians if it is in degrees and the other side contains pi and no unit but radians; else unchanged.

    A number without a degree sign needs no conversion: it is compared as degrees if the other side has them.
    """
    is_turned = angle.unit == _DEGREE and "\\pi" in other.value and other.unit in (None, _RADIAN)
    return Quantity(rf"({angle.value})\cdot\frac{{\pi}}{{180}}") if is_turned else angle


def _scales(given: Quantity, expected: Quantity, policy: MathPolicy) -> list[Fraction]:
    """The factors by which the answer's number may be multiplied to give the reference's."""
    return [scale * given.scale / expected.scale for scale in _unit_scales(given, expected, policy)]


def _unit_scales(given: Quantity, expected: Quantity, policy: MathPolicy) -> list[Fraction]:
    if given.percent != expected.percent and (given.unit or expected.unit):
        return []
    if expected.percent:
        return [Fraction(1)] if given.percent else [Fraction(1), Fraction(100)]
    if given.percent:
        number = plain_number(expected.value)
        plain = policy.percent_sign_optional and number is not None and abs(number) > 1
        return [Fraction(1, 100), Fraction(1)] if plain else [Fraction(1, 100)]
    if given.unit and expected.unit and policy.convert_units:
        return [given.unit.size / expected.unit.size]
    same_size = not (given.unit and expected.unit) or given.unit.size == expected.unit.size
    return [Fraction(1)] if same_size else []


def _compare_values(answer: str, reference: str, scales: list[Fraction], comparison: Comparison) -> Verdict | None:
    infinite = _INFINITY.fullmatch(answer), _INFINITY.fullmatch(reference)
    if any(infinite):
        same = all(infinite) and (infinite[0][1] == "-") == (infinite[1][1] == "-")  # type: ignore[index]
        return right("the same infinity") if same else wrong("only one of the two is this infinity")
    try:
        expected = _parse(reference)
    except TooLarge:
        return wrong("the reference is too large to evaluate, and the text differs")
    except Unreadable:
        return _ask_math_verify(answer, reference)
    try:
        given = _parse(answer)
        verdicts = [_compare_nodes(_scaled(given, scale), expected, answer, scale, comparison) for scale in scales]
    except TooLarge:
        return wrong("too large to evaluate")
    except Unreadable:
        return None
    return next(
        (verdict for verdict in verdicts if verdict.is_correct), verdicts[0] if verdicts else wrong("different units")
    )


def _parse(text: str) -> Node:
    number = plain_number(text)
    return parse(text) if number is None else Node("num", value=number)


def _scaled(node: Node, scale: Fraction) -> Node:
    return node if scale == 1 else Node("scaled", (node, Node("num", value=scale)))


def _compare_nodes(given: Node, expected: Node, answer: str, scale: Fraction, comparison: Comparison) -> Verdict:
    policy = comparison.policy
    target = _rational(expected)
    literal = operations(expected) <= LITERAL
    if literal and not policy.unevaluated_arithmetic and not is_evaluated(given):
        return wrong("arithmetic is left to do")
    value = _rational(given)
    if value is not None and target is not None:
        if value == target:
            return right("equal numbers")
        close = abs(value - target) <= Fraction(policy.relative_tolerance) * abs(target)
        if (policy.relative_tolerance and close) or _well_rounded(answer, value / scale, target / scale, policy):
            return right("equal up to rounding")
        return wrong("a different number")
    if target is None and value is not None and decimal_digits(answer) is not None:
        try:
            exact = algebra.as_fraction(algebra.real_value(expected))
        except Undefined:
            return wrong("a different number")
        if _well_rounded(answer, value / scale, exact / scale, policy, irrational=True):
            return right("equal up to rounding")
    same = algebra.same_expression(given, expected, policy.relative_tolerance)
    return right("equal expressions") if same else wrong("a different expression")


def _rational(node: Node) -> Fraction | None:
    try:
        return rational(node)
    except Irrational:
        return None


def _well_rounded(answer: str, value: Fraction, target: Fraction, policy: MathPolicy, irrational: bool = False) -> bool:
    """Whether the answer is a decimal with enough digits, all correct, of a number that no finite decimal equals."""
    digits = decimal_digits(answer)
    if digits is None or digits < policy.rounding_digits or (not irrational and has_finite_decimal(target)):
        return False
    return abs(value - target) < last_place(answer)


def _ask_math_verify(answer: str, reference: str) -> Verdict | None:
    if "\\text" in answer and "\\text" not in reference:
        return wrong("the answer contains words, the reference none")
    from rewards.mathematics import symbolic  # imported late: it takes 0.6 s, and few references need it

    same = symbolic.same(answer, reference)
    return (
        None
        if same is None
        else right("math-verify finds them equal")
        if same
        else wrong("math-verify finds them different")
    )
