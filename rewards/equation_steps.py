"""Process supervision for arithmetic: one score for each line that states equations, 1 if all of them are true.

This code reads model text in the trainer's own process, so it evaluates only + - * / on bounded exact fractions, takes
time linear in the text, and never raises. Rewards of steps add up, so only a line with a new result counts as a step.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterator
from fractions import Fraction
from typing import NamedTuple

MAX_LINE = 400
MAX_DIGITS = 40
_MAX_DEPTH = 20

_ANNOTATION = re.compile(r"<<([^<>]*)>>")  # GSM8K writes 48/2 = <<48/2=24>>24
_FINAL_ANSWER = re.compile(r"####|\\boxed|\\fbox|<answer>")
_LONG_NUMBER = re.compile(rf"\d[\d,.]{{{MAX_DIGITS}}}")
_SIGNS = str.maketrans({"×": "*", "·": "*", "⋅": "*", "÷": "/", "−": "-", "–": "-", "$": None, "€": None, "£": None})
_TEX_TIMES = re.compile(r"\\times|\\cdot|(?<=[\d)%\s])[xX](?=\s*[\d(])")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))|(?<!\d{4})(?<=\d) (?=\d{3}(?!\d))")
_MIXED = re.compile(r"(?<![\d.])(\d+) (\d+)/(\d+)(?![\d.])")
_ARITHMETIC = re.compile(r"[-+*/().\d%=\s]+")
# One run of such characters may contain several statements: 3+4=7. 5 6+1=7
_BOUNDARY = re.compile(r"\.(?!\d)|(?<=[\d)%])\s+(?=[\d.(])")
_OPERATOR = re.compile(r"[\d)%]\s*[-+*/]")
_TOKEN = re.compile(r"\s*(\d+(?:\.\d+)?%?|\.\d+%?|[-+*/()])")


class Step(NamedTuple):
    """A line that counts. value: 1.0 if all its equations are true, else 0.0. end: the offset after its newline."""

    value: float
    end: int


class _Equation(NamedTuple):
    """A statement with two or more sides.

    claim: the result of a true equation, the values of the sides of a false one, or its text if a side has no value.
    is_trivial: no operation in it changes an operand.
    """

    is_true: bool
    claim: Hashable
    is_trivial: bool


def score_steps(text: str, *, given: str = "") -> list[Step]:
    """One step for each line of `text` that states an equation of plain arithmetic with a new result.

    Rule: 1.0 if all equations of the line are exactly true, else 0.0; also 0.0 for a line over 400 characters or with a
    number over 40 digits. Lines without an equation, lines with x = x without an operator, and lines with the final
    answer, which the outcome reward scores, are not steps.

    Since the rewards of steps add up, text that can be continued without end must not earn any: a true line is a step
    only if it computes a result that neither `given` (the prompt) nor an earlier line has, by more than adding 0 or
    multiplying by 0, 1 or -1; a false line only if its false equations were not stated before.
    """
    known = {equation.claim for line in given.splitlines() if _is_readable(line) for equation in _equations(line)}
    steps, start = [], 0
    while start < len(text):
        newline = text.find("\n", start)
        end = newline + 1 if newline >= 0 else len(text)
        value = _line_value(text, start, end, known)
        if value is not None:
            steps.append(Step(value, end))
        start = end
    return steps


def _line_value(text: str, start: int, end: int, known: set[Hashable]) -> float | None:
    """The value of the line, None if it is not a step. Adds the claims of the line to `known`."""
    if end - start > MAX_LINE + 1:
        return 0.0
    line = text[start:end].strip()
    if not line or _FINAL_ANSWER.search(line):
        return None
    if not _is_readable(line):
        return 0.0
    equations = list(_equations(line))
    false = [equation for equation in equations if not equation.is_true]
    new = {e.claim for e in false or equations if not e.is_trivial or not e.is_true} - known
    known.update(equation.claim for equation in equations)
    return float(not false) if new else None


def _is_readable(line: str) -> bool:
    return len(line) <= MAX_LINE and not _LONG_NUMBER.search(line)


def _equations(line: str) -> Iterator[_Equation]:
    """The equations of a line, those in annotations (<<...>>) first."""
    for part in [*_ANNOTATION.findall(line), _ANNOTATION.sub("", line)]:
        plain = _TEX_TIMES.sub("*", _THOUSANDS.sub("", part.translate(_SIGNS)))
        plain = _MIXED.sub(r"(\1+\2/\3)", plain)
        for run in _ARITHMETIC.finditer(plain):
            *statements, last = _BOUNDARY.split(run[0])
            if not (
                plain[run.end() : run.end() + 1].isalpha()
                and last[-1:].isdigit()
                and _has_operator(last.rpartition("=")[2])
            ):
                statements.append(last)  # otherwise a variable cuts it off, as in 150 = 10+4c
            for statement in statements:
                equation = _equation(statement)
                if equation is not None:
                    yield equation


def _equation(statement: str) -> _Equation | None:
    """The equation, None if a side is missing or cut off by a word (apples * 4 = 12), or if no side has an operator."""
    sides = [side.strip() for side in statement.split("=")]
    # In "total = 3 + 4 = 7 apples" the first side is a word.
    if not sides[0] or sides[0][0] in "*/+)" or sides[0].startswith("- "):
        sides = sides[1:]
    if sides and not sides[-1]:
        sides = sides[:-1]
    if len(sides) < 2 or not any(map(_has_operator, sides)):
        return None
    try:
        sums = [_Sum(side) for side in sides]
        values = tuple(each.value() for each in sums)
    except ZeroDivisionError:
        return _Equation(is_true=False, claim=statement, is_trivial=False)
    except _NotArithmetic:
        return None
    is_true = all(value == values[0] for value in values)
    return _Equation(is_true, values[0] if is_true else values, is_trivial=not any(each.computes for each in sums))


def _has_operator(side: str) -> bool:
    return _OPERATOR.search(side) is not None


class _NotArithmetic(ValueError):
    pass


class _Sum:
    """A recursive-descent evaluator of + - * / and brackets.

    computes: whether any operation changes its operands, unlike adding 0 or multiplying by 0, 1 or -1.
    """

    def __init__(self, text: str) -> None:
        self.tokens = _TOKEN.findall(text)
        if "".join(self.tokens) != re.sub(r"\s", "", text):
            raise _NotArithmetic(text)
        self.pos, self.depth = 0, 0
        self.computes = False

    def value(self) -> Fraction:
        value = self.sum()
        if self.pos != len(self.tokens):
            raise _NotArithmetic
        return value

    def next(self, *expected: str) -> str | None:
        """Consumes and returns the next token if it is one of `expected`, else returns None."""
        if self.pos < len(self.tokens) and self.tokens[self.pos] in expected:
            self.pos += 1
            return self.tokens[self.pos - 1]
        return None

    def sum(self) -> Fraction:
        value = self.product()
        while sign := self.next("+", "-"):
            other = self.product()
            self.computes |= value != 0 and other != 0
            value += other if sign == "+" else -other
        return value

    def product(self) -> Fraction:
        value = self.factor()
        while sign := self.next("*", "/"):
            factor = self.factor()
            self.computes |= value != 0 and factor not in (-1, 0, 1) and (abs(value) != 1 or sign == "/")
            value = value * factor if sign == "*" else value / factor
        return value

    def factor(self) -> Fraction:
        negative = False
        while sign := self.next("-", "+"):
            negative ^= sign == "-"
        value = self.bracket() if self.next("(") else self.number()
        return -value if negative else value

    def bracket(self) -> Fraction:
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            raise _NotArithmetic
        value = self.sum()
        self.depth -= 1
        if not self.next(")"):
            raise _NotArithmetic
        return value

    def number(self) -> Fraction:
        if self.pos >= len(self.tokens) or self.tokens[self.pos] in "+-*/()":
            raise _NotArithmetic
        token = self.tokens[self.pos]
        self.pos += 1
        return Fraction(token[:-1]) / 100 if token.endswith("%") else Fraction(token)
