"""The puzzle verifier: scores completions that solve puzzles. Every correct solution counts, not only a stored one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rewards.extract import final_answer
from rewards.pool import WorkerPool
from rewards.pooled_verifier import PooledVerifier
from rewards.puzzles.base_conversion import BaseConversion
from rewards.puzzles.countdown import Countdown
from rewards.puzzles.linear_equations import LinearEquations
from rewards.puzzles.puzzle import MAX_ANSWER, Puzzle
from rewards.puzzles.sorting import Sorting
from rewards.puzzles.sudoku4 import Sudoku4
from rewards.verdict import NOTHING_MARKED, BadReference, Verdict, bad_reference, grade_or_check, unparsed

PUZZLES: Mapping[str, Callable[[Mapping[str, Any]], Puzzle]] = {
    "base-conversion": BaseConversion.read,
    "countdown": Countdown.read,
    "linear-equations": LinearEquations.read,
    "sorting": Sorting.read,
    "sudoku4": Sudoku4.read,
}


class PuzzleVerifier(PooledVerifier):
    """Grades the final answers of completions to puzzles; a `rewards.score.Verifier`.

    A reference is a puzzle as JSON, named by its field "puzzle":
        {"puzzle": "countdown", "numbers": [3, 5, 8], "target": 16, "solution": "8*(5-3)"}
        {"puzzle": "linear-equations", "unknowns": ["x", "y"], "equations": [[2, 3, 7], [1, -1, 1]]}     2x + 3y = 7, x - y = 1
        {"puzzle": "sudoku4", "givens": ["1..4", "..1.", ".1..", "4..1"]}
        {"puzzle": "base-conversion", "number": "2f", "from_base": 16, "to_base": 7}
        {"puzzle": "sorting", "numbers": [5, -3, 12], "order": "ascending"}

    num_workers, deadline, memory_limit: as for rewards.math_answer.MathVerifier.
    """

    def __init__(self, *, num_workers: int = 2, deadline: float = 2.0, memory_limit: int = 1 << 30) -> None:
        pool = WorkerPool(
            "rewards.puzzle_answer:load", {}, num_workers=num_workers, deadline=deadline, memory_limit=memory_limit
        )
        super().__init__("puzzle", pool)


def read_puzzle(reference: Any) -> Puzzle:
    """The puzzle of a reference. Raises BadReference."""
    if not isinstance(reference, Mapping):
        raise BadReference(f"a puzzle is a JSON object, not {type(reference).__name__}")
    name = reference.get("puzzle")
    if not isinstance(name, str) or name not in PUZZLES:
        raise BadReference(f"puzzle is {str(name)[:60]!r}: it must be one of {', '.join(PUZZLES)}")
    return PUZZLES[name](reference)


def grade(completion: str, reference: Any) -> Verdict:
    """The verdict on the final answer in `completion`."""
    try:
        puzzle = read_puzzle(reference)
    except BadReference as error:
        return bad_reference(str(error))
    answer = final_answer(completion, strict=False)
    if answer is None:
        return NOTHING_MARKED
    return puzzle.grade(answer) if len(answer) <= MAX_ANSWER else unparsed(f"longer than {MAX_ANSWER} characters")


def check_reference(reference: Any) -> Verdict:
    """CORRECT if the puzzle is valid and its own solution is correct."""
    try:
        puzzle = read_puzzle(reference)
    except BadReference as error:
        return bad_reference(str(error))
    verdict = puzzle.grade(puzzle.solution)
    return verdict if verdict.is_correct else bad_reference(f"its solution is wrong: {verdict.reason}")


def load() -> Callable[..., Verdict]:
    """Builds the grading function. A worker calls this once."""
    return grade_or_check(grade, check_reference)
