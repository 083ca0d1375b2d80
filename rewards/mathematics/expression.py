"""The unevaluated tree of a parsed expression."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any, NamedTuple

_NAMES = "sin|cos|tan|cot|sec|csc|arcsin|arccos|arctan|sinh|cosh|tanh|ln|log|lg|exp"
FUNCTIONS = frozenset(_NAMES.split("|"))


# Implementations of operations that are the same for exact and for approximate numbers.
SAME_FOR_ALL_NUMBERS: dict[str, Callable[..., Any]] = {
    "add": lambda a, b: a + b,
    "mixed": lambda a, b: a + b,
    "mul": lambda a, b: a * b,
    "scaled": lambda a, b: a * b,
    "neg": lambda a: -a,
    "abs": abs,
}


class Unreadable(ValueError):
    """The text is not an expression of this grammar."""


class TooLarge(ValueError):
    """The text is an expression that would cost too much to evaluate."""


class Node(NamedTuple):
    """A node of an expression tree.

    op: num (with `value`), var or const (with `name`), apply (an unknown function called `name`), one of FUNCTIONS, or
    an
        operation that evaluation.Field has a rule for.
    """

    op: str
    args: tuple[Node, ...] = ()
    value: Fraction = Fraction(0)
    name: str = ""


def variables(node: Node) -> frozenset[str]:
    if node.op == "var":
        return frozenset([node.name])
    return frozenset().union(*map(variables, node.args)) if node.args else frozenset()


def operations(node: Node) -> frozenset[str]:
    return frozenset([node.op]).union(*map(operations, node.args))
