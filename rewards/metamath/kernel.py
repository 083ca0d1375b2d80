"""Checks a proof (section 4.1.4 of the Metamath book; appendix B for compressed proofs).

A proof is a list of labels in reverse Polish order. A hypothesis puts its expression on the stack. An assertion takes off
as many entries as it has mandatory hypotheses: those in the place of a $f say what its variable stands for, those in the
place of a $e must be what the $e becomes when its variables are replaced. What two distinct variables stand for may share
no variable, and each pair of a variable of the one and a variable of the other must be distinct in the theorem. Then the
assertion, with its variables replaced, is put on the stack. In the end the theorem alone must lie there.

An expression can double at every step, so a short proof can ask for more than any memory holds: hence Limits.
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
_LONGEST_NUMBER = 12  # letters; 5^12 steps are more than a proof has
_SHOWN = 60  # characters of an expression in a message


class ProofError(ValueError):
    """What is wrong with a proof, and at which step."""


class UnreadableProofError(ValueError):
    """The text is not even a proof."""


class ProofLimitError(ValueError):
    """The proof takes more to check than the limits allow."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """expression: characters of one expression. work: of all expressions together. deadline: by time.monotonic()."""

    expression: int = 1 << 20
    work: int = 1 << 28
    deadline: float = float("inf")


def check(
    database: Database, theorem: Assertion, proof: str, *, limits: Limits, without: Container[str] = frozenset()
) -> None:
    """Raises where `proof` does not prove `theorem` from what stands before it and is not in `without`."""
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
        self._label = ""  # of the step we are at
        self._work = 0

    def check(self, proof: str) -> None:
        tokens = proof.split()
        if tokens[:1] == ["("]:
            if ")" not in tokens:
                raise UnreadableProofError("the ) that ends the labels of a compressed proof is missing")
            end = tokens.index(")")
            labels, letters = tokens[1:end], "".join(tokens[end + 1 :])
        else:
            labels, letters = tokens, ""
        unreadable = next((label for label in labels if not _LABEL.fullmatch(label)), None)
        if unreadable is not None or not _LETTERS.fullmatch(letters) or not tokens:
            what = "the text is empty" if not tokens else repr(_short(unreadable or letters))
            raise UnreadableProofError(f"not a list of labels, and not a compressed proof: {what}")
        if "?" in labels or "?" in letters:
            raise ProofError("the proof is incomplete: it has a ?")
        if tokens[0] == "(":
            self._compressed(labels, letters)
        else:
            for label in labels:
                self._step(label, self._statement(label))
        if len(self._stack) != 1:
            raise ProofError(f"{len(self._stack)} expressions are left in the end where there should be one")
        if self._stack[0] != _unsubstituted(self._theorem.expression):
            raise ProofError(
                f"proves{_short(self._stack[0])} where{_short(_unsubstituted(self._theorem.expression))} was to be proved"
            )

    def _compressed(self, labels: Sequence[str], letters: str) -> None:
        """Numbers stand for the mandatory hypotheses, then for the labels, then for the steps tagged with a Z so far."""
        statements: list[Hypothesis | Assertion] = [*self._theorem.hypotheses]
        for label in labels:
            statement = self._statement(label)
            if statement in self._theorem.hypotheses:
                raise ProofError(f"{_short(label)} is a mandatory hypothesis and has its number without being listed")
            statements.append(statement)
        tagged: list[str] = []
        position = 0
        while position < len(letters):
            number = _NUMBER.match(letters, position)
            if number is None or len(number[1]) > _LONGEST_NUMBER:
                raise ProofError(f"after step {self._num_steps}: {letters[position : position + 9]!r} begins no number")
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
                raise ProofError(f"step {self._num_steps + 1}: {number[1]}{number[2]} is the number of nothing so far")
            if number[3]:
                if not isinstance(statement, Assertion):
                    raise self._error("Z may only follow the number of an assertion")
                tagged += [self._stack[-1]] * len(number[3])

    def _statement(self, label: str) -> Hypothesis | Assertion:
        statement = self._database.statements.get(label)
        if statement is None:
            raise ProofError(f"no statement is labelled {_short(label)}")
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
            raise self._error(f"{len(statement.hypotheses)} expressions are needed, {len(self._stack)} are there")
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
        """Before an expression of that length is made."""
        self._work += length
        if length > self._limits.expression:
            raise ProofLimitError(f"step {self._num_steps} makes an expression of {length} characters")
        if self._work > self._limits.work or time.monotonic() > self._limits.deadline:
            raise ProofLimitError(f"not checked further than step {self._num_steps}, {self._work} characters so far")

    def _error(self, message: str) -> ProofError:
        return ProofError(f"step {self._num_steps}, {_short(self._label)}: {message}")


def _index(high: str, low: str) -> int:
    """The number less 1: the last letter is its digit in base 20, those before it are digits 1 to 5 in base 5."""
    number = 0
    for letter in high:
        number = 5 * number + ord(letter) - ord("T")
    return 20 * number + ord(low) - ord("A")


def _unsubstituted(expression: Template) -> str:
    return "".join(f" {part}" if index % 2 else part for index, part in enumerate(expression))


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 20]} ...{text[-15:]}"
