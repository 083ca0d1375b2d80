"""Are two expressions equal? Decided by value at fixed irregular points, in 40 digits and only relatively.

Two expressions of the field's size that agree to 25 digits at several unrelated points are the same function; unlike a
symbolic simplifier this cannot run away, and unlike an absolute tolerance it keeps 3e-9 and 4e-9 apart.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import mpmath

from rewards.mathematics.expression import SAME_FOR_ALL_NUMBERS, Node, TooLarge, operations, variables

_NUM_POINTS = 6
_MIN_POINTS = 2  # at least so many points must be in both domains
_MAX_MAGNITUDE = 1 << 15  # in bits: sin of a larger number would need as many digits of pi
_context = mpmath.MPContext()
_context.dps = 40
_MAX_EXPONENT = 40  # in bits: mpmath multiplies once for every bit of an integer exponent, however many there are
_AGREE = _context.mpf(10) ** -25
_HALF_TURN = 180
_STEPS = frozenset(["floor", "ceil"])

Value = Any  # a real or complex number of mpmath, which has no types
Point = dict[str, Value]


class Undefined(ValueError):
    """The expression has no finite value at this point."""


def same_expression(answer: Node, reference: Node, relative_tolerance: float = 0.0) -> bool:
    """Whether the answer has the values of the reference wherever both have one; a variable of its own has none."""
    names = variables(reference)
    tolerance = max(_AGREE, _context.mpf(relative_tolerance))
    num_points = 0
    steps = not _STEPS.isdisjoint(operations(answer) | operations(reference))
    for point in _points(names, steps):
        values = _values(point, answer, reference)
        if values is None or _is_real(values[0]) != _is_real(values[1]):
            continue  # outside the real domain of one of them, as ln(xy) and ln x + ln y for negative x and y
        num_points += 1
        a, r = values
        if abs(a - r) > tolerance * abs(r):
            return False
    return num_points >= (_MIN_POINTS if names else 1)


def proportional(answer: Node, reference: Node) -> int:
    """The sign of the constant c with answer = c * reference everywhere, 0 where there is none: 2x = 4y is x - 2y = 0."""
    names = variables(reference)
    ratios = []
    for point in _points(names):
        values = _values(point, answer, reference)
        if values is not None and values[1] != 0:
            ratios.append(values[0] / values[1])
    if len(ratios) < _MIN_POINTS or not _is_real(ratios[0]) or ratios[0] == 0:
        return 0
    if any(abs(ratio - ratios[0]) > _AGREE * abs(ratios[0]) for ratio in ratios):
        return 0
    return 1 if _context.re(ratios[0]) > 0 else -1


def real_value(node: Node) -> Value:
    """The value of a constant; raises Undefined for what is not a real number."""
    value = _evaluate(node, {})
    if not _is_real(value):
        raise Undefined("not a real number")
    return _context.re(value)


def _points(names: frozenset[str], steps: bool = False) -> list[Point]:
    """Fixed points with both signs in every variable, the same in every process; integers too where a function has
    its steps, since ceil(x) is floor(x) + 1 everywhere else."""
    if not names:
        return [{}]
    points = [{name: _coordinate(name, index) for name in names} for index in range(_NUM_POINTS)]
    rounded = [{name: _context.nint(3 * value) for name, value in point.items()} for point in points]
    return points + rounded if steps else points


def _coordinate(name: str, index: int) -> Value:
    drawn = random.Random(f"{name}/{index}")
    size = _context.mpf(drawn.randrange(10**20)) / 10**20 * 2 + _context.mpf(1) / 3
    # The first points are all positive, where most functions are defined.
    return -size if index >= 2 and drawn.random() < 0.5 else size


def _values(point: Point, *nodes: Node) -> list[Value] | None:
    try:
        return [_evaluate(node, point) for node in nodes]
    except Undefined:
        return None


def _is_real(value: Value) -> bool:
    return abs(_context.im(value)) <= _AGREE * abs(value)


def _evaluate(node: Node, point: Point) -> Value:
    if node.op == "num":
        return _context.mpf(node.value.numerator) / node.value.denominator
    if node.op == "var":
        if node.name not in point:
            raise Undefined(node.name)
        return point[node.name]
    if node.op == "const":
        return {"pi": +_context.pi, "e": +_context.e, "i": _context.mpc(0, 1)}[node.name]
    arguments = [_evaluate(argument, point) for argument in node.args]
    try:
        value = _RULES[node.op](*arguments)
    except (
        ArithmeticError,
        ValueError,
        NotImplementedError,
        _context.NoConvergence,
    ) as error:  # what mpmath raises outside a domain
        raise Undefined(str(error)) from error
    if not _context.isfinite(value):
        raise Undefined("infinite")
    if value and _context.mag(value) > _MAX_MAGNITUDE:
        raise TooLarge("a number of too many digits")
    return value


def _power(base: Value, exponent: Value) -> Value:
    return _context.power(base, _bounded(exponent))


def _bounded(value: Value) -> Value:
    if value and _context.mag(value) > _MAX_EXPONENT:
        raise TooLarge("a power or a factorial of too many digits")
    return value


def _root(value: Value, degree: Value) -> Value:
    odd = _is_real(degree) and degree == int(_context.re(degree)) and int(_context.re(degree)) % 2 == 1
    if odd and _is_real(value) and _context.re(value) < 0:  # the real cube root of -8 is -2
        return -_power(-value, 1 / degree)
    return _power(value, 1 / degree) if degree != 2 else _context.sqrt(value)


def _logarithm(value: Value, base: Value | None = None) -> Value:
    return _context.log(value) / _context.log(base if base is not None else 10)


_RULES: dict[str, Callable[..., Value]] = {
    **SAME_FOR_ALL_NUMBERS,
    "div": lambda a, b: a / b,
    "frac": lambda a, b: a / b,
    "pow": _power,
    "root": _root,
    "fact": lambda a: _context.factorial(_bounded(a)),
    "binom": lambda n, k: _context.binomial(_bounded(n), _bounded(k)),
    "floor": _context.floor,
    "ceil": _context.ceil,
    "degree": lambda a: a * _context.pi / _HALF_TURN,
    "ln": _context.log,
    "log": _logarithm,
    "lg": _logarithm,
    "exp": _context.exp,
    "arcsin": _context.asin,
    "arccos": _context.acos,
    "arctan": _context.atan,
    **{name: getattr(_context, name) for name in ["sin", "cos", "tan", "cot", "sec", "csc", "sinh", "cosh", "tanh"]},
}


def as_fraction(value: Value) -> Fraction:
    """The value of a finite real as an exact fraction (of its 40 digits)."""
    sign, mantissa, exponent, _ = value._mpf_
    fraction = Fraction(mantissa) * Fraction(2) ** exponent
    return -fraction if sign else fraction
