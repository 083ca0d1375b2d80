"""Linear equations in one or two unknowns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from typing import Any

from rewards.mathematics.expression import TooLarge, Unreadable
from rewards.mathematics.latex_parser import parse
from rewards.mathematics.normalise import normalise
from rewards.mathematics.rational import Irrational, is_evaluated, rational
from rewards.mathematics.structure import elements, split
from rewards.puzzles.puzzle import integer, sequence
from rewards.verdict import BadReference, Verdict, right, unparsed, wrong


@dataclass(frozen=True)
class LinearEquations:
    """An answer has one exact, evaluated value for each unknown: "x = 3, y = -1/2", or in the given order "(3, -1/2)".

    equations: for each, the coefficients of the unknowns and then the constant of the other side.
    """

    unknowns: tuple[str, ...]
    equations: tuple[tuple[int, ...], ...]
    values: tuple[Fraction, ...]

    @classmethod
    def read(cls, reference: Mapping[str, Any]) -> LinearEquations:
        unknowns = tuple(sequence(reference, "unknowns", 1, 2))
        if not all(isinstance(u, str) and len(u) == 1 and u.isalpha() and u not in "ei" for u in unknowns):
            raise BadReference("unknowns must be single letters other than e and i")
        if len({*unknowns}) < len(unknowns):
            raise BadReference("unknowns must differ")
        size = len(unknowns)
        rows = sequence(reference, "equations", size, size)
        if not all(isinstance(row, list | tuple) and len(row) == size + 1 for row in rows):
            raise BadReference(f"equations must be {size} lists of {size + 1} integers")
        equations = tuple(tuple(integer(n, "equations", -(10**9), 10**9) for n in row) for row in rows)
        return cls(unknowns, equations, _solved(equations))

    @property
    def solution(self) -> str:
        return ", ".join(f"{unknown} = {value}" for unknown, value in zip(self.unknowns, self.values))

    def grade(self, answer: str) -> Verdict:
        try:
            given = self._read_values(answer)
        except (Unreadable, TooLarge, Irrational) as error:
            return unparsed(str(error))
        if any(len({*sides}) > 1 for sides in given):
            return wrong("the sides of an equation differ")
        is_right = all(sides[0] == value for sides, value in zip(given, self.values))
        return right("solves the equations") if is_right else wrong("does not solve the equations")

    def _read_values(self, answer: str) -> list[list[Fraction]]:
        """For each unknown the values of all sides but its name: 3 and 3 for "x = 6/2 = 3"."""
        text = normalise(answer, commas_group_digits=False)
        names, equals, values = text.partition("=")
        if equals and len(self.unknowns) > 1 and names.replace(" ", "") == f"({','.join(self.unknowns)})":
            text = values.strip()  # (x, y) = (3, -1/2)
        found = elements(text)
        parts = [split(item, ("=",))[0] for item in (found.items if found else (text,))]
        parts = [part[::-1] if part[-1] in self.unknowns else part for part in parts]  # 2 = x
        named = {part[0]: part[1:] for part in parts if part[0] in self.unknowns and len(part) > 1}
        in_order = not named and not (found and found.kind == "set")
        if len(parts) != len(self.unknowns) or not (in_order or len(named) == len(parts)):
            raise Unreadable("not one value for each unknown")
        ordered = [named[unknown] for unknown in self.unknowns] if named else parts
        nodes = [[parse(side) for side in sides] for sides in ordered]
        if not all(is_evaluated(sides[-1]) for sides in nodes):
            raise Unreadable("arithmetic is left to do")
        return [[*map(rational, sides)] for sides in nodes]


def _solved(equations: tuple[tuple[int, ...], ...]) -> tuple[Fraction, ...]:
    """The solution by Cramer's rule. Raises BadReference unless there is exactly one."""
    if len(equations) == 1:
        ((a, c),) = equations
        determinant, numerators = a, (c,)
    else:
        (a, b, c), (d, e, f) = equations
        determinant, numerators = a * e - b * d, (c * e - b * f, a * f - c * d)
    if not determinant:
        raise BadReference(f"equations have no or several solutions: {list(chain(*equations))}")
    return tuple(Fraction(numerator, determinant) for numerator in numerators)
