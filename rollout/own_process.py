"""A process that belongs to one object: a worker of rewards.worker that is asked by one thread at a time."""

from __future__ import annotations

import json
import os
import select
import sys
import time
from collections.abc import Sequence
from typing import Any

from rewards.score import Outcome
from rewards.verdict import Verdict
from rewards.worker_process import WorkerProcess

_START_DEADLINE = 120.0  # seconds, of which imports may take some


class OwnProcess:
    """Answers one item after another. It is killed, with all that it has started, at a deadline, at `close`, or if it dies.

    task, arguments: see rewards.pool.WorkerPool. Raises RuntimeError or TimeoutError if it cannot be started.
    """

    def __init__(
        self, task: str, arguments: dict[str, Any], *, deadline: float, memory_limit: int, max_reason: int
    ) -> None:
        options = {"task": task, "arguments": arguments, "deadline": deadline}
        options |= {"memory_limit": memory_limit, "max_reason": max_reason}
        path = os.pathsep.join(filter(None, sys.path))
        self._worker = WorkerProcess(json.dumps(options), {"PYTHONPATH": path})
        outcome, reason = self._reply(_START_DEADLINE)
        if outcome != "ready":
            self.close()
            raise RuntimeError(reason)

    def ask(self, item: Sequence[Any], deadline: float) -> Verdict:
        """Raises TimeoutError after `deadline` seconds and RuntimeError if the process has died. Either ends it."""
        self._worker.outbox = json.dumps([item]).encode() + b"\n"
        outcome, reason = self._reply(deadline)
        return Verdict(Outcome(outcome), reason)

    def close(self) -> None:
        """Safe to call twice."""
        self._worker.kill()

    def _reply(self, deadline: float) -> list[str]:
        """Sends what waits to be sent, and returns the next line of the process."""
        worker, until = self._worker, time.monotonic() + deadline
        lines: list[bytes] | None = []
        while lines == []:
            poll = select.poll()
            poll.register(worker.stdout, select.POLLIN)
            if worker.outbox:
                poll.register(worker.stdin, select.POLLOUT)
            ready = [descriptor for descriptor, _ in poll.poll(1000 * max(0.0, until - time.monotonic()))]
            if not ready:
                self.close()
                raise TimeoutError(f"no answer within {deadline:g} seconds")
            if worker.stdin in ready:
                worker.send()
            if worker.stdout in ready:
                lines = worker.receive()
        if lines is None:
            self.close()
            raise RuntimeError("its process has died")
        return json.loads(lines[0])
