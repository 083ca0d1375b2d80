"""Countdown: combine given numbers to an expression that has a given value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from rewards.mathematics.expression import Node, TooLarge, Unreadable, operations
from rewards.mathematics.latex_parser import parse
from rewards.mathematics.normalise import normalise
from rewards.mathematics.rational import Irrational, rational
from rewards.mathematics.structure import split
from rewards.puzzles.puzzle import integer, sequence, word
from rewards.verdict import Verdict, right, unparsed, wrong

_ALLOWED = frozenset(["num", "add", "neg", "mul", "div", "frac"])
_LETTERS = frozenset(["var", "const"])


@dataclass(frozen=True)
class Countdown:
    """An answer is an expression with every number exactly once, + - * / and brackets, whose exact value is the target.

    "expression = target" and "target = expression" are accepted too.
    solution: one solution, which the reference must provide, since searching for one would take too long.
    """

    numbers: tuple[int, ...]
    target: int
    solution: str

    @classmethod
    def read(cls, reference: Mapping[str, Any]) -> Countdown:
        numbers = tuple(integer(n, "numbers", 0, 10**6) for n in sequence(reference, "numbers", 1, 20))
        return cls(numbers, integer(reference.get("target"), "target", -(10**9), 10**9), word(reference, "solution"))

    def grade(self, answer: str) -> Verdict:
        try:
            sides = [*map(parse, split(normalise(answer), ("=",))[0])]
            expression = next((side for side in sides if self._uses_the_numbers(side)), sides[0])
            used = operations(expression) - _ALLOWED
            if used & _LETTERS:
                return unparsed("not an expression of numbers")
            if used:
                return wrong(f"uses {', '.join(sorted(used))}")
            if not self._uses_the_numbers(expression):
                return wrong("does not use every number exactly once")
            values = [*map(rational, sides)]
        except (Unreadable, TooLarge) as error:
            return unparsed(str(error))
        except Irrational as error:
            return wrong(str(error))
        return (
            right("reaches the target") if {*values} == {self.target} else wrong(f"its value is {rational(expression)}")
        )

    def _uses_the_numbers(self, expression: Node) -> bool:
        return sorted(_numbers(expression)) == sorted(self.numbers)


def _numbers(node: Node) -> list[Fraction]:
    return [node.value] if node.op == "num" else [number for part in node.args for number in _numbers(part)]
