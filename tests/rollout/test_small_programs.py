"""Small programs: their solutions pass, nearly correct programs fail, and correct programs of another form pass."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import pytest

from rewards.program import ProgramVerifier
from rollout.records import Problem
from rollout.small_programs import LENGTHS, LETTERS, OPERATIONS, Operation, is_degenerate, run, small_programs

BY_WORDS = {operation.words: operation for operation in OPERATIONS}


@pytest.fixture(scope="module")
def verifier() -> Iterator[ProgramVerifier]:
    with ProgramVerifier(completions=True, num_workers=2) as verifier:
        yield verifier


def values(verifier: ProgramVerifier, programs: Sequence[str], problems: Sequence[Problem]) -> list[float | None]:
    return [score.value for score in verifier.verify_batch(programs, [p.reference for p in problems])]


def operations_of(problem: Problem) -> list[Operation]:
    return [BY_WORDS[words] for words in problem.id.split(", ")]


def near_misses(right: Sequence[Operation]) -> Iterator[list[Operation]]:
    """Programs with one operation left out or replaced, or with two in the wrong order."""
    for i, operation in enumerate(right):
        yield [*right[:i], *right[i + 1 :]]
        yield from ([*right[:i], other, *right[i + 1 :]] for other in OPERATIONS if other is not operation)
    first, second, third = right
    yield from ([second, first, third], [first, third, second])


def test_solutions_pass(verifier: ProgramVerifier) -> None:
    """The tests are made by functions, not by running the solutions: two definitions of each operation that must agree."""
    problems = small_programs(150, seed=0)
    assert {o for p in problems for o in operations_of(p)} == set(OPERATIONS)
    assert values(verifier, [p.metadata["worked"] for p in problems], problems) == [1.0] * 150


def test_nearly_correct_programs_fail() -> None:
    """Of the programs that are wrong on other texts, fewer than one in ten thousand pass by luck."""
    rng = random.Random(1)
    others = ["".join(rng.choices(LETTERS, k=rng.choice(LENGTHS))) for _ in range(200)]
    num_wrong = num_passing = 0
    for problem in small_programs(200, seed=0):
        assert isinstance(problem.reference, dict)
        texts, expected = zip(*((test["args"][0], test["expected"]) for test in problem.reference["tests"]))
        right = operations_of(problem)
        assert run(right, texts) == list(expected)
        assert len(set(expected)) > 1  # no constant is correct
        for near in near_misses(right):
            passes = run(near, texts) == list(expected)
            assert not passes or len(near) == len(right)  # every operation is needed
            if not passes or run(near, others) != run(right, others):
                num_wrong, num_passing = num_wrong + 1, num_passing + passes
    assert num_wrong > 15_000  # of 200 x (3 x 29 + 2)
    assert num_passing / num_wrong < 0.0001


@pytest.mark.parametrize(
    ("words", "needed"),
    [
        ("triple, first 3, upper", "first 3, triple, upper"),  # tripled or not, the first 3 letters are the same
        ("first 3, drop first 3, append x", "drop first 3, first 3, append x"),  # of 3 letters without 3 none is left
    ],
)
def test_a_task_that_a_simpler_program_solves_is_left_out(words: str, needed: str) -> None:
    verdicts = [
        is_degenerate([BY_WORDS[w] for w in text.split(", ")], ["abcdefgh", "zyxwvuts"]) for text in (words, needed)
    ]
    assert verdicts == [True, False]


def test_only_the_tests_decide(verifier: ProgramVerifier) -> None:
    """Other programs with the same results pass, as a completion of the signature or as a whole; without parentheses it fails."""
    problem = next(p for p in small_programs(100, seed=0) if p.id == "append y, reverse, every 2")
    programs = {
        '(s+"y")[::-1][::2]': 1.0,
        '("y"+s[::-1])[::2]': 1.0,
        '"".join(reversed(s + "y"))[::2]  # the long way': 1.0,
        "```python\ndef f(text):\n    text += 'y'\n    return text[::-2]\n```": 1.0,
        's+"y"[::-1][::2]': 0.0,
        '(s+"y")[::-1][::2': 0.0,
    }
    assert values(verifier, list(programs), [problem] * len(programs)) == list(programs.values())


def test_problems_differ_and_longer_lists_begin_with_shorter_ones() -> None:
    problems = small_programs(3000, seed=0)
    assert len({p.id for p in problems}) == len({str(p.prompt) for p in problems}) == 3000
    assert small_programs(100, seed=0) == problems[:100]
    assert small_programs(100, seed=1) != problems[:100]
