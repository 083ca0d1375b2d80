"""What an expression is, once read: a tree that nothing has evaluated."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any, NamedTuple

_NAMES = "sin|cos|tan|cot|sec|csc|arcsin|arccos|arctan|sinh|cosh|tanh|ln|log|lg|exp"
FUNCTIONS = frozenset(_NAMES.split("|"))


# By operation: what it does to numbers of whatever kind, exact or not.
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
    """op: num with a value, var or const with a name, apply with the name of an unknown function; else one of FUNCTIONS or of the
    operations that evaluation has a rule for."""

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
