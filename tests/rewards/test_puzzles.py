"""Every solution of a puzzle is correct, everything else is not, and a puzzle without a solution is a bad reference."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.puzzle_answer import PuzzleVerifier, check_reference, grade
from rewards.puzzles.sudoku4 import GRIDS
from rewards.score import Outcome

COUNTDOWN = {"puzzle": "countdown", "numbers": [3, 8, 3, 8], "target": 24, "solution": "8/(3-8/3)"}
ONE_UNKNOWN = {"puzzle": "linear-equations", "unknowns": ["x"], "equations": [[6, -3]]}  # 6x = -3
# 2x + 3y = 7 and x - y = 1: 5y = 5, so y = 1 and x = 2
TWO_UNKNOWNS = {"puzzle": "linear-equations", "unknowns": ["x", "y"], "equations": [[2, 3, 7], [1, -1, 1]]}
SUDOKU = {"puzzle": "sudoku4", "givens": ["1...", "..1.", ".1..", "...1"]}
BASE = {"puzzle": "base-conversion", "number": "1f0", "from_base": 16, "to_base": 21}  # 496 = 21^2 + 2 * 21 + 13
SORTING = {"puzzle": "sorting", "numbers": [5, -3, 12, 5], "order": "descending"}

RIGHT: list[tuple[dict[str, Any], list[str]]] = [
    (COUNTDOWN, ["8/(3-8/3)", "-8 / ((8/3) - 3) = 24", r"\frac{8}{3-\frac{8}{3}}", r"8 \div (3 - 8 ÷ 3)", "[8]/[3−8/3]",
                 "24 = 8/(3-8/3)", r"24=\frac{8}{3-8/3}", "48/2 = 8/(3-8/3)"]),
    (ONE_UNKNOWN, ["-1/2", "-0.5", "x = -1/2", r"x = \frac{-3}{6} = -\frac12", "x = -1 + 1/2 = -1/2", "$-.5$"]),
    ({**TWO_UNKNOWNS, "equations": [[1, 0, 2], [0, 1, 100]]}, ["2,100"]),  # not two thousand one hundred
    (TWO_UNKNOWNS, ["x = 2, y = 1", "y=1; x=2", "(2, 1)", "2 = x, 1 = y", r"x = 2 \text{ and } y = 1", "(x, y) = (2, 1)", "x=4/2, y=1"]),
    # Two of the grids that have these givens: every solution counts.
    (SUDOKU, ["1324\n4213\n3142\n2431", "1234 4312 2143 3421"]),
    (SUDOKU, ["[[1,3,2,4],[4,2,1,3],[3,1,4,2],[2,4,3,1]]", r"\begin{bmatrix}1&3&2&4\\4&2&1&3\\3&1&4&2\\2&4&3&1\end{bmatrix}"]),
    (BASE, ["12d", "12D", "0012d", r"\text{12D}", "12d_{21}", "(12d)_{21}", r"\mathrm{12d}_{21}",
            "12d (base 21)", "12D base 21", "12d_{(21)}", r"12d_{\text{base }21}", r"12d \text{ (base 21)}", "12d in base 21", "12d Base-21", "12d₂₁"]),
    ({**BASE, "to_base": 2}, ["111110000", "0b111110000", "0B111110000", "111110000_2"]),
    ({**BASE, "to_base": 8}, ["760", "0o760", "760 (base 8)"]),  # 496 = 7 * 64 + 6 * 8
    ({"puzzle": "base-conversion", "number": "760", "from_base": 8, "to_base": 16}, ["1f0", "0x1F0", "0x1f0_{16}"]),
    (SORTING, ["12, 5, 5, -3", "[12,5,5,-3]", "12 5 5 −3", r"\{12;\,5;\,5;\,-3\}", r"12 \ge 5 \geq 5 > -3", "12>5≥5>−3"]),
    ({**SORTING, "order": "ascending"}, ["-3, 5, 5, 12", "-3 < 5 <= 5 < 12"]),
    ({"puzzle": "sorting", "numbers": [-9, 4, -20], "order": "ascending"}, ["-20 < -9 < 4", r"-20 \lt -9 \lt 4", r"-20 \leqslant -9 < 4"]),
]  # fmt: skip
WRONG: list[tuple[dict[str, Any], list[str]]] = [
    (
        COUNTDOWN,
        ["24", "8*3", "8*3*(8/8)", "8*3+8-8", "8/(3-8/3) = 25", "83-38", "3!*8-8*3", "8^(3-3)+8", "8/(3-3)+8", "(3*8)(8/8)", "25 = 8/(3-8/3)", "24 = 8*3", "8*3 = 24 = 24"],
    ),
    (ONE_UNKNOWN, ["1/2", "-2", "x = 1/2 = -1/2", "x = -1/2 = 1/2", "-0.500001"]),
    (TWO_UNKNOWNS, ["x = 1, y = 2", "(1, 2)", "x = 2, y = -1"]),
    # Another given; rows, columns, boxes that do not hold 1, 2, 3, 4 while the two others do.
    (SUDOKU, ["2134 4312 3421 1243", "1323 2414 3142 4231", "1234 3412 2143 3421", "1234 2413 3142 4321", "1111 " * 4]),
    (BASE, ["496", "12e", "1f0", "12z", "12d_{20}", "9" * 200, "12d (base 20)", "12d base 16", "12d₂₀", "0x12d", "0b12d"]),
    ({**BASE, "to_base": 8}, ["0x760", "0b760", "0o761", "760 (base 16)", "0o"]),
    (SORTING, ["-3 < 5 <= 5 < 12", "-3, 5, 5, 12", "12, 5, -3", "12, 5, 5, 3", "12, 5, 5, -3, -3"]),
]  # fmt: skip
UNPARSED: list[tuple[dict[str, Any], list[str]]] = [
    (COUNTDOWN, ["none", "8/(3-8/3", "__import__('os')", "8 8 3 3", "8/(3-8/3), 8/(3-8/3)", "24 =", "(" * 900 + ")" * 900]),
    (ONE_UNKNOWN, ["none", "x", "x =", "-1 + 1/2", "x = -1/2 = -1 + 1/2", "-1/2, 3", "-1/2 or 3", "y = -1/2", r"\sqrt{x}", "9" * 1900]),
    (TWO_UNKNOWNS, ["2", "x = 2", "x = 2, x = 2", "x = 2, 1", r"\{1, 2\}", "x = 2, y = 1, x = 3", "(2, 1), (1, 2)"]),
    (SUDOKU, ["none", "1324", "1324 4213 3142 243", "1324 4213 3142 2431 1", "1324 4213 3142 243x", "１324 4213 3142 2431"]),
    (BASE, ["none at all", "12 d", "12d or 12e", "-12d", "12.d", "9" * 201, "１２d"]),
    (SORTING, ["none", "12 > 5 > 5 > -3", "12 < 5 < 5 < -3", "12 > 5, 5 > -3", "12 >> 5 > 5", "12, 5, 5, - 3", "12, 5.0, 5, -3", "9" * 41, "٣, 5"]),
]  # fmt: skip
CASES = [
    pytest.param(reference, answer, outcome, id=f"{reference['puzzle']}-{outcome.value}-{answer[:30]}")
    for outcome, table in ((Outcome.CORRECT, RIGHT), (Outcome.WRONG, WRONG), (Outcome.UNPARSED, UNPARSED))
    for reference, answers in table
    for answer in answers
]
REFERENCES = [COUNTDOWN, ONE_UNKNOWN, TWO_UNKNOWNS, SUDOKU, BASE, SORTING]
BAD = {
    "not an object": "8/(3-8/3)",
    "no puzzle": {"numbers": [1]},
    "an unknown puzzle": {"puzzle": "chess"},
    "a puzzle that is no name": {"puzzle": ["countdown"]},
    "a missing key": {"puzzle": "countdown", "numbers": [1, 2], "solution": "1+2"},
    "a text for a number": {**COUNTDOWN, "target": "24"},
    "truth for a number": {**COUNTDOWN, "numbers": [True, 8]},
    "a solution that is wrong": {**COUNTDOWN, "solution": "8*3"},
    "a solution that is none": {**COUNTDOWN, "solution": "impossible"},
    "no solution": {**ONE_UNKNOWN, "equations": [[0, 3]]},
    "many solutions": {**TWO_UNKNOWNS, "equations": [[1, 2, 3], [2, 4, 6]]},
    "too few equations": {**TWO_UNKNOWNS, "equations": [[1, 2, 3]]},
    "an equation cut short": {**TWO_UNKNOWNS, "equations": [[1, 2, 3], [1, 2]]},
    "one unknown twice": {**TWO_UNKNOWNS, "unknowns": ["x", "x"]},
    "an unknown that is a constant": {**ONE_UNKNOWN, "unknowns": ["e"]},
    "givens that contradict": {**SUDOKU, "givens": ["11..", "....", "....", "...."]},
    # No rule is broken yet, but the empty cell of the first row can hold nothing: 4 is in its column.
    "givens that no grid has": {**SUDOKU, "givens": ["123.", "...4", "....", "...."]},
    "givens of another size": {**SUDOKU, "givens": ["1...", "..1.", ".1.."]},
    "givens of the wrong length": {**SUDOKU, "givens": ["....1", "....", "....", "...."]},
    "givens that are no digits": {**SUDOKU, "givens": ["1...", "..5.", ".1..", "...1"]},
    "a digit that the base does not have": {**BASE, "from_base": 15},
    "a base without digits": {**BASE, "to_base": 1},
    "an order that is none": {**SORTING, "order": "up"},
    "nothing to sort": {**SORTING, "numbers": []},
}


def boxed(answer: str) -> str:
    return f"So it is \\boxed{{{answer}}}."


@pytest.fixture(scope="module")
def verifier() -> Iterator[PuzzleVerifier]:
    with PuzzleVerifier(num_workers=1) as made:
        yield made


@pytest.mark.parametrize(("reference", "answer", "outcome"), CASES)
def test_an_answer_is_correct_wrong_or_unparsed(reference: dict[str, Any], answer: str, outcome: Outcome) -> None:
    assert grade(boxed(answer), reference).outcome is outcome


@pytest.mark.parametrize("reference", REFERENCES, ids=lambda r: r["puzzle"])
def test_a_text_without_a_marked_answer_has_no_answer(reference: dict[str, Any]) -> None:
    """Including an echo of the prompt, which shows an empty box."""
    for completion in ("", "None", boxed(""), "Put it within \\boxed{}.", "<think>\\boxed{24}"):
        assert grade(completion, reference).outcome is Outcome.NO_ANSWER


def test_answer_tags_are_accepted_without_a_box() -> None:
    assert grade("<think>hm</think> <answer>12d</answer>", BASE).is_correct


@pytest.mark.parametrize("case", BAD)
def test_an_invalid_puzzle_is_a_bad_reference_and_not_a_wrong_answer(case: str) -> None:
    assert check_reference(BAD[case]).outcome is Outcome.BAD_REFERENCE
    if not case.startswith("a solution"):  # answers are not graded against the stored solution
        assert grade(boxed("24"), BAD[case]).outcome is Outcome.BAD_REFERENCE


def test_the_grids_are_exactly_the_valid_ones() -> None:
    """288 is the number of 4x4 sudoku grids (OEIS A107739)."""
    assert len(GRIDS) == len({*GRIDS}) == 288
    empty = {"puzzle": "sudoku4", "givens": ["...."] * 4}
    assert all(grade(boxed(grid), empty).is_correct for grid in GRIDS)
    grid = GRIDS[100]
    changed = [grid[:cell] + digit + grid[cell + 1 :] for cell in range(16) for digit in "01234" if digit != grid[cell]]
    assert not any(grade(boxed(other), empty).is_correct for other in changed)


def test_the_worker_grades_and_a_bad_reference_has_no_value(verifier: PuzzleVerifier) -> None:
    references, answers, outcomes = zip(*(case.values for case in CASES))
    scores = verifier.verify_batch([boxed(answer) for answer in answers], references)
    assert [score.outcome for score in scores] == list(outcomes)
    assert [score.value for score in scores] == [float(outcome is Outcome.CORRECT) for outcome in outcomes]
    checked = verifier.check_references([*REFERENCES, *BAD.values()])
    assert [score.value for score in checked] == [1.0] * len(REFERENCES) + [None] * len(BAD)


@given(st.text("0123456789+-*/()=,. xy\\{}[]_^fracbox\n", max_size=300), st.sampled_from(REFERENCES))
def test_no_text_crashes_a_puzzle(text: str, reference: dict[str, Any]) -> None:
    assert grade(boxed(text), reference).outcome.gradable


HOSTILE = [
    *("(" * 1990, "((" * 400 + "1" + "))" * 400, "-" * 1990, "1" * 1990, "1+" * 990 + "1", "1/" * 990 + "1", "9^" * 900 + "9"),
    *("=" * 1990, "x=" * 990, "\\frac" * 390, "\\begin{" * 280, "\\text{" * 300, "_{" * 900, "\\\\" * 990, ", " * 990, "1 " * 990),
    *("1" * 10**6, "(" * 10**6, "\\boxed{" * 10**4, "9**9**9**9", "(3+8)!!!!!!", "1e999999999"),
]  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: f"{text[:12]}-{len(text)}")
def test_hostile_text_takes_bounded_time(text: str) -> None:
    """A tenth of a second for a puzzle: a twentieth of the deadline, and ten times the time of the slowest."""
    start = time.perf_counter()
    outcomes = {grade(boxed(text), reference).outcome for reference in REFERENCES}
    assert time.perf_counter() - start < 0.1 * len(REFERENCES)
    assert Outcome.CORRECT not in outcomes
