"""What a user's verifier may return, and the errors for anything else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from rewards.errors import UserError
from rewards.score import Outcome, Score
from rewards.verifier_contract import checked_scores

RIGHT = Score(1.0, Outcome.CORRECT)
BAD: dict[str, tuple[Any, str]] = {
    "nothing": (None, r"returned None: it must return a list"),
    "one number": (1.0, r"returned 1.0: it must return a list"),
    "one score": (RIGHT, r"returned Score\(.*: it must return a list"),
    "too few": ([RIGHT], "returned 1 scores for 2 answers"),
    "too many": ([RIGHT] * 3, "returned 3 scores for 2 answers"),
    "None for each": ([RIGHT, None], "problem 'b': it returned None, which is not a Score"),
    "floats": ([RIGHT, 1.0], "problem 'b': it returned 1.0, which is not a Score"),
    "tensors": (torch.ones(2), r"problem 'a': it returned tensor\(1.\), which is not a Score"),
    "a dict": ({"a": RIGHT, "b": RIGHT}, "problem 'a': it returned 'a', which is not a Score"),
    "a tensor as value": ([RIGHT, Score(torch.tensor(1.0), Outcome.CORRECT)], r"'b': value is tensor\(1.\)"),  # pyright: ignore
    "a tensor in a list": ([Score([1.0], Outcome.CORRECT), RIGHT], r"'a': value is \[1.0\]"),  # pyright: ignore
    "text as value": ([RIGHT, Score("1", Outcome.CORRECT)], "'b': value is '1'"),  # pyright: ignore
    "NaN": ([RIGHT, Score(float("nan"), Outcome.CORRECT)], "'b': value is nan: it must be a finite number"),
    "NaN of numpy": ([RIGHT, Score(np.float32("nan"), Outcome.CORRECT)], "'b': value is .*nan.*: it must be a finite"),  # pyright: ignore
    "infinity": ([RIGHT, Score(-float("inf"), Outcome.WRONG)], "'b': value is -inf"),
    "beyond every float": (
        [RIGHT, Score(10**400, Outcome.CORRECT)],
        "'b': value is 1000.*: it must be a finite number",
    ),
    "a value that was not graded": ([RIGHT, Score(1.0, Outcome.CRASHED)], "'b': value is 1.0 with outcome CRASHED"),
    "none that was": ([Score(None, Outcome.WRONG), RIGHT], "'a': value is None with outcome WRONG"),
    "an outcome's word": ([RIGHT, Score(1.0, "correct")], "'b': outcome is 'correct'.*one of CORRECT, WRONG"),  # pyright: ignore
    "a part that is none": ([RIGHT, Score(1.0, Outcome.CORRECT, {"x": None})], "'b': part 'x' is None"),  # pyright: ignore
    "a part that is NaN": ([RIGHT, Score(1.0, Outcome.CORRECT, {"x": float("nan")})], "'b': part 'x' is nan"),
    "parts that are a list": ([RIGHT, Score(1.0, Outcome.CORRECT, [1.0])], r"'b': parts is \[1.0\]"),  # pyright: ignore
}


@pytest.mark.parametrize("name", BAD)
def test_an_invalid_score_is_rejected_with_verifier_and_problem(name: str) -> None:
    returned, message = BAD[name]
    with pytest.raises(UserError, match=message) as raised:
        checked_scores(returned, verifier="mine", problems=["a", "b"])
    assert "verifier 'mine'" in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize("value", [np.float32(0.5), np.float64(0.5), 0.5], ids=lambda value: type(value).__name__)
def test_numbers_of_other_libraries_become_floats(value: Any) -> None:
    """They can then be written to a file and added."""
    scores = (Score(v, Outcome.CORRECT, {"x": v}, "why") for v in (value, np.int64(2)))
    first, second = checked_scores(scores, verifier="mine", problems=["a", "b"])
    assert (first, second) == (
        Score(0.5, Outcome.CORRECT, {"x": 0.5}, "why"),
        Score(2.0, Outcome.CORRECT, {"x": 2.0}, "why"),
    )
    assert type(first.value) is type(second.value) is type(second.parts["x"]) is float


def test_ungradable_scores_are_valid() -> None:
    scores = [Score(None, Outcome.CRASHED, {}, "gone"), Score(None, Outcome.BAD_REFERENCE)]
    assert checked_scores(scores, verifier="mine", problems=["a", "b"]) == scores
