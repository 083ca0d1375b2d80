"""Reward functions in a worker process of `rewards.pool`.

An item is ("declare",), or ("call", calls) with the arguments and the number of completions of each call. The verdict is
CORRECT, with the function's declaration or the results of each call as JSON in place of a reason; or CRASHED, with the
reason why the function could not be loaded.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rewards.errors import UserError
from rewards.functions.call import call, call_waiting, result_of_error
from rewards.functions.declaration import Declaration
from rewards.functions.source import Source
from rewards.verdict import Verdict, crashed, right

MAX_RESULTS = 1 << 20  # characters of the results of one item
MEMORY_LIMIT = 8 << 30  # bytes of address space for code of the user; libraries such as torch reserve several GiB


def load(source: Mapping[str, Any], folder: str, deadline: float) -> Callable[..., Verdict]:
    """Imports the function in the trainer's working folder. A worker calls this once.

    A failed import is the answer to "declare", with the line that it ends in.
    """
    process = os.getpid()
    try:
        function = imported(source, folder)
        declaration = Declaration.of(function)
    except BaseException as error:  # noqa: BLE001  the user's file may raise anything
        reason = str(error) if isinstance(error, UserError) else result_of_error(error).detail
        return lambda *item: crashed(reason)
    declared = json.dumps(asdict(declaration))
    seconds = deadline if declaration.deadline is None else declaration.deadline

    def grade(what: str, calls: Sequence[tuple[Mapping[str, Any], int | None]] = ()) -> Verdict:
        if what == "declare":
            return right(declared)
        if declaration.is_async:
            results = call_waiting(function, calls, deadline=seconds, concurrency=len(calls))
        else:
            results = [call(function, arguments, count) for arguments, count in calls]
        end_fork_of(process)
        written = json.dumps(results)
        return right(written) if len(written) <= MAX_RESULTS else crashed(f"results of {len(written)} characters")

    return grade


def imported(source: Mapping[str, Any], folder: str) -> Callable[..., Any]:
    """The function of a `Source` as JSON has it, imported in this folder. Raises whatever the import raises."""
    os.chdir(folder)
    process = os.getpid()
    try:
        return Source(**{**source, "folders": tuple(source["folders"])}).load()
    finally:
        end_fork_of(process)


def end_fork_of(process: int) -> None:
    """Ends this process if the user's code has forked and this is the child: only the worker itself may reply."""
    if os.getpid() != process:
        os._exit(0)
