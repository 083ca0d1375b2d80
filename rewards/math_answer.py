"""The math verifier: completions, references and questions in, scores out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from rewards.math_policy import MathPolicy
from rewards.pool import WorkerPool
from rewards.pooled_verifier import PooledVerifier, require_one_per_answer
from rewards.score import Reference, Score

_DEFAULT_POLICY = MathPolicy()


class MathVerifier(PooledVerifier):
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
        pool = WorkerPool(
            "rewards.mathematics.grader:load",
            {"strict": strict, "policy": asdict(policy)},
            num_workers=num_workers,
            deadline=deadline,
            memory_limit=memory_limit,
        )
        super().__init__("math", pool)

    def verify_batch(
        self, answers: Sequence[str], references: Sequence[Reference], prompts: Sequence[str] | None = None
    ) -> list[Score]:
        """The score of each of `answers` against the reference at its position. prompts: the question that each one answers;
        an expression of it is right only if the reference is written so too (MathPolicy.copied_expressions)."""
        if prompts is None:
            return super().verify_batch(answers, references)
        require_one_per_answer("reference", references, answers)
        require_one_per_answer("prompt", prompts, answers)
        return self._scores(list(zip(answers, references, prompts)))
