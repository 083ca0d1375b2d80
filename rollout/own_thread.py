"""A thread that belongs to one object, for code of the user that may hang, that is bound to its thread, or that is async."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar

from rollout.tool_worker import Wait, reason_of

T = TypeVar("T")


class Raised(Exception):
    """A function raised its cause, in the thread. The message is the reason for users."""

    def __init__(self, cause: BaseException) -> None:
        super().__init__(reason_of(cause))
        self.__cause__ = cause


class OwnThread:
    """Runs one function after another, with one event loop for all of them: connections that are open in it stay open.

    A function that exceeds its deadline goes on by itself, since a thread cannot be stopped; it does not keep the process from ending.
    """

    def __init__(self) -> None:
        self._asked = SimpleQueue[tuple[Callable[[Wait], Any], Future[Any]] | None]()
        threading.Thread(target=self._serve, daemon=True, name="environment").start()

    def run(self, function: Callable[[Wait], T], deadline: float) -> T:
        """What function(wait) returns. Raises TimeoutError after `deadline` seconds, and Raised from whatever the function raises.

        A KeyboardInterrupt of the function is one of these: Ctrl-C interrupts only the main thread, which is not this one.
        """
        future = Future[T]()
        self._asked.put((function, future))
        return future.result(deadline)

    def close(self) -> None:
        """Ends the thread when the function that runs has returned."""
        self._asked.put(None)

    def _serve(self) -> None:
        with asyncio.Runner() as runner:
            while (asked := self._asked.get()) is not None:
                function, future = asked
                try:
                    future.set_result(function(runner.run))
                except BaseException as error:  # noqa: BLE001  the caller is told
                    future.set_exception(Raised(error))
