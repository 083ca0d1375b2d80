"""Only tasks of reasoning-gym that passed the gate are used, their scorers run in workers, and partial solutions score
0."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import random
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from rewards.errors import UserError
from rewards.reasoning_gym_tasks import GATED_WITH, REFUSED, TASKS, ReasoningGymVerifier, make_entries
from rewards.score import Outcome, Score
from rollout.problems import load_problems

needs_library = pytest.mark.skipif(
    importlib.util.find_spec("reasoning_gym") is None, reason="needs the extra reasoning-gym"
)
RUN_CODE = [task for task, reason in REFUSED.items() if "text as code" in reason]
SAMPLE = TASKS[::9]  # the whole gate takes a quarter of an hour


@pytest.fixture(scope="module")
def verifier() -> Iterator[ReasoningGymVerifier]:
    with ReasoningGymVerifier(num_workers=1, deadline=20.0) as made:
        yield made


def reference(task: str, index: int = 0) -> dict[str, Any]:
    return {"task": task, "entry": make_entries(task, index + 1, seed=0)[index]}


@needs_library
def test_every_task_of_the_library_is_used_or_refused() -> None:
    from reasoning_gym.factory import DATASETS

    assert list(TASKS) == sorted(TASKS) and not {*TASKS} & {*REFUSED}
    if importlib.metadata.version("reasoning-gym") == GATED_WITH:
        assert {*TASKS, *REFUSED} == {*DATASETS}


def test_the_docs_have_the_counts_of_the_lists() -> None:
    docs = (Path(__file__).resolve().parents[2] / "docs" / "tasks.md").read_text(encoding="utf-8")
    refused = [int(count) for count in re.findall(r"^\| (\d+) \|", docs, re.MULTILINE)]
    assert f"Of the {len(TASKS) + len(REFUSED)} tasks of version {GATED_WITH}, {len(TASKS)} passed" in docs
    assert sum(refused) == len(REFUSED) and refused[0] == len(RUN_CODE)


@needs_library
def test_the_gate_still_agrees_with_the_recorded_reasons() -> None:
    """For some tasks that pass, all that run code (eight are known from elsewhere), and some with other faults."""
    from reasoning_gym_gate import DATASETS, code_run, refusals

    assert [task for task in sorted(DATASETS) if code_run(DATASETS[task][0])] == RUN_CODE
    faulty = ["boxnet", "complex_arithmetic", "gsm_symbolic", "isomorphic_strings"]
    found = dict(refusals([*SAMPLE, *RUN_CODE, *faulty], 8))
    assert found == {**dict.fromkeys(SAMPLE), **{task: REFUSED[task] for task in (*RUN_CODE, *faulty)}}
    assert {"countdown", "n_queens", "puzzle24", "simple_integration", "spiral_matrix"} <= {*RUN_CODE}


@needs_library
@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("return helper(answer)", "helper uses eval"),
        ("return [eval(part) for part in answer]", "Task.score_answer uses eval"),
        ("return self.method(answer)", "Task.method uses exec"),
        ("return Line(answer)", "Line.__init__ uses parse_expr"),
        ("return self.board.move(answer)", "Board.move uses eval"),
        ("return self.shared(answer)", "Task.shared uses compile"),
        ("return sympify(answer)", None),  # the library's own, not sympy's
    ],
)
def test_the_gate_finds_code_that_a_scorer_reaches(body: str, reason: str | None) -> None:
    from reasoning_gym_gate import code_run

    source = f"""
def helper(text): return eval(text)
def sympify(text): return len(text)
class Line:
    def __init__(self, text): self.value = sympy.parse_expr(text)
class Board:
    def move(self, text): return eval(text)
class Task:
    def score_answer(self, answer, entry): {body}
    def method(self, text): exec(text)
    @classmethod
    def shared(cls, text): return compile(text, "", "eval")
    def unused(self, text): return eval(text)
"""
    names: dict[str, Any] = {"__name__": "reasoning_gym.fake"}
    exec(source, names)
    assert code_run(names["Task"]) == reason


@needs_library
def test_the_gate_does_not_let_a_generator_be_seeded_from_outside() -> None:
    """list_functions draws from Python's global generator: 19 of 300 entries with seed 0."""
    from reasoning_gym_gate import digest, made

    found = set()
    for _ in range(2):
        random.seed(0)
        found.add(digest(made("list_functions", 300)))
    assert len(found) == 2


class Scorer:
    """A verifier that scores by a function of (answer, correct answer), with the interface that the gate calls."""

    def __init__(self, value: Callable[[str, str], float | None]) -> None:
        self.value = value

    def verify_batch(self, answers: Sequence[str], references: Sequence[Any]) -> list[Score]:
        texts = [answer.removeprefix("<answer>").removesuffix("</answer>").strip() for answer in answers]
        values = [self.value(text, reference["entry"]["answer"]) for text, reference in zip(texts, references)]
        return [Score(v, Outcome.CRASHED if v is None else Outcome.CORRECT if v else Outcome.WRONG) for v in values]

    def check_references(self, references: Sequence[Any]) -> list[Score]:
        return self.verify_batch([reference["entry"]["answer"] for reference in references], references)

    def close(self) -> None: ...


@needs_library
@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (lambda text, own: float(text == own), None),
        (lambda text, own: 0.0, "its own answers do not count: "),
        (lambda text, own: float(text in (own, "zebra zebra")), "its scorer accepts junk such as 'zebra zebra'"),
        (lambda text, own: None if text == "{}" else float(text == own), "its scorer fails on junk such as '{}'"),
        (lambda text, own: float(text in (own, "")), "its scorer accepts an empty answer"),
        (lambda text, own: float(text == own or text.startswith("What")), "its scorer accepts the question"),
        (lambda text, own: float(text.startswith(own)), "its scorer accepts two answers"),
        (lambda text, own: float(text.endswith(own)), "its scorer accepts two answers"),
        (
            lambda text, own: float(len(text) == 2 and text.isdigit()),
            "its scorer accepts the answers to other questions",
        ),
    ],
)
def test_the_gate_finds_faults_of_a_scorer(value: Callable[[str, str], float], reason: str | None) -> None:
    from reasoning_gym_gate import refusal

    entries = [{"question": f"What is {n}?", "answer": str(n)} for n in range(60, 85)]
    assert refusal("task", entries, Scorer(value)) == reason


@needs_library
def test_only_a_complete_solution_is_correct(verifier: ReasoningGymVerifier) -> None:
    """mini_sudoku gives 0.9 * 15/16 for one wrong cell."""
    sudoku = reference("mini_sudoku")
    solution = sudoku["entry"]["answer"]
    changed = ("2" if solution[0] == "1" else "1") + solution[1:]
    answers = [
        f"<answer>\n{solution}\n</answer>",
        f"\\boxed{{{solution}}}",
        f"<answer>{changed}</answer>",
        solution,
        "",
    ]
    scores = verifier.verify_batch(answers, [sudoku] * 5)
    outcomes = [Outcome.CORRECT, Outcome.CORRECT, Outcome.WRONG, Outcome.NO_ANSWER, Outcome.NO_ANSWER]
    assert [score.outcome for score in scores] == outcomes
    assert [score.value for score in scores] == [1.0, 1.0, 0.0, 0.0, 0.0]
    assert "gives 0.8" in scores[2].detail


@needs_library
def test_an_answer_is_never_executed(verifier: ReasoningGymVerifier, tmp_path: Path) -> None:
    """Whatever task a reference names: tasks that would run the answer are not graded at all."""
    marker = tmp_path / "ran"
    answer = f"<answer>__import__('pathlib').Path({str(marker)!r}).touch() or 24</answer>"
    references = [reference(task) for task in ("countdown", "spiral_matrix", "gcd", "game_of_life_halting")]
    scores = verifier.verify_batch([answer] * 4, references)
    assert [score.outcome for score in scores] == [Outcome.BAD_REFERENCE] * 2 + [Outcome.WRONG, Outcome.BAD_REFERENCE]
    assert not marker.exists()


@needs_library
def test_invalid_references_are_reported(verifier: ReasoningGymVerifier) -> None:
    good = reference("gcd")
    entry = good["entry"]
    bad = ["6", {}, {"task": ["gcd"]}, {"task": "chess", "entry": entry}, {"task": "gcd", "entry": {"answer": None}}]
    bad.append({"task": "mini_sudoku", "entry": {**reference("mini_sudoku")["entry"], "answer": ""}})
    scores = verifier.check_references([good, *bad])
    assert [score.outcome for score in scores] == [Outcome.CORRECT] + [Outcome.BAD_REFERENCE] * len(bad)


@needs_library
def test_a_task_is_a_data_set(verifier: ReasoningGymVerifier) -> None:
    """tower_of_hanoi has few different problems; of equal ones the first is kept."""
    problems = load_problems("reasoning-gym:tower_of_hanoi")
    assert len({p.id for p in problems}) == len({str(p.prompt) for p in problems}) == len(problems)
    assert 20 < len(problems) < 1000
    assert problems == load_problems("reasoning-gym:tower_of_hanoi")
    assert {p.verifier for p in problems} == {"reasoning-gym"}
    assert {score.value for score in verifier.check_references([p.reference for p in problems])} == {1.0}


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("gdc", r"dataset is 'reasoning-gym:gdc': this task is not known; possible are gcd, .*, zebra_puzzles"),
        (
            "countdown",
            r"this task is refused: its scorer runs text as code: .* uses parse_expr; possible are .*count_bits",
        ),
    ],
)
def test_a_refused_task_is_an_error_that_lists_the_accepted_ones(task: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_problems(f"reasoning-gym:{task}")


def test_without_the_library_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for ask in (lambda: load_problems("reasoning-gym:gcd"), ReasoningGymVerifier):
        with pytest.raises(UserError, match=r'pip install "plumbline-rl\[reasoning-gym\]"'):
            ask()
