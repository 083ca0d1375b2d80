"""Validates the scores that a verifier returns, since users can write their own verifiers.

Without this check a value that is not a finite number would fail much later, with a traceback after the update or as
diverging training.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from numbers import Real
from typing import Any

from rewards.errors import UserError
from rewards.score import Outcome, Score

_SHOWN = 80  # characters of a returned value in a message


def checked_scores(returned: Any, *, verifier: str, problems: Sequence[str], named_by: str = "problem") -> list[Score]:
    """The scores that a verifier returned, validated, with numbers of other libraries converted to floats.

    verifier: its name. problems: the name of the problem of each score. named_by: what these names are, for messages.
    Raises UserError, with the verifier and the problem, for anything that is not a valid score.
    """
    if not isinstance(returned, Iterable):
        raise UserError(
            f"verifier {verifier!r} returned {_shown(returned)}: it must return a list with one Score for each answer"
        )
    scores = list(returned)
    if len(scores) != len(problems):
        raise UserError(
            f"verifier {verifier!r} returned {len(scores)} scores for {len(problems)} answers: it must return one Score for "
            "each answer, in order"
        )
    return [
        _checked(score, f"verifier {verifier!r}, {named_by} {problem!r}") for score, problem in zip(scores, problems)
    ]


def _checked(score: Any, where: str) -> Score:
    if not isinstance(score, Score):
        raise UserError(
            f"{where}: it returned {_shown(score)}, which is not a Score: return a rewards.score.Score such as "
            "Score(1.0, Outcome.CORRECT)"
        )
    if not isinstance(score.outcome, Outcome):
        known = ", ".join(outcome.name for outcome in Outcome)
        raise UserError(
            f"{where}: outcome is {_shown(score.outcome)}: it must be a rewards.score.Outcome, one of {known}"
        )
    if score.outcome.gradable != (score.value is not None):
        raise UserError(
            f"{where}: value is {_shown(score.value)} with outcome {score.outcome.name}: it must be None with CRASHED "
            "and BAD_REFERENCE, and a number with all other outcomes"
        )
    if not isinstance(score.parts, Mapping):
        raise UserError(f"{where}: parts is {_shown(score.parts)}: it must map names to numbers")
    return replace(
        score,
        value=None if score.value is None else _number(score.value, f"{where}: value"),
        parts={str(name): _number(part, f"{where}: part {name!r}") for name, part in score.parts.items()},
        detail=str(score.detail),
    )


def _number(value: Any, what: str) -> float:
    if not isinstance(value, Real) or not is_finite(value):
        raise UserError(
            f"{what} is {_shown(value)}: it must be a finite number such as 0.0 or 1.0 (use item() for a tensor)"
        )
    return float(value)


def is_finite(value: Any) -> bool:
    """Whether a number is finite as a float."""
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer too large for a float
        return False


def _shown(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"
