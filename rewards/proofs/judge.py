"""Is this text a proof of what the reference states? Finds the proof in a completion and hands it to the checker of its
system. Runs in a worker process only."""

from __future__ import annotations

from collections.abc import Callable, Container
from pathlib import Path
from typing import Any

from rewards.extract import END_OF_TURN
from rewards.proofs.coq_judge import CoqJudge
from rewards.proofs.lean_judge import LeanJudge
from rewards.proofs.metamath_judge import MetamathJudge
from rewards.proofs.prover_process import ProverError
from rewards.proofs.task import BadTask, parse_task
from rewards.score import Outcome

Verdict = tuple[Outcome, str]

# The words behind ``` that name a block as a proof, by system. A block may also go without.
_LANGUAGES = {"metamath": {"", "metamath", "mm"}, "coq": {"", "coq", "rocq"}, "lean": {"", "lean", "lean4"}}


class ProofJudge:
    def __init__(self, *, folder: str, deadline: float, memory_limit: int, allow_unsafe_code: bool) -> None:
        options: dict[str, Any] = {
            "folder": Path(folder),
            "seconds": deadline,
            "memory": memory_limit,
            "allow_unsafe_code": allow_unsafe_code,
        }
        self._judges: dict[str, Any] = {
            "metamath": MetamathJudge(deadline=deadline),
            "coq": CoqJudge(**options),
            "lean": LeanJudge(**options),
        }

    def judge(self, answer: str, reference: Any) -> Verdict:
        """The verdict on the proof in a completion."""
        return self._decide(reference, answer)

    def check_reference(self, reference: Any) -> Verdict:
        """CORRECT if proofs can be judged against it."""
        return self._decide(reference, None)

    def _decide(self, reference: Any, answer: str | None) -> Verdict:
        try:
            task = parse_task(reference)
            judge = self._judges[task.system]
            stated = judge.check_task(task)
            if answer is None:
                return stated
            proof = proof_in(answer, _LANGUAGES[task.system])
            return judge.judge(proof, task) if proof else (Outcome.NO_ANSWER, "no proof")
        except BadTask as error:
            return Outcome.BAD_REFERENCE, str(error)
        except ProverError as error:
            return Outcome.CRASHED, str(error)


def proof_in(completion: str, languages: Container[str]) -> str:
    """The proof in a model's completion, "" where there is none.

    What follows the last </think>; of that the last <answer>...</answer>, if there is one; and of that the last block
    between lines of ``` that is called by one of `languages`, or else all of it.
    """
    turn_end = END_OF_TURN.search(completion)
    text = completion[: turn_end.start()] if turn_end else completion
    text = text.rpartition("</think>")[2]
    if "<think>" in text:
        return ""
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
    """What a worker calls once: (completion, reference) is judged, (reference,) alone is checked."""
    judge = ProofJudge(**options)
    return lambda *item: judge.judge(*item) if len(item) == 2 else judge.check_reference(*item)
