"""Exact rational arithmetic on final answers, without floats: 12345 never equals 12346, nor 1/2004! 1/2006!."""

from __future__ import annotations

import math
import re
from fractions import Fraction

from rewards.mathematics.expression import FUNCTIONS, SAME_FOR_ALL_NUMBERS, Node, TooLarge, Unreadable, operations
from rewards.mathematics.latex_parser import MAX_DIGITS, parse

LITERAL = frozenset(["num", "neg", "frac", "div", "mixed"])
MAX_BITS = 1 << 16  # of a numerator or denominator; 2004! has 19,000 bits
MAX_FACTORIAL = 4_000
_SIMPLE = re.compile(r"([+-]?)\s*(\d+)(?:\.(\d*))?")
_DECIMAL = re.compile(
    r"[+-]?\s*(\d+)(?:\.(\d*))?(?:\s*(?:\\times|\\cdot|\*|x)\s*10\s*\^\s*(?:\{\s*([+-]?\d{1,4})\s*\}|(\d))|[eE]([+-]?\d{1,4}))?"
)
# Operations that an answer may not contain when the reference is a plain number: evaluating them was the question.
_ARITHMETIC = FUNCTIONS | {"add", "mul", "fact", "binom", "floor", "ceil", "abs", "var"}


class Irrational(ValueError):
    """The expression has no rational value, or none that this module finds."""


def plain_number(text: str) -> Fraction | None:
    """The value of an integer or decimal, None for any other text. Decides most final answers without a parser."""
    match = _SIMPLE.fullmatch(text)
    if not match or len(text) > MAX_DIGITS:
        return None
    sign, whole, decimals = match[1], match[2], match[3] or ""
    value = Fraction(int(whole + decimals), 10 ** len(decimals))
    return -value if sign == "-" else value


def literal_value(text: str) -> Fraction | None:
    """The value of a number, a fraction or a mixed number; None for any other text, including arithmetic."""
    number = plain_number(text)
    if number is not None:
        return number
    try:
        node = parse(text)
        return rational(node) if operations(node) <= LITERAL else None
    except (Unreadable, TooLarge, Irrational):
        return None


def rational(node: Node) -> Fraction:
    """The exact value of `node`. Raises Irrational, or TooLarge if the evaluation would cost too much."""
    if node.op == "num":
        return node.value
    if node.op in ("var", "const", "degree"):
        raise Irrational(node.name)
    rule = _RULES.get(node.op)
    if rule is None:
        raise Irrational(node.op)
    value = rule(*map(rational, node.args))
    if value.numerator.bit_length() > MAX_BITS or value.denominator.bit_length() > MAX_BITS:
        raise TooLarge("a number of too many digits")
    return value


def is_evaluated(node: Node) -> bool:
    """Whether no arithmetic is left to do: numbers, fractions (reduced or not), mixed numbers, powers and roots."""
    if node.op in _ARITHMETIC:
        return False
    return all(map(is_evaluated, node.args))


def decimal_digits(text: str) -> int | None:
    """The number of significant digits of a decimal with a fractional part, None for any other text."""
    match = _DECIMAL.fullmatch(text)
    return len((match[1] + match[2]).lstrip("0")) if match and match[2] else None


def last_place(text: str) -> Fraction:
    """The value of one unit in the last place of a decimal, which may be in scientific notation."""
    match = _DECIMAL.fullmatch(text)
    assert match is not None
    return Fraction(10) ** (int(match[3] or match[4] or match[5] or 0) - len(match[2] or ""))


def has_finite_decimal(value: Fraction) -> bool:
    denominator = value.denominator
    for prime in (2, 5):
        while denominator % prime == 0:
            denominator //= prime
    return denominator == 1


def _divide(a: Fraction, b: Fraction) -> Fraction:
    if not b:
        raise Irrational("division by zero")
    return a / b


def _power(base: Fraction, exponent: Fraction) -> Fraction:
    if exponent.denominator != 1:
        return _power(_root(base, Fraction(exponent.denominator)), Fraction(exponent.numerator))
    size = max(base.numerator.bit_length(), base.denominator.bit_length())
    if size * abs(exponent.numerator) > MAX_BITS and abs(base) not in (0, 1):
        raise TooLarge("a power of too many digits")
    if not base and exponent <= 0:
        raise Irrational("zero to a power that is not positive")
    if abs(base) in (0, 1):
        return base if exponent.numerator % 2 else base * base
    return base**exponent.numerator


def _root(value: Fraction, degree: Fraction) -> Fraction:
    if degree.denominator != 1 or not 2 <= degree <= 64:
        raise Irrational("a root whose degree is not an integer from 2 to 64")
    if value < 0 and degree % 2 == 0:
        raise Irrational("an even root of a negative number")
    root = Fraction(_integer_root(abs(value.numerator), int(degree)), _integer_root(value.denominator, int(degree)))
    return -root if value < 0 else root


def _integer_root(value: int, degree: int) -> int:
    if degree == 2:
        root = math.isqrt(value)
    else:
        root = 1 << -(-value.bit_length() // degree)  # an upper bound, from which Newton's steps decrease
        while value and (step := ((degree - 1) * root + value // root ** (degree - 1)) // degree) < root:
            root = step
        root = root if value else 0
    if root**degree != value:
        raise Irrational("not a perfect power")
    return root


def _factorial(value: Fraction) -> Fraction:
    if value.denominator != 1 or value < 0:
        raise Irrational("a factorial of something other than a natural number")
    if value > MAX_FACTORIAL:
        raise TooLarge("a factorial of too many digits")
    return Fraction(math.factorial(int(value)))


def _binomial(n: Fraction, k: Fraction) -> Fraction:
    if n.denominator != 1 or k.denominator != 1 or n < 0 or k < 0:
        raise Irrational("a binomial coefficient of something other than natural numbers")
    if min(k, n - k) * int(n).bit_length() > MAX_BITS:
        raise TooLarge("a binomial coefficient of too many digits")
    return Fraction(math.comb(int(n), int(k)))


_RULES = {
    **SAME_FOR_ALL_NUMBERS,
    "div": _divide,
    "frac": _divide,
    "pow": _power,
    "root": _root,
    "fact": _factorial,
    "binom": _binomial,
    "floor": lambda a: Fraction(math.floor(a)),
    "ceil": lambda a: Fraction(math.ceil(a)),
}
