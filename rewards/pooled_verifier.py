"""The base class of verifiers that grade in worker processes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Self

from rewards.pool import WorkerPool
from rewards.score import Outcome, Reference, Score


class PooledVerifier:
    """A `rewards.score.Verifier` that grades in a WorkerPool.

    name: the name of the single part of its scores.
    pool: its grading function maps (answer, reference) to a verdict on the answer, and (reference,) to one on the
    reference.
    """

    def __init__(self, name: str, pool: WorkerPool) -> None:
        self._name = name
        self._pool = pool

    def verify_batch(self, answers: Sequence[str], references: Sequence[Reference]) -> list[Score]:
        """The score of each answer against the reference at its position."""
        require_one_per_answer("reference", references, answers)
        return self._scores(list(zip(answers, references)))

    def check_references(self, references: Sequence[Reference]) -> list[Score]:
        """CORRECT for each reference that answers can be graded against, BAD_REFERENCE for the others, such as an empty
        one. Call this before training."""
        return self._scores([(reference,) for reference in references])

    def close(self) -> None:
        """Ends the worker processes. Safe to call twice."""
        self._pool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _scores(self, items: Sequence[Sequence[Any]]) -> list[Score]:
        keys = [json.dumps(item) for item in items]
        distinct = dict(zip(keys, items))  # the completions of a group often repeat an answer
        verdicts = self._pool.run(list(distinct.values()))
        scores = {key: self._score(*verdict) for key, verdict in zip(distinct, verdicts)}
        return [scores[key] for key in keys]

    def _score(self, outcome: Outcome, detail: str) -> Score:
        if not outcome.gradable:
            return Score(None, outcome, {}, detail)
        value = float(outcome is Outcome.CORRECT)
        return Score(value, outcome, {self._name: value}, detail)


def require_one_per_answer(what: str, given: Sequence[Any], answers: Sequence[str]) -> None:
    """Raises ValueError unless `given` has one entry for each answer."""
    if len(given) != len(answers):
        raise ValueError(f"{len(answers)} answers for {len(given)} {what}s: give one {what} for each answer, in order")
