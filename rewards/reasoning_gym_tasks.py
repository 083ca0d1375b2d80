"""Tasks of the library reasoning-gym (Apache-2.0) whose scorers can be trusted. The only file that imports the library.

Its scorers assume that answers are not adversarial. Some execute the answer as Python, some accept junk or two answers
at once, some raise for unexpected text. Only tasks that pass a gate (tests/rewards/reasoning_gym_gate.py) are used; it
was last run with the version GATED_WITH. REFUSED has the reason for every other task.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib.util
import io
import json
from collections.abc import Callable, Collection, Mapping
from functools import cache
from typing import Any

from rewards.errors import UserError
from rewards.extract import final_answer
from rewards.pool import WorkerPool
from rewards.pooled_verifier import PooledVerifier
from rewards.verdict import NOTHING_MARKED, BadReference, Verdict, bad_reference, right, wrong

GATED_WITH = "0.1.25"
TASKS: tuple[str, ...] = (
    "acre", "advanced_geometry", "aiw", "arc_1d", "base_conversion", "basic_arithmetic", "bf", "binary_alternation",
    "caesar_cipher", "calendar_arithmetic", "chain_sum", "circuit_logic", "color_cube_rotation", "count_bits",
    "count_primes", "course_schedule", "cryptarithm", "decimal_arithmetic", "decimal_chain_sum", "dice",
    "emoji_mystery", "family_relationships", "figlet_font", "futoshiki", "gcd", "group_anagrams", "jugs",
    "kakurasu", "knights_knaves", "largest_island", "lcm", "leg_counting", "letter_counting", "mahjong_puzzle",
    "manipulate_matrix", "maze", "mini_sudoku", "modulo_grid", "needle_haystack", "number_filtering",
    "number_format", "number_sequence", "palindrome_generation", "palindrome_partitioning", "path_star",
    "pool_matrix", "power_function", "products", "quantum_lock", "rectangle_count", "rotate_matrix",
    "rotten_oranges", "self_reference", "sentence_reordering", "shortest_path", "simple_equations",
    "simple_geometry", "string_manipulation", "string_splitting", "string_synthesis", "sudoku", "survo",
    "syllogism", "tower_of_hanoi", "tsumego", "word_sequence_reversal", "word_sorting", "zebra_puzzles",
)  # fmt: skip
REFUSED: Mapping[str, str] = {
    "ab": "its own answers do not count: nothing is marked as the final answer",
    "arc_agi": "its own answers do not count: arc_agi gives 0.05",
    "binary_matrix": "its scorer runs text as code: BinaryMatrixDataset.score_answer uses eval",
    "bitwise_arithmetic": "its scorer runs text as code: verify_solution uses eval",
    "boxnet": "its own answers do not count: its entry has no answer that is text",
    "codeio": "its entries differ from run to run",
    "coin_flip": "its scorer fails on junk such as '1e999'",
    "complex_arithmetic": "its scorer accepts junk such as 'nan'",
    "composite": "its entries cannot be made: Must specify at least one dataset",
    "countdown": "its scorer runs text as code: CountdownDataset.score_answer uses parse_expr",
    "fraction_simplification": "its scorer accepts two answers",
    "game_of_life": "its scorer fails on junk such as '{}'",
    "game_of_life_halting": "its scorer accepts junk such as 'I do not know.'",
    "graph_color": "its own answers do not count: its entry has no answer that is text",
    "gsm_symbolic": "its entries cannot be made: Object of type Fraction is not JSON serializable",
    "intermediate_integration": "its scorer runs text as code: IntermediateIntegrationDataset.score_answer uses parse_expr",
    "isomorphic_strings": "its entries differ from run to run",
    "knight_swap": "its entries differ from run to run",
    "letter_jumble": "its scorer accepts two answers",
    "list_functions": "its entries differ from run to run",
    "n_queens": "its scorer runs text as code: NQueensDataset.score_answer uses eval",
    "number_sorting": "its scorer runs text as code: NumberSortingDataset.score_answer uses eval",
    "polynomial_equations": "its scorer accepts two answers",
    "polynomial_multiplication": "its scorer runs text as code: PolynomialMultiplicationDataset.score_answer uses parse_expr",
    "prime_factorization": "its scorer fails on junk such as 'I do not know.'",
    "propositional_logic": "its own answers do not count: its entry has no answer that is text",
    "puzzle24": "its scorer runs text as code: Puzzle24Dataset.score_answer uses parse_expr",
    "ransom_note": "its entries differ from run to run",
    "rearc": "its own answers do not count: rearc gives 0.05",
    "rubiks_cube": "its own answers do not count: its entry has no answer that is text",
    "rush_hour": "its own answers do not count: its entry has no answer that is text",
    "simple_integration": "its scorer runs text as code: SimpleIntegrationDataset.score_answer uses parse_expr",
    "sokoban": "its scorer accepts the question",
    "spell_backward": "its scorer accepts two answers",
    "spiral_matrix": "its scorer runs text as code: SpiralMatrixDataset.score_answer uses eval",
    "string_insertion": "its scorer runs text as code: StringInsertionDataset.score_answer uses eval",
    "time_intervals": "its scorer accepts two answers",
    "word_ladder": "its entries differ from run to run",
}


class ReasoningGymVerifier(PooledVerifier):
    """Grades the final answers of completions by the scorers of reasoning-gym; a `rewards.score.Verifier`.

    A reference is {"task": str, "entry": {"question": str, "answer": str, "metadata": {...}}}, where the entry is made
    by the library. An answer is correct if the library's score is 1; a partial solution is wrong.

    num_workers, deadline, memory_limit: see rewards.math_answer.MathVerifier.
    tasks: the tasks to accept, by default all that passed the gate.
    """

    def __init__(
        self,
        *,
        num_workers: int = 2,
        deadline: float = 2.0,
        memory_limit: int = 2 << 30,
        tasks: Collection[str] = TASKS,
    ) -> None:
        require_library()
        pool = WorkerPool(
            "rewards.reasoning_gym_tasks:load",
            {"tasks": sorted(tasks)},
            num_workers=num_workers,
            deadline=deadline,
            memory_limit=memory_limit,
        )
        super().__init__("reasoning-gym", pool)


def require_library() -> None:
    """Raises UserError if reasoning-gym is not installed."""
    if importlib.util.find_spec("reasoning_gym") is None:
        raise UserError('reasoning-gym is not installed: pip install "plumbline-rl[reasoning-gym]"')


def require_task(task: str) -> None:
    """Raises UserError for a task that did not pass the gate or does not exist."""
    if task in TASKS:
        return
    reason = f"is refused: {REFUSED[task]}" if task in REFUSED else "is not known"
    close = difflib.get_close_matches(task, TASKS, n=5)
    possible = [*close, *(name for name in TASKS if name not in close)]
    raise UserError(f"dataset is 'reasoning-gym:{task}': this task {reason}; possible are {', '.join(possible)}")


def make_entries(task: str, count: int, *, seed: int) -> list[dict[str, Any]]:
    """`count` entries of a task as JSON: {"question": str, "answer": str, "metadata": {...}}.

    Raises UserError if the library is not installed.
    """
    require_library()
    with contextlib.redirect_stdout(io.StringIO()):  # some tasks print progress
        data = _data_set(task, seed=seed, size=count)
        return [json.loads(json.dumps(data[index])) for index in range(count)]


@cache
def _scorer(task: str) -> Callable[[str, dict[str, Any]], float]:
    return _data_set(task).score_answer


def _data_set(task: str, **options: int) -> Any:
    import reasoning_gym  # pyright: ignore[reportMissingImports]  # optional, and takes a second

    return reasoning_gym.create_dataset(task, **options)


def _read(reference: Any, tasks: Collection[str]) -> tuple[str, dict[str, Any]]:
    if not isinstance(reference, dict) or not isinstance(reference.get("task"), str):
        raise BadReference("the reference must be an object with the fields task (a name) and entry")
    task, entry = reference["task"], reference.get("entry")
    if task not in tasks:
        raise BadReference(f"task {task[:60]!r} is not among the accepted tasks")
    if not isinstance(entry, dict) or not isinstance(entry.get("answer"), str):
        raise BadReference("its entry has no answer that is text")
    return task, entry


def _grade(completion: str, task: str, entry: dict[str, Any]) -> Verdict:
    answer = final_answer(completion, strict=False)
    if answer is None:
        return NOTHING_MARKED
    score = _scorer(task)(answer, entry)
    return right(f"{task} gives 1") if score >= 1 else wrong(f"{task} gives {score:.3g}")


def load(*, tasks: Collection[str]) -> Callable[..., Verdict]:
    """Builds the function that grades (completion, reference) and checks (reference,). A worker calls this once."""

    def grade(*item: Any) -> Verdict:
        *completion, reference = item
        try:
            task, entry = _read(reference, tasks)
        except BadReference as error:
            return bad_reference(str(error))
        if completion:
            return _grade(completion[0], task, entry)
        verdict = _grade(f"<answer>{entry['answer']}</answer>", task, entry)
        return verdict if verdict.is_correct else bad_reference(verdict.reason)

    importlib.import_module("reasoning_gym")  # not within the deadline of the first answer
    return grade
