"""Programs of thought: the completion is a program, and what it prints is the answer."""

from __future__ import annotations

from collections.abc import Sequence

from rewards.math_answer import MathVerifier
from rewards.math_policy import MathPolicy
from rewards.pooled_verifier import require_one_per_answer
from rewards.program import MAX_OUTPUT, program_pool, require_isolation
from rewards.programs.grader import MAX_ANSWER
from rewards.sandbox.child import Limits
from rewards.score import Outcome, Reference, Score
from rewards.verdict import Verdict

_DEFAULT_POLICY = MathPolicy()
_LIMITS: Limits = {"cpu_seconds": 3, "wall_seconds": 6.0, "memory": 1 << 30, "output": MAX_OUTPUT}
_NAME = "program-answer"


class ProgramAnswerVerifier:
    """Runs the program of each completion in the sandbox, and grades the last line that it prints as the math verifier
    grades an answer; a `rewards.score.Verifier`.

    Programs are found, limited and isolated as by rewards.program.ProgramVerifier. One that fails, or prints nothing, is
    scored 0 with its reason; a failure of the sandbox is CRASHED and has no value. The process that runs programs knows
    no reference.

    policy, deadline: of the math verifier.
    Raises SandboxUnavailable as ProgramVerifier does.
    """

    def __init__(
        self,
        *,
        policy: MathPolicy = _DEFAULT_POLICY,
        num_workers: int = 2,
        deadline: float = 2.0,
        allow_unsafe_code: bool = False,
    ) -> None:
        self.isolation = require_isolation(allow_unsafe_code)
        arguments = {"completions": True, "layers": self.isolation.layers, "packages": [], "readable": []}
        self._programs = program_pool("load_printed", arguments, _LIMITS, num_workers, max_reason=MAX_ANSWER)
        self._answers = MathVerifier(form="text", policy=policy, num_workers=num_workers, deadline=deadline)

    def verify_batch(
        self, answers: Sequence[str], references: Sequence[Reference], prompts: Sequence[str] | None = None
    ) -> list[Score]:
        """The score of each answer. prompts: the question of each, from which an expression may not be copied."""
        require_one_per_answer("reference", references, answers)
        prompts = [""] * len(answers) if prompts is None else prompts
        require_one_per_answer("prompt", prompts, answers)
        distinct = list(dict.fromkeys(answers))  # the completions of a group often repeat a program
        printed = dict(zip(distinct, self._programs.run([(answer,) for answer in distinct])))
        have_run = [i for i, answer in enumerate(answers) if printed[answer].is_correct]
        graded = self._answers.verify_batch(
            [printed[answers[i]].reason for i in have_run],
            [references[i] for i in have_run],
            [prompts[i] for i in have_run],
        )
        scores = {i: _scored(printed[answers[i]].reason, score) for i, score in zip(have_run, graded)}
        return [scores[i] if i in scores else _failed(printed[answer]) for i, answer in enumerate(answers)]

    def check_references(self, references: Sequence[Reference]) -> list[Score]:
        """The math verifier's check."""
        return self._answers.check_references(references)

    def close(self) -> None:
        """Ends the worker processes. Safe to call twice."""
        self._programs.close()
        self._answers.close()


def _scored(line: str, score: Score) -> Score:
    parts = {} if score.value is None else {_NAME: score.value}
    return Score(score.value, score.outcome, parts, f"it prints {line[:40]!r}: {score.detail}")


def _failed(verdict: Verdict) -> Score:
    if verdict.outcome is Outcome.CRASHED:
        return Score(None, Outcome.CRASHED, {}, verdict.reason)
    return Score(0.0, verdict.outcome, {_NAME: 0.0}, verdict.reason)
