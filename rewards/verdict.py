"""The verdict of a grader on one answer or reference. The trainer's process turns it into a `rewards.score.Score`."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from rewards.score import Outcome


class Verdict(NamedTuple):
    outcome: Outcome
    reason: str

    @property
    def is_correct(self) -> bool:
        return self.outcome is Outcome.CORRECT


NOTHING_MARKED = Verdict(Outcome.NO_ANSWER, "nothing is marked as the final answer")


class BadReference(ValueError):
    """Answers cannot be graded against the reference. The message says which field is wrong and what it must be."""


def right(reason: str) -> Verdict:
    return Verdict(Outcome.CORRECT, reason)


def wrong(reason: str) -> Verdict:
    return Verdict(Outcome.WRONG, reason)


def unparsed(reason: str) -> Verdict:
    return Verdict(Outcome.UNPARSED, reason)


def timeout(reason: str) -> Verdict:
    return Verdict(Outcome.TIMEOUT, reason)


def crashed(reason: str) -> Verdict:
    return Verdict(Outcome.CRASHED, reason)


def bad_reference(reason: str) -> Verdict:
    return Verdict(Outcome.BAD_REFERENCE, reason)


def grade_or_check(grade: Callable[..., Verdict], check_reference: Callable[..., Verdict]) -> Callable[..., Verdict]:
    """A worker's function for a `PooledVerifier`: it checks (reference,) and grades (answer, reference, ...)."""
    return lambda *item: check_reference(*item) if len(item) == 1 else grade(*item)
