"""Checks a proof (section 4.1.4 of the Metamath book; appendix B for compressed proofs).

A proof is a list of labels in reverse Polish notation. A hypothesis pushes its expression onto the stack. An assertion
pops one entry for each of its mandatory hypotheses: the entries for $f hypotheses define the substitution of its
variables, and the entries for $e hypotheses must equal the hypotheses after that substitution. The substitutes of two
variables that must be distinct may share no variable, and each pair of a variable of the one and a variable of the
other must be declared distinct in the theorem. Then the assertion is pushed after the substitution. In the end the
stack must contain the theorem only.

An expression can double in length at every step, so a short proof can require more memory than there is: hence Limits.
"""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass

from rewards.metamath.database import Assertion, Database, Hypothesis, Template

_LABEL = re.compile(r"[A-Za-z0-9._-]+|\?")
_LETTERS = re.compile(r"[A-Z?]*")
_NUMBER = re.compile(r"([U-Y]*)([A-T])(Z*)")
_LONGEST_NUMBER = 12  # letters before the last; no proof has 5^12 steps
_SHOWN = 60  # characters of an expression in a message


class ProofError(ValueError):
    """The proof is wrong. The message says at which step and why."""


class UnreadableProofError(ValueError):
    """The text does not have the form of a proof."""


class ProofLimitError(ValueError):
    """Checking the proof exceeds the limits."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of a check. expression: characters of one expression. work: of all expressions. deadline:
    time.monotonic()."""

    expression: int = 1 << 20
    work: int = 1 << 28
    deadline: float = float("inf")


def check(
    database: Database, theorem: Assertion, proof: str, *, limits: Limits, without: Container[str] = frozenset()
) -> None:
    """Raises ProofError, UnreadableProofError or ProofLimitError unless `proof` proves `theorem` from the statements
    that are active at its position and whose labels are not in `without`."""
    _Checker(database, theorem, limits, without).check(proof)


class _Checker:
    def __init__(self, database: Database, theorem: Assertion, limits: Limits, without: Container[str]) -> None:
        self._database = database
        self._theorem = theorem
        self._limits = limits
        self._without = without
        self._distinct = theorem.scope.distinct_before(theorem.number)
        self._stack: list[str] = []
        self._num_steps = 0
        self._label = ""  # of the current step
        self._work = 0

    def check(self, proof: str) -> None:
        tokens = proof.split()
        if tokens[:1] == ["("]:
            if ")" not in tokens:
                raise UnreadableProofError("a compressed proof needs a ) after its labels")
            end = tokens.index(")")
            labels, letters = tokens[1:end], "".join(tokens[end + 1 :])
        else:
            labels, letters = tokens, ""
        unreadable = next((label for label in labels if not _LABEL.fullmatch(label)), None)
        if unreadable is not None or not _LETTERS.fullmatch(letters) or not tokens:
            what = "the text is empty" if not tokens else repr(_short(unreadable or letters))
            raise UnreadableProofError(f"not a list of labels, and not a compressed proof: {what}")
        if "?" in labels or "?" in letters:
            raise ProofError("the proof is incomplete: it contains a ?")
        if tokens[0] == "(":
            self._compressed(labels, letters)
        else:
            for label in labels:
                self._step(label, self._statement(label))
        if len(self._stack) != 1:
            raise ProofError(f"{len(self._stack)} expressions are left at the end instead of one")
        if self._stack[0] != _unsubstituted(self._theorem.expression):
            raise ProofError(
                f"proves{_short(self._stack[0])} where{_short(_unsubstituted(self._theorem.expression))} was to be proved"
            )

    def _compressed(self, labels: Sequence[str], letters: str) -> None:
        """Checks a compressed proof, whose numbers refer to the mandatory hypotheses, then to the labels, then to the
        steps tagged with a Z so far."""
        statements: list[Hypothesis | Assertion] = [*self._theorem.hypotheses]
        for label in labels:
            statement = self._statement(label)
            if statement in self._theorem.hypotheses:
                raise ProofError(f"{_short(label)} is a mandatory hypothesis, which has a number without being listed")
            statements.append(statement)
        tagged: list[str] = []
        position = 0
        while position < len(letters):
            number = _NUMBER.match(letters, position)
            if number is None or len(number[1]) > _LONGEST_NUMBER:
                raise ProofError(
                    f"after step {self._num_steps}: {letters[position : position + 9]!r} does not begin with a number"
                )
            position = number.end()
            index = _index(number[1], number[2])
            if index < len(statements):
                statement = statements[index]
                self._step(statement.label, statement)
            elif index < len(statements) + len(tagged):
                statement = None
                self._begin(number[1] + number[2])
                self._push(tagged[index - len(statements)])
            else:
                raise ProofError(
                    f"step {self._num_steps + 1}: {number[1]}{number[2]} refers to no statement or step so far"
                )
            if number[3]:
                if not isinstance(statement, Assertion):
                    raise self._error("a Z may follow the number of an assertion only")
                tagged += [self._stack[-1]] * len(number[3])

    def _statement(self, label: str) -> Hypothesis | Assertion:
        statement = self._database.statements.get(label)
        if statement is None:
            raise ProofError(f"there is no statement labelled {_short(label)}")
        if not self._theorem.may_use(statement):
            raise ProofError(f"{label} is not active before {self._theorem.label}")
        if label in self._without:
            raise ProofError(f"{label} may not be used here")
        return statement

    def _step(self, label: str, statement: Hypothesis | Assertion) -> None:
        self._begin(label)
        if isinstance(statement, Hypothesis):
            self._push(_unsubstituted(statement.expression))
            return
        first = len(self._stack) - len(statement.hypotheses)
        if first < 0:
            raise self._error(
                f"{len(statement.hypotheses)} expressions are needed, {len(self._stack)} are on the stack"
            )
        values: dict[str, str] = {}
        for hypothesis, entry in zip(statement.hypotheses, self._stack[first:]):
            if hypothesis.variable:
                kind = hypothesis.expression[0]
                if not (entry + " ").startswith(kind + " "):
                    raise self._error(f"{hypothesis.label} needs a{kind}, not{_short(entry)}")
                values[hypothesis.variable] = entry[len(kind) :]
            else:
                expected = self._substituted(hypothesis.expression, values)
                if expected != entry:
                    raise self._error(f"{hypothesis.label} needs{_short(expected)}, not{_short(entry)}")
        self._check_distinct(statement, values)
        del self._stack[first:]
        self._push(self._substituted(statement.expression, values))

    def _check_distinct(self, statement: Assertion, values: Mapping[str, str]) -> None:
        variables = {
            name: [symbol for symbol in {*values[name].split()} if symbol in self._database.types]
            for name in {name for pair in statement.distinct for name in pair}
        }
        for one, other in statement.distinct:
            for pair in itertools.product(variables[one], variables[other]):
                if pair[0] == pair[1]:
                    raise self._error(f"{one} and {other} must be distinct, and both contain {pair[0]}")
                if tuple(sorted(pair)) not in self._distinct:
                    raise self._error(f"{one} and {other} must be distinct, and $d {pair[0]} {pair[1]} is not given")

    def _substituted(self, expression: Template, values: Mapping[str, str]) -> str:
        parts = list(expression)
        parts[1::2] = [values[variable] for variable in expression[1::2]]
        self._spend(sum(map(len, parts)))
        return "".join(parts)

    def _push(self, expression: str) -> None:
        self._stack.append(expression)

    def _begin(self, label: str) -> None:
        self._num_steps += 1
        self._label = label

    def _spend(self, length: int) -> None:
        """Counts the work of building an expression of this length. Raises ProofLimitError."""
        self._work += length
        if length > self._limits.expression:
            raise ProofLimitError(f"step {self._num_steps} builds an expression of {length} characters")
        if self._work > self._limits.work or time.monotonic() > self._limits.deadline:
            raise ProofLimitError(f"checking stopped at step {self._num_steps}, after {self._work} characters")

    def _error(self, message: str) -> ProofError:
        return ProofError(f"step {self._num_steps}, {_short(self._label)}: {message}")


def _index(high: str, low: str) -> int:
    """The number minus 1. Its last letter (A to T) is its digit in base 20, those before it (U to Y) are digits 1 to 5
    in base 5."""
    number = 0
    for letter in high:
        number = 5 * number + ord(letter) - ord("T")
    return 20 * number + ord(low) - ord("A")


def _unsubstituted(expression: Template) -> str:
    return "".join(f" {part}" if index % 2 else part for index, part in enumerate(expression))


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 20]} ...{text[-15:]}"
