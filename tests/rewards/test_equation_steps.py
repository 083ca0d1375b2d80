"""Steps of arithmetic: which lines are steps, which of them are true, and where each ends."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards.equation_steps import Step, score_steps


def test_a_step_is_a_line_with_an_equation_and_ends_past_its_newline() -> None:
    text = "Let us see.\n48/2 = <<48/2=24>>24 clips\n\n48 + 24 = 73\n#### 72"
    # Line 1 states nothing; line 2 spans offsets 12 to 39; line 4 starts at 40 and has 12 characters and a newline;
    # the last line is the final answer, which the outcome reward scores.
    assert score_steps(text) == [Step(1.0, 39), Step(0.0, 53)]
    assert text[39:53] == "\n48 + 24 = 73\n"


def test_the_last_step_may_end_at_the_end_of_the_text() -> None:
    assert score_steps("1 + 1 = 2") == [Step(1.0, 9)]


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("She makes 9 * 2 = $<<9*2=18>>18 every day.", 1.0),
        ("9 * 2 = <<9*2=19>>18", 0.0),  # the annotation is false
        ("9 * 2 = <<9*2=18>>19", 0.0),  # what the reader sees is false
        ("(3 + 4) * 2 = 14", 1.0),
        ("3 + 4 * 2 = 14", 0.0),  # multiplication first: 11
        ("10 - 2 - 3 = 5", 1.0),  # from the left; from the right it would be 11
        ("12 / 2 / 3 = 2", 1.0),
        ("-3 + 5 = 2", 1.0),
        ("1/3 + 1/6 = 1/2", 1.0),
        ("10 / 3 = 3.33", 0.0),  # exact, not rounded
        ("0.1 + 0.2 = 0.3", 1.0),  # exact, not floating point
        ("2 * 3 = 6 = 12 / 2", 1.0),
        ("2 * 3 = 6 = 7", 0.0),
        ("1+1=2 and 2+2=5", 0.0),  # all must be true
        ("1+1=2, 2+2=4.", 1.0),
        ("$1,000 * 2 = $2,000", 1.0),
        ("3 x 4 = 12", 1.0),
        (r"3 \times 4 = 12", 1.0),
        ("3 × 4 ÷ 2 = 6", 1.0),
        ("20% * 50 = 10", 1.0),
        ("2 * 1 1/2 = 3", 1.0),  # a mixed number
        ("total = 3 + 4 = 7 apples", 1.0),
        ("1 / 0 = 1", 0.0),
        ("1" * 41 + " + 0 = " + "1" * 41, 0.0),  # over 40 digits
        ("1 + 1 = 2 " + "x" * 400, 0.0),  # over 400 characters
        ("1 + 1 = 2".ljust(400) + "\n", 1.0),  # its end is none of them
        ("1 + 1 = 2".ljust(401) + "\n", 0.0),
    ],
)
def test_a_line_is_right_if_all_its_equations_are_exactly_true(line: str, value: float) -> None:
    assert [step.value for step in score_steps(line)] == [value]


@pytest.mark.parametrize(
    "line",
    ["no equation", "x = 5", "5 = 5", "12 apples * 4 = 48", "x - 30 + 5 = 30", "150 = 10+4c", "5 + 3", "=", "= 7", "5 + = 3",
     "1 + 1 = 2 #### 2", "\\boxed{1+1=2}", "((((1", "2020"],
)  # fmt: skip
def test_a_line_without_arithmetic_is_not_a_step(line: str) -> None:
    assert score_steps(line) == []


NONZERO = st.integers(-999, 999).filter(bool)  # adding 0 is no step


@given(a=NONZERO, b=NONZERO, c=st.integers(1, 99), off=st.sampled_from([0, 0, 1, -1]))
@settings(max_examples=200, deadline=None)
def test_true_if_and_only_if_python_says_so(a: int, b: int, c: int, off: int) -> None:
    expected = float(off == 0)
    for left, result in ((f"{a} + ({b}) * {c}", a + b * c), (f"({a} - ({b})) * {c}", (a - b) * c)):
        assert [step.value for step in score_steps(f"{left} = {result + off}")] == [expected]


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("0*5=0\n" * 100, []),
        ("5+0=5\n5-0=5\n0+5=5\n5*1=5\n1*5=5\n5/1=5\n0/5=0\n100%*5=5\n-1*5=-5\n1*0+5=5", []),
        ("2+3=5\n" * 100, [1.0]),
        ("2+3=5\n3+2=5\n10/2=5\n5=2+3\n4+1=10/2\n2+3+0=5", [1.0]),  # nothing new in other words
        ("2+3=5 and 5*2=10\n10/2=5\n5*2=10\n10-4=6", [1.0, 1.0]),
        ("2+3=5, 2+3=5, 3+4=7\n3+4=7", [1.0]),
        ("5*1+2=7", [1.0]),
        ("1/3+1/6=1/2\n3/6+0=0.5\n2/4*1=1/2", [1.0]),  # the same value
        ("2+3=6\n" * 100, [0.0]),
        ("5*1=6\n0*5=5", [0.0, 0.0]),  # trivial, and wrong all the same
        ("2+3=6\n2+3=7\n2+3=6\n2+3=5", [0.0, 0.0, 1.0]),
        ("2+3=6, 3+4=7\n2+3=6, 4+4=8\n4+4=8", [0.0]),  # a wrong line says what is right in it too
        ("1/0=1\n1/0=1\n2/0=1", [0.0, 0.0]),
        ("2*1=2\n2*1=2\n1+1=2", []),
        ("1+1=2\n2*1=2", [1.0]),
    ],
)  # fmt: skip
def test_only_a_new_result_is_a_step(text: str, values: list[float]) -> None:
    """The rewards of steps add up, so a policy would repeat any line that is rewarded each time."""
    assert [step.value for step in score_steps(text)] == values


def test_results_in_the_prompt_are_not_new() -> None:
    """For example in the solved examples before the question. Numbers in the prompt are not results."""
    prompt = f"Q: 2 and 3? A: 2 + 3 = <<2+3=5>>5\n{'1' * 50}+0=0\n{'x' * 500}9+9=18\nQ: 3 and 4, or 8?"
    assert score_steps("2+3=5\n1+4=5\n3+4=7\n4+4=8\n9+9=18", given=prompt) == [
        Step(1.0, 18), Step(1.0, 24), Step(1.0, 30),
    ]  # fmt: skip


@given(
    st.lists(st.tuples(st.integers(0, 9), st.sampled_from("+-*/"), st.integers(0, 9), st.integers(-9, 81)), max_size=30)
)
@settings(max_examples=200, deadline=None)
def test_there_are_at_most_as_many_correct_steps_as_results(equations: list[tuple[int, str, int, int]]) -> None:
    text = "".join(f"{a}{sign}{b}={result}\n" for a, sign, b, result in equations)
    values = [step.value for step in score_steps(text * 2)]
    assert sum(values) <= len({result for *_, result in equations})
    assert len(values) <= len(set(equations))


@given(st.text(alphabet="0123456789+-*/()=.,%$<> x\n#\\a", max_size=300))
@settings(max_examples=300, deadline=None)
def test_any_text_is_scored_with_rising_ends(text: str) -> None:
    steps = score_steps(text)
    ends = [step.end for step in steps]
    assert ends == sorted(set(ends))
    assert all(end == len(text) or text[end - 1] == "\n" for end in ends)


@pytest.mark.parametrize("piece", ["(", "1+", "=", "<<", "1", "\n", "1=1 ", "((1+1)=2", " ", "- ", "1 x ", "%"])
def test_time_is_linear_in_the_text(piece: str) -> None:
    start = time.monotonic()
    score_steps(piece * 100_000)
    score_steps((piece * (390 // len(piece)) + "\n") * 200)
    assert time.monotonic() - start < 2


def test_the_worked_solutions_of_gsm8k_are_true(shared_file: Callable[[str], Path]) -> None:
    lines = shared_file("data/gsm8k_train.jsonl").read_text().splitlines()[::10]
    values = [step.value for line in lines for step in score_steps(json.loads(line)["answer"])]
    # About 3.3 steps a solution; of the few false ones most are false in the data (2*8 = 24, 8*3 = <<80*3=240>>240).
    assert len(values) > 3 * len(lines)
    assert sum(values) / len(values) > 0.99
