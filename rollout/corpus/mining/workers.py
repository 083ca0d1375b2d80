"""Processes that each take a file of pages at a time."""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from types import TracebackType
from typing import Any, Self, TypeVar

from rewards.errors import UserError

T = TypeVar("T")
REPORT_EVERY = 5  # seconds


class Workers:
    """`count` processes; with 1 the work is done in this one. None outlives this process, whatever ends it."""

    def __init__(self, count: int, report: Callable[[str], None]) -> None:
        self.report = report
        self.executor = None
        self._others = set(multiprocessing.active_children())
        if count > 1:
            context = multiprocessing.get_context("spawn")  # a fork would inherit the locks of other threads
            self.executor = ProcessPoolExecutor(count, context, initializer=_begin)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.executor is None:
            return
        if kind is not None:  # such as an interruption: nobody waits for the files that are being read
            for process in set(multiprocessing.active_children()) - self._others:
                process.terminate()
        self.executor.shutdown(cancel_futures=True)

    def map(self, what: str, function: Callable[..., T], arguments: Sequence[tuple[Any, ...]]) -> Iterator[T]:
        """function(*each of the arguments), in their order. what: the phase, which is reported as it goes on."""
        reported = -math.inf
        try:
            results = map(function, *zip(*arguments)) if self.executor is None else self._spread(function, arguments)
            for done, result in enumerate(results, 1):
                if time.monotonic() - reported > REPORT_EVERY:
                    self.report(f"{what}: {done} of {len(arguments)} files")
                    reported = time.monotonic()
                yield result
        except BrokenProcessPool:
            raise UserError(
                "workers: one was killed, perhaps for lack of memory; give the command again with a lower number, and it goes on"
            ) from None

    def _spread(self, function: Callable[..., T], arguments: Sequence[tuple[Any, ...]]) -> Iterator[T]:
        assert self.executor is not None
        return self.executor.map(function, *zip(*arguments))


def _begin() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent ends the others
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
