"""The worker process: reads its options and chunks of items, each as one JSON line, and writes one JSON line for each item.

rewards.worker_process starts it as a separate interpreter. Since it reads untrusted text of a model, it can be killed
at any moment, and its address space is limited.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import resource
import signal
from collections.abc import Callable
from typing import Any, BinaryIO

from rewards.verdict import Verdict, crashed, timeout

Grade = Callable[..., Verdict]


def main() -> None:
    requests, replies = _private_pipes()
    options = json.loads(requests.readline())
    _limit(resource.RLIMIT_AS, options["memory_limit"])
    _limit(resource.RLIMIT_CORE, 0)
    # If the parent dies while an item hangs, nobody kills this process. The default action of an alarm is performed by
    # the kernel, so it works even during a long C call, unlike a thread or a Python signal handler.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    try:
        grade = _load(options["task"], options["arguments"])
    except Exception as error:  # noqa: BLE001  the parent raises it, since no item can be graded
        _write(replies, ["failed", f"{type(error).__name__}: {error}"[: options["max_reason"]]])
        return
    _write(replies, ["ready", ""])
    for line in requests:
        for item in json.loads(line):
            signal.setitimer(signal.ITIMER_REAL, 2 * options["deadline"])
            outcome, reason = _graded(grade, item)
            signal.setitimer(signal.ITIMER_REAL, 0)
            _write(replies, [outcome.value, reason[: options["max_reason"]]])


def _graded(grade: Grade, item: list[Any]) -> Verdict:
    try:
        return grade(*item)
    except MemoryError:
        return timeout("the answer needs more memory than memory_limit")
    except RecursionError:
        return timeout("the answer is nested too deeply")
    except BaseException as error:  # noqa: BLE001  a bug of the grader is reported, and never scored as 0
        return crashed(f"{type(error).__name__}: {error}")


def _private_pipes() -> tuple[BinaryIO, BinaryIO]:
    """The two pipes under other descriptors, so that a library that prints or reads cannot disturb the protocol."""
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb", buffering=0)
    nothing = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1):
        os.dup2(nothing, standard)
    return requests, replies


def _limit(kind: int, limit: int) -> None:
    hard = resource.getrlimit(kind)[1]
    limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
    with contextlib.suppress(OSError, ValueError):  # macOS has no RLIMIT_AS; the deadline still applies there
        resource.setrlimit(kind, (limit, limit))


def _load(task: str, arguments: dict[str, object]) -> Grade:
    module, _, name = task.partition(":")
    return getattr(importlib.import_module(module), name)(**arguments)


def _write(replies: BinaryIO, reply: list[str]) -> None:
    try:
        replies.write(json.dumps(reply).encode() + b"\n")
    except BrokenPipeError:  # the parent is gone
        os._exit(0)


if __name__ == "__main__":
    main()
