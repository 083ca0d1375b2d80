"""Decides whether two expressions are equal by their values at fixed irregular points, with a relative tolerance.

Unlike symbolic simplification this takes bounded time, and unlike an absolute tolerance it distinguishes 3e-9 from
4e-9. 40 digits distinguish most expressions. Values that agree may still differ: sqrt(10^60 + 1) and 10^30 differ in
their 61st digit. So constants, and expressions that contain very large or very small numbers, are compared a second
time with more digits than a difference of such numbers can cancel.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from fractions import Fraction
from functools import lru_cache

from rewards.mathematics.evaluation import Evaluation, Point, Undefined, Value, field
from rewards.mathematics.expression import Node, TooLarge, operations, variables

_NUM_POINTS = 6
_WIDE_POINTS = 12
_MIN_POINTS = 2  # points that must lie in the domains of both expressions
_STEPS = frozenset(["floor", "ceil"])
_ORDINARY = 30  # binary digits; with numbers up to this size 40 decimal digits show every difference
_EXACT_DIGITS = 200
_MAX_DIGITS = 6_000


def same_expression(answer: Node, reference: Node, relative_tolerance: float = 0.0) -> bool:
    """Whether the answer equals the reference at every point where both are defined. An answer with a variable that the
    reference does not have is undefined."""
    names = variables(reference)
    tolerance = max(field().agree, field().context.mpf(relative_tolerance))
    num_points = 0
    for a, r, point, size in _values(answer, reference, names):
        may_cancel = not names and not relative_tolerance and size > _ORDINARY  # as in sqrt(10^100 + 1) - 10^50
        if abs(a - r) > tolerance * abs(r) and not may_cancel:
            return False
        if not relative_tolerance and (size > _ORDINARY or not names) and num_points < _MIN_POINTS:
            a, r, closeness = _exactly(answer, reference, point, size)
            if abs(a - r) > closeness * abs(r):
                return False
        num_points += 1
    return num_points >= (_MIN_POINTS if names else 1)


def proportional(answer: Node, reference: Node) -> int:
    """The sign of the real constant c with answer = c * reference at all points, or 0 if there is none.

    Used for equations: 2x = 4y is x - 2y = 0, because 2x - 4y = 2 (x - 2y).
    """
    found = [values for values in _values(answer, reference, variables(reference)) if values[1] != 0]
    if len(found) < _MIN_POINTS:
        return 0
    ratio = found[0][0] / found[0][1]
    if not field().is_real(ratio) or ratio == 0:
        return 0
    if any(abs(a / r - ratio) > field().agree * abs(ratio) for a, r, _, _ in found):
        return 0
    size = max(size for *_, size in found)
    if size > _ORDINARY:
        (a, r, closeness), (b, s, _) = (_exactly(answer, reference, point, size) for _, _, point, _ in found[:2])
        if abs(a * s - b * r) > closeness * abs(a * s):
            return 0
    return 1 if field().context.re(ratio) > 0 else -1


def real_value(node: Node, digits: int | None = None) -> Value:
    """The value of a constant expression. Raises Undefined if it is not a real number."""
    numbers = field() if digits is None else field(digits)
    value = Evaluation(numbers, {}).value(node)
    if not numbers.is_real(value):
        raise Undefined("not a real number")
    return numbers.context.re(value)


def as_fraction(value: Value) -> Fraction:
    """A finite mpmath real as a fraction that is exact for its binary digits."""
    sign, mantissa, exponent, _ = value._mpf_
    fraction = Fraction(mantissa) * Fraction(2) ** exponent
    return -fraction if sign else fraction


def _values(answer: Node, reference: Node, names: frozenset[str]) -> list[tuple[Value, Value, Point, int]]:
    """(answer's value, reference's value, point, size of the numbers met) for each point where both are defined.

    Expressions with variables are compared where all their parts are real, since sqrt(xy) = sqrt(x) sqrt(y) holds for
    x, y >= 0. A variable whose sign alone decides whether they are real is assumed to be positive, like the lengths in
    a formula. Complex values are used only if fewer than _MIN_POINTS points remain or the constant i occurs.
    """
    used = operations(answer) | operations(reference)
    if not names:
        return list(_values_at([{}], answer, reference))
    is_complex = "i" in _constants(answer) | _constants(reference)
    steps = not _STEPS.isdisjoint(used)
    points = _points(names, steps)
    found = [] if is_complex else list(_values_at(points, answer, reference, is_real=True))
    if not is_complex and len(found) < _MIN_POINTS:
        found = list(_values_at(_wide_points(names), answer, reference, is_real=True))
    if len(found) < len(points):
        positive = [name for name in names if _needs_positive(name, points[0], answer, reference)]
        found = [each for each in found if all(each[2][name] > 0 for name in positive)]
    return found if len(found) >= _MIN_POINTS else list(_values_at(points, answer, reference))


def _values_at(
    points: list[Point], answer: Node, reference: Node, *, is_real: bool = False
) -> Iterator[tuple[Value, Value, Point, int]]:
    for point in points:
        evaluation = Evaluation(field(), point, is_real=is_real)
        try:
            a, r = evaluation.value(answer), evaluation.value(reference)
        except Undefined:
            continue
        if field().is_real(a) == field().is_real(r):  # otherwise the point lies outside the real domain of one of them
            yield a, r, point, evaluation.size


def _needs_positive(name: str, point: Point, answer: Node, reference: Node) -> bool:
    """Whether both are real at `point`, whose coordinates are all positive, but not with the sign of `name` flipped."""
    turned = {**point, name: -point[name]}
    return any(_values_at([point], answer, reference, is_real=True)) and not any(
        _values_at([turned], answer, reference, is_real=True)
    )


def _exactly(answer: Node, reference: Node, point: Point, size: int) -> tuple[Value, Value, Value]:
    """Both values at a point in high precision, and the relative difference below which they count as equal.

    The precision grows with `size`, the binary digits of the numbers met, so that the bound lies far below the smallest
    difference that unequal values of such numbers can have. Raises TooLarge if a value turns out to be undefined (1/0).
    """
    decimal = size * 3 // 10
    digits = _EXACT_DIGITS + 4 * decimal
    if digits > _MAX_DIGITS:
        raise TooLarge("numbers too far apart to compare their sum")
    numbers = field(-(-digits // 100) * 100)
    evaluation = Evaluation(numbers, {name: numbers.context.mpf(value) for name, value in point.items()})
    closeness = numbers.context.mpf(10) ** -(_EXACT_DIGITS - 40 + 3 * decimal)
    try:
        return evaluation.value(answer), evaluation.value(reference), closeness
    except Undefined as error:
        raise TooLarge(str(error)) from error


def _constants(node: Node) -> frozenset[str]:
    own = frozenset([node.name]) if node.op == "const" else frozenset[str]()
    return own.union(*map(_constants, node.args))


def _points(names: frozenset[str], steps: bool = False) -> list[Point]:
    """Fixed points, the same in every process, with positive and negative coordinates.

    steps: also integer points, where floor and ceil jump: everywhere else ceil(x) is floor(x) + 1.
    """
    points = [{name: _coordinate(name, index) for name in names} for index in range(_NUM_POINTS)]
    rounded = [{name: field().context.nint(3 * value) for name, value in point.items()} for point in points]
    return points + rounded if steps else points


def _wide_points(names: frozenset[str]) -> list[Point]:
    """Points with coordinates of several magnitudes, for domains such as x > 5."""
    return [{name: _coordinate(name, index) * (1 << index % 5 * 2) for name in names} for index in range(_WIDE_POINTS)]


@lru_cache(maxsize=4096)
def _coordinate(name: str, index: int) -> Value:
    drawn = random.Random(f"{name}/{index}")
    size = field().context.mpf(drawn.randrange(10**20)) / 10**20 * 2 + field().context.mpf(1) / 3
    # The first points are all positive, where most functions are defined.
    return -size if index >= 2 and drawn.random() < 0.5 else size
