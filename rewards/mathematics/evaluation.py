"""Evaluates an expression at a point in real and complex numbers of any precision, for algebra and intervals only."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import mpmath

from rewards.mathematics.expression import SAME_FOR_ALL_NUMBERS, Node, TooLarge

DIGITS = 40
_SPARE = 15  # digits reserved for rounding and cancellation
_MAX_MAGNITUDE = 1 << 15  # bits; sin of a larger number would need as many digits of pi
_MAX_EXPONENT = 40  # bits; mpmath multiplies once for every bit of an integer exponent, without a limit of its own
_HALF_TURN = 180

Value = Any  # a real or complex number of mpmath, which has no type annotations
Point = dict[str, Value]


class Undefined(ValueError):
    """The expression has no finite value at this point."""


class Field:
    """Numbers with a given number of decimal digits, and the implementation of each operation on them."""

    def __init__(self, digits: int) -> None:
        self.context = context = mpmath.MPContext()
        context.dps = digits
        self.agree = context.mpf(10) ** (_SPARE - digits)
        self.constants = {"pi": +context.pi, "e": +context.e, "i": context.mpc(0, 1)}
        functions = ["sin", "cos", "tan", "cot", "sec", "csc", "sinh", "cosh", "tanh", "floor", "ceil", "exp"]
        self.rules: dict[str, Callable[..., Value]] = {
            **SAME_FOR_ALL_NUMBERS,
            "div": lambda a, b: a / b,
            "frac": lambda a, b: a / b,
            "pow": self._power,
            "root": self._root,
            "fact": lambda a: context.factorial(self._bounded(a)),
            "binom": lambda n, k: context.binomial(self._bounded(n), self._bounded(k)),
            "degree": lambda a: a * context.pi / _HALF_TURN,
            "ln": context.log,
            "log": self._logarithm,
            "lg": self._logarithm,
            "arcsin": context.asin,
            "arccos": context.acos,
            "arctan": context.atan,
            **{name: getattr(context, name) for name in functions},
        }

    def is_real(self, value: Value) -> bool:
        return not isinstance(value, self.context.mpc) or abs(value.imag) <= self.agree * abs(value)

    def applied(self, name: str, arguments: list[Value]) -> Value:
        """The value of an unknown function, such as f in f(x + 1): a fixed irregular function for each name, which
        satisfies no identity by accident."""
        shift, *factors = (self.context.mpf(c) / 10**6 for c in _coefficients(name, 1 + 2 * len(arguments)))
        wave = sum((c * a for c, a in zip(factors, arguments)), shift)
        slope = sum(c * a for c, a in zip(factors[len(arguments) :], arguments))
        return self.context.exp(self.context.sin(wave)) + slope

    def _power(self, base: Value, exponent: Value) -> Value:
        return self.context.power(base, self._bounded(exponent))

    def _bounded(self, value: Value) -> Value:
        if value and self.context.mag(value) > _MAX_EXPONENT:
            raise TooLarge("a power or a factorial of too many digits")
        return value

    def _root(self, value: Value, degree: Value) -> Value:
        whole = self.is_real(degree) and degree == int(self.context.re(degree))
        if whole and int(self.context.re(degree)) % 2 == 1 and self.is_real(value) and self.context.re(value) < 0:
            return -self._power(-value, 1 / degree)  # the real cube root of -8 is -2
        return self._power(value, 1 / degree) if degree != 2 else self.context.sqrt(value)

    def _logarithm(self, value: Value, base: Value | None = None) -> Value:
        return self.context.log(value) / self.context.log(base if base is not None else 10)


@lru_cache(maxsize=16)
def field(digits: int = DIGITS) -> Field:
    return Field(digits)


@lru_cache(maxsize=1024)
def _coefficients(name: str, count: int) -> tuple[int, ...]:
    drawn = random.Random(f"function {name}")
    return tuple(drawn.randrange(3 * 10**5, 17 * 10**5) for _ in range(count))


class Evaluation:
    """Evaluates expressions at one point of a field.

    is_real: treat an expression with a non-real part, such as the root of a negative number, as Undefined.
    size: the largest binary magnitude, in absolute value, of all numbers met so far.
    """

    def __init__(self, field: Field, point: Point, *, is_real: bool = False) -> None:
        self._field, self._point, self._is_real, self.size = field, point, is_real, 0

    def value(self, node: Node) -> Value:
        """The value of the expression. Raises Undefined, or TooLarge if the evaluation would cost too much."""
        field = self._field
        if node.op == "num":
            return self._measured(field.context.mpf(node.value.numerator) / node.value.denominator)
        if node.op == "var":
            if node.name not in self._point:
                raise Undefined(node.name)
            return self._point[node.name]
        if node.op == "const":
            return field.constants[node.name]
        arguments = [self.value(argument) for argument in node.args]
        try:
            value = field.applied(node.name, arguments) if node.op == "apply" else field.rules[node.op](*arguments)
        except (ArithmeticError, ValueError, NotImplementedError, field.context.NoConvergence) as error:
            raise Undefined(str(error)) from error  # mpmath raises these outside the domain of a function
        if not field.context.isfinite(value):
            raise Undefined("infinite")
        if self._is_real and not field.is_real(value):
            raise Undefined("not real")
        if node.op == "tanh":  # close to 1 - 2 exp(-2a), so a large a needs about 3a binary digits
            self.size = max(self.size, 3 * int(abs(arguments[0])))
        return self._measured(value)

    def _measured(self, value: Value) -> Value:
        if value:
            magnitude = self._field.context.mag(value)
            if magnitude > _MAX_MAGNITUDE:
                raise TooLarge("a number of too many digits")
            self.size = max(self.size, abs(magnitude))
        return value
