"""Score, the result of a verifier for one answer: its value, its outcome and its parts; and the Verifier protocol."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from inspect import signature
from typing import Any, Protocol


class Outcome(enum.Enum):
    """The reason for a score. A failure of the verifier never counts as a wrong answer."""

    CORRECT = "correct"
    WRONG = "wrong"
    NO_ANSWER = "no_answer"  # nothing in the text is marked as the final answer
    UNPARSED = "unparsed"  # there is a final answer, but it cannot be parsed
    TIMEOUT = "timeout"  # grading this answer exceeded its limit of time or memory
    CRASHED = "crashed"  # the verifier failed: not gradable
    BAD_REFERENCE = "bad_reference"  # answers cannot be graded against the reference: not gradable
    NOT_GRADED = "not_graded"  # a reward function returned None for this answer: not gradable

    @property
    def gradable(self) -> bool:
        return self not in (Outcome.CRASHED, Outcome.BAD_REFERENCE, Outcome.NOT_GRADED)


@dataclass(frozen=True)
class Score:
    """The score of one answer.

    value: the reward, a finite number; or None with the outcomes that are not gradable, and only with them: the answer
        is masked out of its group and counted. rewards.verifier_contract enforces this.
    parts: the named components of the value, e.g. {"math": 1.0, "format": 0.5}.
    detail: one line for users: what decided, and why.
    """

    value: float | None
    outcome: Outcome
    parts: Mapping[str, float] = field(default_factory=dict)
    detail: str = ""


@dataclass(frozen=True)
class FinalState:
    """How an environment stands at the end of a rollout.

    score: of its get_reward; None if it has none. state: its public attributes that are plain data.
    failure: why it could not go on, which says nothing about the answer; "" otherwise.
    """

    score: Score | None = None
    state: Mapping[str, Any] = field(default_factory=dict)
    failure: str = ""


Reference = str | Mapping[str, Any]
"""What an answer is graded against: the expected answer, or a task as a JSON object such as the tests of a program."""


class Verifier(Protocol):
    """Scores answers, the texts of whole completions, against references. Never raises for any text of a model."""

    def verify_batch(self, answers: Sequence[str], references: Sequence[Reference]) -> list[Score]:
        """The score of each answer against the reference at its position."""
        ...

    def check_references(self, references: Sequence[Reference]) -> list[Score]:
        """CORRECT for each reference that answers can be graded against, BAD_REFERENCE for the others."""
        ...

    def close(self) -> None:
        """Ends the worker processes. Safe to call twice."""


def verify(
    verifier: Verifier,
    answers: Sequence[str],
    references: Sequence[Reference],
    prompts: Sequence[str],
    rows: Sequence[Mapping[str, Any]] | None = None,
    groups: Sequence[int] | None = None,
    final_states: Sequence[FinalState | None] | None = None,
) -> list[Score]:
    """The score of each answer. A verifier gets what else its verify_batch has a parameter for:

    prompts: the question of each answer, for example to detect answers that copy it.
    rows: the id of each answer's problem, and the columns of its row in the data set.
    groups: a number for each answer; answers to one problem that are compared have the same.
    final_states: of the environments in which the answers were given, if there were any.
    """
    more = {
        "prompts": prompts,
        "rows": rows or [{}] * len(answers),
        "groups": groups or [0] * len(answers),
        "final_states": final_states or [None] * len(answers),
    }
    return verifier.verify_batch(answers, references, **_taken(verifier.verify_batch, more))


def check_references(
    verifier: Verifier, references: Sequence[Reference], prompts: Sequence[str], rows: Sequence[Mapping[str, Any]]
) -> list[Score]:
    """The verifier's check of the references. It gets prompts and rows if its method has parameters for them."""
    more = {"prompts": prompts, "rows": rows}
    return verifier.check_references(references, **_taken(verifier.check_references, more))


def compares_group(verifier: Verifier) -> bool:
    """Whether the verifier has to see all completions of a problem's group in one call of verify_batch."""
    return bool(getattr(verifier, "compares_group", False))


def _taken(method: Callable[..., Any], offered: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the offered arguments that the method has a parameter for."""
    return {name: value for name, value in offered.items() if name in signature(method).parameters}
