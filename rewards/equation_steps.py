"""Process supervision for worked arithmetic: is every equation of a line true?

It runs on model text in the trainer itself, so it evaluates nothing but + - * / on bounded exact fractions, takes time
linear in the text, and never raises. The more true steps the more reward, so a step is what brings a result that was not there.
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
# One run of such characters may hold several statements: 3+4=7. 5 6+1=7
_BOUNDARY = re.compile(r"\.(?!\d)|(?<=[\d)%])\s+(?=[\d.(])")
_OPERATOR = re.compile(r"[\d)%]\s*[-+*/]")
_TOKEN = re.compile(r"\s*(\d+(?:\.\d+)?%?|\.\d+%?|[-+*/()])")


class Step(NamedTuple):
    """value: 1.0 if the line's equations are all true, else 0.0. end: the offset just past the line and its newline."""

    value: float
    end: int


class _Equation(NamedTuple):
    """says: its result if it is true, else the values of its sides, or its text where they have none.
    is_trivial: nothing is computed in it."""

    is_true: bool
    claim: Hashable
    is_trivial: bool


def score_steps(text: str, *, given: str = "") -> list[Step]:
    """One step for each line of `text` that states an equation of plain arithmetic and has something new to say.

    Rule: 1.0 if all equations of the line are exactly true, else 0.0; also 0.0 for a line over 400 characters or with a
    number over 40 digits. A line without an equation, and a line that gives the final answer, is no step: nothing is
    stated there, or the outcome reward scores it. x = x without an operator states nothing either.

    Steps add up, so that what can be written without end must not be one: a true line is a step only if it computes a
    result that neither `given`, the prompt, nor a line before it has, by more than adding 0 or multiplying with 0, 1 or -1; a
    false one only if its false equations were not stated before.
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
    """Adds to `known` what the line says."""
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
    """The equations of a line, the annotated ones first."""
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
                statements.append(last)  # else it is cut off by a variable: 150 = 10+4c
            for statement in statements:
                equation = _equation(statement)
                if equation is not None:
                    yield equation


def _equation(statement: str) -> _Equation | None:
    """None where the statement is no equation: a side is missing, is cut off by a word (apples * 4 = 12), or none has
    an operator."""
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

    computes: whether any operation changes its operands, as adding 0 and multiplying with 0, 1 or -1 do not.
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
        """The next token if it is one of `expected`, taken."""
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
