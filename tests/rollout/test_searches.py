"""The task of searching: its worked solutions are traces of tries that end at a random one."""

from __future__ import annotations

import re

from rollout.records import SOLUTION, Problem
from rollout.searches import CHECKS_AGAIN, DIGITS, GIVES_UP, searches

PROBLEMS = searches(5000, seed=0)


def tries(problem: Problem) -> list[str]:
    """The digits that the worked solution tries, whose sums are right and whose form is that of the task."""
    trace, answer = re.fullmatch(r"(.*\n)</think>\\boxed\{(\d)\}", str(problem.metadata[SOLUTION]), re.DOTALL).groups()  # pyright: ignore
    number = int(problem.id.split("+")[0])
    found = [re.fullmatch(r"\+(\d)=(\d+)([<!>])\n", line).groups() for line in trace.split("Wait\n")]  # pyright: ignore
    assert all(number + int(digit) == int(total) for digit, total, _ in found)
    right = str(problem.reference)
    assert all(mark == ("!" if digit == right else "<" if digit < right else ">") for digit, _, mark in found)
    digits = [digit for digit, *_ in found]
    assert answer == digits[-1]
    return digits


def test_a_trace_tries_each_digit_once_until_it_finds_the_right_one() -> None:
    for problem in PROBLEMS[:500]:
        digits, right = tries(problem), str(problem.reference)
        assert eval(problem.id.replace("?", right).replace("=", "=="))
        before = digits[: digits.index(right)] if right in digits else digits
        assert len(set(before)) == len(before) and {*digits[len(before) :]} <= {right}


def test_traces_give_up_and_check_again_as_often_as_they_say() -> None:
    """Bounds: four standard errors of a share."""
    found = [(tries(problem), str(problem.reference)) for problem in PROBLEMS]
    assert all(digits[-1] == right or len(digits) >= 2 for digits, right in found)
    chances = [n < len(digits) - 1 for digits, right in found for n, x in enumerate(digits) if n > 0 and x != right]
    again = [n < len(digits) - 1 for digits, right in found for n, x in enumerate(digits) if x == right]
    for goes_on, share in ((chances, 1 - GIVES_UP), (again, CHECKS_AGAIN)):
        assert abs(sum(goes_on) / len(goes_on) - share) < 4 * (share * (1 - share) / len(goes_on)) ** 0.5
    first = [sum(digits[0] == str(digit) for digits, _ in found) / len(found) for digit in DIGITS]
    assert all(abs(share - 1 / 6) < 4 * (5 / 36 / len(found)) ** 0.5 for share in first)


def test_problems_are_different_and_a_longer_list_begins_with_the_shorter_one() -> None:
    assert len({problem.id for problem in PROBLEMS}) == 5000
    assert searches(100, seed=0) == PROBLEMS[:100] != searches(100, seed=1)
