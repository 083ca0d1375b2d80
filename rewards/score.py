"""What a verifier says of one answer: a value, why, and in which parts."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from inspect import signature
from typing import Any, Protocol


class Outcome(enum.Enum):
    """Why a score is what it is. "The model was wrong" is never confused with "we could not tell"."""

    CORRECT = "correct"
    WRONG = "wrong"
    NO_ANSWER = "no_answer"  # nothing in the text is marked as the final answer
    UNPARSED = "unparsed"  # a final answer is there, and cannot be read as one
    TIMEOUT = "timeout"  # judging this answer used up its time or memory
    CRASHED = "crashed"  # our side failed: not gradable
    BAD_REFERENCE = "bad_reference"  # the reference cannot be judged against: not gradable

    @property
    def gradable(self) -> bool:
        return self not in (Outcome.CRASHED, Outcome.BAD_REFERENCE)


@dataclass(frozen=True)
class Score:
    """The verdict on one answer.

    value: the reward, a finite number, or None when the answer could not be graded: with CRASHED and BAD_REFERENCE, and only
        with them (it is then masked out of its group and counted). What a verifier returns is held to it by rewards.verifier_contract.
    parts: the named components of the value, e.g. {"math": 1.0, "format": 0.5}.
    detail: one line for a person: the stage that decided, and why.
    """

    value: float | None
    outcome: Outcome
    parts: Mapping[str, float] = field(default_factory=dict)
    detail: str = ""


Reference = str | Mapping[str, Any]
"""What an answer is held against: an answer, or a task as a JSON object (the tests of a program, say)."""


class Verifier(Protocol):
    """Judges answers, which are texts of whole completions, against references, in order; never raises for what a model wrote."""

    def verify_batch(self, answers: Sequence[str], references: Sequence[Reference]) -> list[Score]: ...

    def check_references(self, references: Sequence[Reference]) -> list[Score]:
        """CORRECT for a reference that answers can be judged against, BAD_REFERENCE for the others."""
        ...

    def close(self) -> None:
        """End the worker processes. Safe to call twice."""


def verify(
    verifier: Verifier, answers: Sequence[str], references: Sequence[Reference], prompts: Sequence[str]
) -> list[Score]:
    """The score of each answer. A verifier whose verify_batch has an argument `prompts` also reads the question of each, since an
    answer may only repeat it."""
    more: dict[str, Any] = {"prompts": prompts} if "prompts" in signature(verifier.verify_batch).parameters else {}
    return verifier.verify_batch(answers, references, **more)
