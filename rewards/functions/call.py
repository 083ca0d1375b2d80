"""Calls a reward function, and turns what it returns or raises into results."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import io
import traceback
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from numbers import Real
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

from rewards.functions.declaration import ENVIRONMENTS
from rewards.score import Outcome, Score
from rewards.verifier_contract import is_finite

Function = Callable[..., Any]
Call = tuple[Mapping[str, Any], int | None]  # arguments, and the number of completions if one call grades a group
_SHOWN = 80  # characters of a returned value in a message
_DETAIL = 160  # characters of a detail
_PRINTED = 120  # characters of the last that was printed
_MAX_PARTS = 100  # of a Score; each becomes a curve


class Result(NamedTuple):
    """A score as JSON has it. refused: the function returned something that is not a reward."""

    outcome: str
    value: float | None
    parts: Mapping[str, float]
    detail: str
    refused: bool = False

    def score(self) -> Score:
        return Score(self.value, Outcome(self.outcome), self.parts, self.detail)


def result_of(returned: Any) -> Result:
    """The result for one returned value.

    True and False are correct and wrong, with the rewards 1 and 0. A number is the reward; it counts as correct from 1
    up. None is an answer that is not graded. A Score stays as it is. Everything else is refused: CRASHED.
    """
    if returned is None:
        return Result(Outcome.NOT_GRADED.value, None, {}, "returned None")
    if isinstance(returned, Score):
        return _result_of_score(returned)
    number = _number(returned)
    if number is None:
        return _refused(returned)
    outcome = Outcome.CORRECT if number >= 1 else Outcome.WRONG
    return Result(outcome.value, number, {}, f"returned {_shown(returned)}")


def results_of(returned: Any, count: int) -> list[Result]:
    """The results for the list that a function of a whole group returned for `count` completions."""
    listed = returned.tolist() if hasattr(returned, "tolist") else returned
    if not isinstance(listed, Sequence) or isinstance(listed, str | bytes | bytearray) or len(listed) != count:
        why = f"returned {_shown(returned)}, not a list with one reward for each of {count} completions"
        return [Result(Outcome.CRASHED.value, None, {}, why, refused=True)] * count
    return [result_of(one) for one in listed]


def result_of_error(error: BaseException) -> Result:
    """The result for a call that raised: the last line of its traceback without notes, and where it was raised."""
    frames = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    if isinstance(error, SyntaxError) and error.filename:
        frames = [(error.filename, error.lineno)]
    where = f" ({Path(frames[-1][0]).name}, line {frames[-1][1]})" if frames else ""
    return Result(Outcome.CRASHED.value, None, {}, last_line(error)[:_DETAIL] + where)


def last_line(error: BaseException) -> str:
    """The exception as the last line of its traceback has it, without notes; a message of several lines is joined."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{type(error).__name__}: {error.msg}"
    return " ".join(traceback.format_exception_only(error)[0].split())


def call(function: Function, arguments: Mapping[str, Any], count: int | None) -> list[Result]:
    """The results of one call. count: the completions of a group; None if the function grades one completion."""
    printed = Tail()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        try:
            results = _read(function(**with_environments(arguments)), count)
        except KeyboardInterrupt:  # Ctrl-C, where the function runs in the trainer's process
            raise
        except BaseException as error:  # noqa: BLE001  whatever the user's function raises is a result
            results = [result_of_error(error)] * (count or 1)
    return [r._replace(detail=r.detail + printed.shown()) for r in results]


def with_environments(arguments: Mapping[str, Any]) -> Mapping[str, Any]:
    """The arguments; environments, which come as their attributes, as objects that have these."""
    given = arguments.get(ENVIRONMENTS)
    if not isinstance(given, list):
        return arguments
    return {**arguments, ENVIRONMENTS: [SimpleNamespace(**attributes) for attributes in given]}


def call_waiting(function: Function, calls: Sequence[Call], *, deadline: float, concurrency: int) -> list[list[Result]]:
    """The results of calls of an async function, at most `concurrency` of which wait at once.

    A call that waits longer than `deadline` seconds is CRASHED, not TIMEOUT: that another program is slow says nothing
    about the answer.
    """

    async def one(arguments: Mapping[str, Any], count: int | None, free: asyncio.Semaphore) -> list[Result]:
        async with free:
            try:
                return _read(await asyncio.wait_for(function(**with_environments(arguments)), deadline), count)
            except TimeoutError:
                late = Result(
                    Outcome.CRASHED.value, None, {}, f"no result within {deadline:g} s, or it raised TimeoutError"
                )
                return [late] * (count or 1)
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # noqa: BLE001  as in `call`; CancelledError too is no Exception
                return [result_of_error(error)] * (count or 1)

    async def all_of_them() -> list[list[Result]]:
        free = asyncio.Semaphore(concurrency)
        return await asyncio.gather(*(one(arguments, count, free) for arguments, count in calls))

    with contextlib.redirect_stdout(Tail()), contextlib.redirect_stderr(Tail()):
        return asyncio.run(all_of_them())


def _read(returned: Any, count: int | None) -> list[Result]:
    if inspect.isawaitable(returned):  # a lambda or a partial that hides an async function
        if inspect.iscoroutine(returned):
            returned.close()
        return [_refused(returned, "write the function itself with async def")] * (count or 1)
    return [result_of(returned)] if count is None else results_of(returned, count)


def _result_of_score(score: Score) -> Result:
    if not isinstance(score.outcome, Outcome):
        return _refused(score, f"its outcome is {_shown(score.outcome)}, which is not a plumbline.Outcome")
    value = None if score.value is None else _number(score.value)
    if score.outcome.gradable != (value is not None) or (value is None) != (score.value is None):
        why = "a finite number" if score.outcome.gradable else "None"
        return _refused(score, f"its value is {_shown(score.value)}: with {score.outcome} it must be {why}")
    if not isinstance(score.parts, Mapping) or len(score.parts) > _MAX_PARTS:
        return _refused(score, f"its parts must be a dict with at most {_MAX_PARTS} names")
    parts = {str(name): _number(part) for name, part in score.parts.items()}
    if bad := [n for n, part in parts.items() if part is None or len(n) > _SHOWN or not n.isprintable()]:
        why = f"a name has at most {_SHOWN} printable characters, and a finite number"
        return _refused(score, f"part {_shown(bad[0])}: {why}")
    plain = {name: part for name, part in parts.items() if part is not None}
    return Result(score.outcome.value, value, plain, str(score.detail)[:_DETAIL])


def _refused(returned: Any, why: str = "return True, False, a finite number, a Score or None") -> Result:
    what = f"returned {_shown(returned)}, which is not a reward: {why}"
    return Result(Outcome.CRASHED.value, None, {}, what, refused=True)


def _number(value: Any) -> float | None:
    """The finite number in a number of Python, numpy or torch; None if it is none."""
    if not isinstance(value, Real | Decimal) and getattr(value, "size", None) is not None and hasattr(value, "item"):
        with contextlib.suppress(Exception):
            value = value.item()
    return float(value) if isinstance(value, Real | Decimal) and is_finite(value) else None


def _shown(value: Any) -> str:
    try:
        text = " ".join(repr(value).split())
    except Exception:  # noqa: BLE001  a class of the user's may have a broken __repr__
        text = f"a {type(value).__name__}"
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"


class Tail(io.TextIOBase):
    """A text stream that keeps the last characters of what is printed."""

    def __init__(self) -> None:
        self._kept = ""

    def write(self, text: str, /) -> int:
        self._kept = (self._kept + text[-_PRINTED:])[-_PRINTED:]
        return len(text)

    def shown(self) -> str:
        text = " ".join(self._kept.split())
        return f"; printed {text!r}" if text else ""
