"""Calls a reward function, and turns what it returns or raises into results."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import io
import traceback
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any, NamedTuple

from rewards.score import Outcome, Score
from rewards.verifier_contract import is_finite

Function = Callable[..., Any]
Call = tuple[Mapping[str, Any], int | None]  # arguments, and the number of completions if one call grades a group
_SHOWN = 80  # characters of a returned value in a message
_DETAIL = 160  # characters of a detail
_PRINTED = 120  # characters of the last that was printed


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
    value = _unwrapped(returned)
    if not isinstance(value, Real) or not is_finite(value):
        return _refused(returned)
    number = float(value)
    outcome = Outcome.CORRECT if number >= 1 else Outcome.WRONG
    return Result(outcome.value, number, {}, f"returned {_shown(returned)}")


def results_of(returned: Any, count: int) -> list[Result]:
    """The results for the list that a function of a whole group returned for `count` completions."""
    listed = returned.tolist() if hasattr(returned, "tolist") else returned
    if not isinstance(listed, Sequence) or isinstance(listed, str) or len(listed) != count:
        why = f"returned {_shown(returned)}, not a list with one reward for each of {count} completions"
        return [Result(Outcome.CRASHED.value, None, {}, why, refused=True)] * count
    return [result_of(one) for one in listed]


def result_of_error(error: BaseException) -> Result:
    """The result for a call that raised: the last line of its traceback, and where it was raised."""
    (last, *_) = traceback.format_exception_only(error)[-1].strip().splitlines()
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return Result(Outcome.CRASHED.value, None, {}, last[:_DETAIL] + where)


def call(function: Function, arguments: Mapping[str, Any], count: int | None) -> list[Result]:
    """The results of one call. count: the completions of a group; None if the function grades one completion."""
    printed = _Tail()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        try:
            results = _read(function(**arguments), count)
        except (Exception, SystemExit) as error:  # noqa: BLE001  whatever the user's function raises is a result
            results = [result_of_error(error)] * (count or 1)
    return [r._replace(detail=r.detail + printed.shown()) for r in results]


def call_waiting(function: Function, calls: Sequence[Call], *, deadline: float, concurrency: int) -> list[list[Result]]:
    """The results of calls of an async function, at most `concurrency` of which wait at once.

    A call that waits longer than `deadline` seconds is CRASHED, not TIMEOUT: that another program is slow says nothing
    about the answer.
    """

    async def one(arguments: Mapping[str, Any], count: int | None, free: asyncio.Semaphore) -> list[Result]:
        async with free:
            try:
                return _read(await asyncio.wait_for(function(**arguments), deadline), count)
            except TimeoutError:
                late = Result(
                    Outcome.CRASHED.value, None, {}, f"no result within {deadline:g} s, or it raised TimeoutError"
                )
                return [late] * (count or 1)
            except (Exception, SystemExit) as error:  # noqa: BLE001  as in `call`
                return [result_of_error(error)] * (count or 1)

    async def all_of_them() -> list[list[Result]]:
        free = asyncio.Semaphore(concurrency)
        return await asyncio.gather(*(one(arguments, count, free) for arguments, count in calls))

    with contextlib.redirect_stdout(_Tail()), contextlib.redirect_stderr(_Tail()):
        return asyncio.run(all_of_them())


def _read(returned: Any, count: int | None) -> list[Result]:
    if inspect.isawaitable(returned):  # a lambda or a partial that hides an async function
        if inspect.iscoroutine(returned):
            returned.close()
        return [_refused(returned)] * (count or 1)
    return [result_of(returned)] if count is None else results_of(returned, count)


def _result_of_score(score: Score) -> Result:
    outcome, value = score.outcome, score.value
    parts = score.parts if isinstance(score.parts, Mapping) else {}
    numbers = [*parts.values(), *([] if value is None else [value])]
    is_valid = isinstance(outcome, Outcome) and outcome.gradable == (value is not None)
    if not is_valid or not all(isinstance(n, Real) and is_finite(n) for n in numbers):
        return _refused(score)
    plain = {str(name): float(part) for name, part in parts.items()}
    return Result(outcome.value, None if value is None else float(value), plain, str(score.detail)[:_DETAIL])


def _refused(returned: Any) -> Result:
    what = f"returned {_shown(returned)}, which is not a reward: return True, False, a finite number, a Score or None"
    return Result(Outcome.CRASHED.value, None, {}, what, refused=True)


def _unwrapped(value: Any) -> Any:
    """The Python number in a number of numpy or torch."""
    if not isinstance(value, Real) and getattr(value, "size", None) is not None and hasattr(value, "item"):
        with contextlib.suppress(Exception):
            return value.item()
    return value


def _shown(value: Any) -> str:
    try:
        text = " ".join(repr(value).split())
    except Exception:  # noqa: BLE001  a class of the user's may have a broken __repr__
        text = f"a {type(value).__name__}"
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"


class _Tail(io.TextIOBase):
    """A text stream that keeps the last characters of what is printed."""

    def __init__(self) -> None:
        self._kept = ""

    def write(self, text: str, /) -> int:
        self._kept = (self._kept + text[-_PRINTED:])[-_PRINTED:]
        return len(text)

    def shown(self) -> str:
        text = " ".join(self._kept.split())
        return f"; printed {text!r}" if text else ""
