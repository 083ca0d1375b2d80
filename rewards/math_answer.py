"""The math verifier: scores the final answers of completions against references."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from rewards.extract import Reading
from rewards.math_policy import MathPolicy
from rewards.pool import WorkerPool
from rewards.pooled_verifier import PooledVerifier, require_one_per_answer
from rewards.score import Reference, Score

_DEFAULT_POLICY = MathPolicy()


class MathVerifier(PooledVerifier):
    """Grades the final answers of completions against references; a `rewards.score.Verifier`.

    strict: only a \\boxed{} answer counts, as with the form "boxed".
    form: where the answer is looked for (rewards.extract.answer_by_form). None: in the last box; if there is none, in
        <answer>...</answer> and after "####".
    policy: grading options on which people differ.
    num_workers: worker processes.
    deadline: seconds for one answer. An answer that needs more gets the outcome TIMEOUT and the value 0.
    memory_limit: bytes of address space of a worker. An answer that needs more gets the outcome TIMEOUT, too.

    Grading happens in worker processes, which start in the background. A failure of the verifier has the outcome
    CRASHED and the value None, never 0.
    """

    def __init__(
        self,
        *,
        strict: bool = False,
        form: Reading | None = None,
        policy: MathPolicy = _DEFAULT_POLICY,
        num_workers: int = 2,
        deadline: float = 2.0,
        memory_limit: int = 2 << 30,
    ) -> None:
        pool = WorkerPool(
            "rewards.mathematics.grader:load",
            {"form": "boxed" if strict else form, "policy": asdict(policy)},
            num_workers=num_workers,
            deadline=deadline,
            memory_limit=memory_limit,
        )
        super().__init__("math", pool)

    def verify_batch(
        self, answers: Sequence[str], references: Sequence[Reference], prompts: Sequence[str] | None = None
    ) -> list[Score]:
        """The score of each answer against the reference at its position.

        prompts: the question of each answer. An answer that copies an expression of the question is correct only if the
            reference has the same form (MathPolicy.copied_expressions).
        """
        if prompts is None:
            return super().verify_batch(answers, references)
        require_one_per_answer("reference", references, answers)
        require_one_per_answer("prompt", prompts, answers)
        return self._scores(list(zip(answers, references, prompts)))
