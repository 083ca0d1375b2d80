"""The math verifier: completions and references in, scores out."""

from __future__ import annotations

from collections.abc import Sequence

from rewards.math_policy import MathPolicy
from rewards.pool import WorkerPool
from rewards.score import Outcome, Score

_DEFAULT_POLICY = MathPolicy()


class MathVerifier:
    """Judges the final answers of completions against references; a `rewards.score.Verifier`.

    strict: only a \\boxed{} answer counts. Otherwise also <answer>...</answer> and "#### x", where no box is.
    policy: the questions of grading on which people differ (MathPolicy).
    num_workers: processes that judge at once.
    deadline: seconds for one answer; one that needs more is wrong (TIMEOUT, value 0).
    memory_limit: bytes for one process; an answer that needs more is wrong too.

    Judging happens in worker processes, which start in the background. What our side fails to judge is CRASHED with the
    value None, never 0.
    """

    def __init__(
        self,
        *,
        strict: bool = False,
        policy: MathPolicy = _DEFAULT_POLICY,
        num_workers: int = 2,
        deadline: float = 2.0,
        memory_limit: int = 2 << 30,
    ) -> None:
        self._pool = WorkerPool(
            "rewards.math_judge:load",
            {"strict": strict, "policy": policy.to_dict()},
            num_workers=num_workers,
            deadline=deadline,
            memory_limit=memory_limit,
        )

    def verify_batch(self, answers: Sequence[str], references: Sequence[str]) -> list[Score]:
        """The score of each completion in `answers` against the reference at its position."""
        if len(answers) != len(references):
            raise ValueError(
                f"{len(answers)} answers for {len(references)} references: give one reference for each answer, in order"
            )
        return self._scores(list(zip(answers, references)))

    def check_references(self, references: Sequence[str]) -> list[Score]:
        """CORRECT for a reference that equals itself by being read, BAD_REFERENCE for one that nothing can be held
        against: an empty one, or one that only identical text would match. Ask this before training."""
        return self._scores([(reference,) for reference in references])

    def close(self) -> None:
        """End the worker processes. Safe to call twice."""
        self._pool.close()

    def __enter__(self) -> MathVerifier:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _scores(self, items: list[tuple[str, ...]]) -> list[Score]:
        distinct = list(dict.fromkeys(items))  # the completions of a group repeat answers heavily
        scores = {item: _score(*verdict) for item, verdict in zip(distinct, self._pool.run(distinct))}
        return [scores[item] for item in items]


def _score(outcome: Outcome, detail: str) -> Score:
    if not outcome.gradable:
        return Score(None, outcome, {}, detail)
    value = float(outcome is Outcome.CORRECT)
    return Score(value, outcome, {"math": value}, detail)
