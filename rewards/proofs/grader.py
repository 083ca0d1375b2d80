"""Extracts the proof from a completion and passes it to the grader of its system. Runs in a worker process only."""

from __future__ import annotations

from collections.abc import Callable, Container
from pathlib import Path
from typing import Any

from rewards.extract import after_reasoning
from rewards.proofs.coq_grader import CoqGrader
from rewards.proofs.lean_grader import LeanGrader
from rewards.proofs.metamath_grader import MetamathGrader
from rewards.proofs.prover_process import ProverError
from rewards.proofs.task import parse_task
from rewards.score import Outcome
from rewards.verdict import BadReference, Verdict, bad_reference, crashed, grade_or_check

# The languages of fenced blocks that hold a proof, by system; "" is a block without a language.
_LANGUAGES = {"metamath": {"", "metamath", "mm"}, "coq": {"", "coq", "rocq"}, "lean": {"", "lean", "lean4"}}


class ProofGrader:
    def __init__(self, *, folder: str, deadline: float, memory_limit: int, allow_unsafe_code: bool) -> None:
        options: dict[str, Any] = {
            "folder": Path(folder),
            "seconds": deadline,
            "memory": memory_limit,
            "allow_unsafe_code": allow_unsafe_code,
        }
        self._graders: dict[str, Any] = {
            "metamath": MetamathGrader(deadline=deadline),
            "coq": CoqGrader(**options),
            "lean": LeanGrader(**options),
        }

    def grade(self, answer: str, reference: Any) -> Verdict:
        """The verdict on the proof in a completion."""
        return self._decide(reference, answer)

    def check_reference(self, reference: Any) -> Verdict:
        """CORRECT if proofs can be graded against the reference, else BAD_REFERENCE."""
        return self._decide(reference, None)

    def _decide(self, reference: Any, answer: str | None) -> Verdict:
        try:
            task = parse_task(reference)
            grader = self._graders[task.system]
            stated = grader.check_task(task)
            if answer is None:
                return stated
            proof = extract_proof(answer, _LANGUAGES[task.system])
            return grader.grade(proof, task) if proof else Verdict(Outcome.NO_ANSWER, "no proof")
        except BadReference as error:
            return bad_reference(str(error))
        except ProverError as error:
            return crashed(str(error))


def extract_proof(completion: str, languages: Container[str]) -> str:
    """The proof in a model's completion, "" if there is none.

    It is searched in the text after the reasoning, and within the last <answer>...</answer> if there is one: the last
    block fenced by ``` with one of `languages`, or all of the text if there is no such block.
    """
    text = after_reasoning(completion)
    if "</answer>" in text:
        text = text.rpartition("</answer>")[0].rpartition("<answer>")[2]
    blocks: list[list[str]] = []  # the lines of each
    inside = wanted = False
    for line in text.split("\n"):
        mark = line.strip()
        if mark.startswith("```") and not (inside and mark.strip("`")):
            inside = not inside
            wanted = inside and mark.strip("`").strip().lower() in languages
            blocks += [[]] if wanted else []
        elif wanted:
            blocks[-1].append(line)
    return ("\n".join(blocks[-1]) if blocks else text).strip()


def load(**options: Any) -> Callable[..., Verdict]:
    """Builds the grading function. A worker calls this once."""
    grader = ProofGrader(**options)
    return grade_or_check(grader.grade, grader.check_reference)
