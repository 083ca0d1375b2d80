"""What a judge says, in a worker, of one answer or of one reference. A `rewards.score.Score` is made of it outside."""

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
    """The reference cannot be judged against: says which field is wrong, and what it should be."""


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
    """What a worker calls, for a `PooledVerifier`: (reference,) alone is checked, (answer, reference, ...) is judged."""
    return lambda *item: check_reference(*item) if len(item) == 1 else grade(*item)
