"""A class that is written for TRL's `environment_factory` is an environment: reset, methods as tools, get_reward."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from rewards.errors import UserError
from rewards.score import Outcome
from rollout.environment import EnvironmentClass
from rollout.records import Problem

FILE = Path(__file__).with_name("some_environments.py")


def load(name: str) -> EnvironmentClass:
    return EnvironmentClass.load(f"{FILE}:{name}")


def row(**columns: Any) -> Problem:
    return Problem(id="row", prompt="Guess the word.", reference="", metadata=columns)


def test_a_game_is_played_by_its_methods() -> None:
    wordle = load("Wordle")
    assert [schema["function"]["name"] for schema in wordle.schemas] == ["guess"]
    assert wordle.schemas[0]["function"]["parameters"]["required"] == ["guess"] and wordle.has_reward
    game, observation = wordle.start(row(word="crane"))
    assert observation == " It has 5 letters."
    assert game.call("guess", {"guess": "crown"}) == ("GGXXX", False)
    assert game.call("guess", {"guess": "no"}) == ("Error: ValueError: a guess must have 5 letters", True)
    for name in ("reset", "get_reward", "_hidden", "broken", "__init__"):
        assert game.call(name, {}) == (f"Error: there is no tool {name!r}; the tools are guess", True)
    assert game.reward().value == 0.0
    assert game.call("guess", {"guess": "crane"}) == ("GGGGG", False)
    assert (game.reward().value, game.reward().outcome) == (1.0, Outcome.CORRECT)


def test_instances_share_nothing() -> None:
    wordle = load("Wordle")
    (one, _), (other, _) = wordle.start(row(word="crane")), wordle.start(row(word="bird"))
    assert one.call("guess", {"guess": "crane"}).text == "GGGGG"
    assert other.call("guess", {"guess": "bind"}).text == "GGXG" and one.reward().value == 1.0


def test_methods_may_be_async_and_reset_may_name_its_columns() -> None:
    slow = load("Slow")
    environment, observation = slow.start(row(size=3, other="column"))
    assert observation is None and not slow.has_reward
    assert environment.call("more", {"by": 4}) == ("7", False)


@pytest.mark.parametrize(
    ("returned", "value", "outcome"),
    [
        (0.5, 0.5, Outcome.WRONG),
        (True, 1.0, Outcome.CORRECT),
        (None, None, Outcome.NOT_GRADED),
        (math.nan, None, Outcome.CRASHED),
        ([1.0], None, Outcome.CRASHED),
        ("the server is gone", None, Outcome.CRASHED),
    ],
)
def test_a_reward_that_is_none_is_never_a_zero(returned: Any, value: float | None, outcome: Outcome) -> None:
    environment, _ = load("Rewards").start(row(returned=returned))
    score = environment.reward()
    assert (score.value, score.outcome) == (value, outcome)
    assert not isinstance(returned, str) or "RuntimeError: the server is gone" in score.detail


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("NoReset", r"environment is .*NoReset': it has no method reset; give it one, reset\(self, \*\*row\)"),
        ("Undescribed", "Undescribed': its method 'give_up': .*no docstring.*; or begin its name with _"),
        ("NeedsKey", "NeedsKey': no instance of it can be made: KeyError: 'API_KEY'"),
        ("Absent", "Absent': no instance of it can be made: it has no function 'Absent'"),
    ],
)
def test_a_class_that_is_no_environment_is_refused(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load(name)


def test_a_row_that_reset_cannot_begin_with_is_named() -> None:
    with pytest.raises(UserError, match="reset fails on problem 'row': KeyError: 'word'; fix it, or drop the row"):
        load("Wordle").start(row())
    with pytest.raises(UserError, match="reset returned a list for problem 'row'; return text"):
        load("Rewards").start(row(returned=1.0, observation=["image"]))
