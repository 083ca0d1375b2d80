"""Built-in puzzles: different from each other, equal for equal seeds, solvable, and without the answer in the prompt."""

from __future__ import annotations

import json
import re
from fractions import Fraction
from functools import partial
from pathlib import Path

import pytest

from rewards.puzzle_answer import PUZZLES, check_reference, grade, read_puzzle
from rewards.puzzles.sudoku4 import GRIDS
from rewards.score import Outcome
from rollout.problems import BUILT_IN, load_problems
from rollout.puzzles import PUZZLE_MAKERS, base_conversion, countdown, linear_equations, puzzle_problems, sudoku4
from rollout.records import Problem


def question(problem: Problem) -> str:
    (message,) = problem.prompt
    assert isinstance(message, dict)
    return message["content"]


def sample(name: str) -> list[Problem]:
    return puzzle_problems(PUZZLE_MAKERS[name], 400, seed=0)


def test_every_puzzle_that_can_be_graded_is_made() -> None:
    assert PUZZLE_MAKERS.keys() == PUZZLES.keys()


def test_the_docs_name_every_built_in_task_and_how_many_problems_it_has() -> None:
    docs = (Path(__file__).resolve().parents[2] / "docs" / "tasks.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `([a-z0-9-]+)` \| ([\d,]+) \|", docs, re.MULTILINE))
    assert rows == {name: f"{len(load_problems(name)):,}" for name in BUILT_IN}
    examples = re.findall(r'^\{"puzzle".*\}$', docs, re.MULTILINE)
    assert [check_reference(json.loads(example)).outcome for example in examples] == [Outcome.CORRECT] * len(PUZZLES)


@pytest.mark.parametrize("name", PUZZLE_MAKERS)
def test_problems_differ_and_depend_on_the_seed_alone(name: str) -> None:
    problems = load_problems(name)
    assert len({p.id for p in problems}) == len({question(p) for p in problems}) == len(problems) >= 2000
    assert puzzle_problems(PUZZLE_MAKERS[name], 50, seed=0) == problems[:50]
    assert puzzle_problems(PUZZLE_MAKERS[name], 50, seed=1) != problems[:50]


@pytest.mark.parametrize("name", PUZZLE_MAKERS)
def test_each_has_a_solution_that_its_prompt_does_not_contain(name: str) -> None:
    problems = sample(name)
    assert {p.verifier for p in problems} == {"puzzle"}
    assert {check_reference(p.reference).outcome for p in problems} == {Outcome.CORRECT}
    assert {grade(question(p), p.reference).outcome for p in problems} == {Outcome.NO_ANSWER}
    assert {grade(f"\\boxed{{{question(p)}}}", p.reference).is_correct for p in problems} == {False}


def test_one_answer_does_not_solve_many() -> None:
    """A constant answer is the first strategy that a policy finds."""
    for name in PUZZLE_MAKERS:
        problems = sample(name)
        answers = [f"\\boxed{{{read_puzzle(p.reference).solution}}}" for p in problems[:20]]
        most = max(sum(grade(answer, p.reference).is_correct for p in problems) for answer in answers)
        assert most <= 0.05 * len(problems), name


@pytest.mark.parametrize("problem", sample("countdown")[:20], ids=lambda p: p.id)
def test_the_prompt_of_countdown_names_what_is_graded(problem: Problem) -> None:
    *numbers, target = map(int, re.findall(r"\d+", question(problem)))
    assert isinstance(problem.reference, dict)
    assert (numbers, target) == (problem.reference["numbers"], problem.reference["target"])


@pytest.mark.parametrize("problem", sample("linear-equations")[:40], ids=lambda p: p.id)
def test_the_equations_in_the_prompt_are_those_of_the_reference(problem: Problem) -> None:
    """The solution is inserted into the text of the prompt, which the test reads by other means than those it is written by."""
    assert isinstance(problem.reference, dict)
    values = dict(part.split(" = ") for part in read_puzzle(problem.reference).solution.split(", "))
    shown = question(problem).removeprefix("Solve ").partition(".")[0]
    for equation in shown.split(" and "):
        left, right = (value_of(side, values) for side in equation.split(" = "))
        assert left == right, equation


def value_of(side: str, values: dict[str, str]) -> Fraction:
    total = Fraction(0)
    for sign, factor, unknown in re.findall(r"(-?)(\d*)([xy]?)", side.replace(" ", "").replace("+", " ")):
        if factor or unknown:
            total += (-1 if sign else 1) * int(factor or 1) * Fraction(values[unknown] if unknown else 1)
    return total


def test_a_sudoku_has_one_solution_and_its_rows_stand_in_the_prompt() -> None:
    for problem in sample("sudoku4"):
        assert isinstance(problem.reference, dict)
        givens = "".join(problem.reference["givens"])
        assert sum(all(g in (".", cell) for g, cell in zip(givens, grid)) for grid in GRIDS) == 1
        assert "\n".join(problem.reference["givens"]) in question(problem)
        assert "." in givens


def test_ranges_are_kept() -> None:
    hard = puzzle_problems(partial(countdown, num_numbers=(5, 6), numbers=(1, 9), target=(-5, 5)), 50, seed=0)
    for reference in (p.reference for p in hard):
        assert isinstance(reference, dict)
        assert len(reference["numbers"]) in (5, 6) and {*reference["numbers"]} <= {*range(1, 10)}
        assert -5 <= reference["target"] <= 5
    systems = puzzle_problems(partial(linear_equations, num_unknowns=(2, 2)), 20, seed=0)
    assert all("x = ..., y = ..." in question(p) for p in systems)
    sparse = puzzle_problems(partial(sudoku4, num_givens=(4, 4)), 100, seed=0)
    assert min(16 - p.id.count(".") for p in sparse) == 4  # as few as any 4x4 sudoku has
    with pytest.raises(ValueError, match=r"count=30: .* about 4 different problems; widen"):
        puzzle_problems(partial(base_conversion, bases=(2, 3), value=(5, 6)), 30, seed=0)
