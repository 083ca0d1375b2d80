"""A pool of warm, killable worker processes with deadlines, in which all grading of model text happens.

multiprocessing and threads with timeouts are not used because a fork of the trainer inherits its memory and its GPU, a
thread cannot be stopped, and a signal is not handled during a long C call. Here each worker is a separate interpreter,
the parent always knows which item it works on, and can end it by SIGKILL.
"""

from __future__ import annotations

import json
import math
import selectors
import threading
import time
import weakref
from collections import deque
from collections.abc import Sequence
from typing import Any

from rewards.score import Outcome
from rewards.verdict import Verdict, crashed
from rewards.worker_process import WorkerProcess

_MAX_ATTEMPTS = 2  # per item: a worker may die once without the item being the cause
_START_DEADLINE = 120.0
_MAX_FAILED_STARTS = 30  # consecutive deaths during start, after which the batch fails
_FORK_PAUSE = 1.0  # seconds before a failed start of a process is retried
_RECYCLE_AFTER = 20_000  # items, after which a worker is replaced, since libraries accumulate caches


class _Batch:
    def __init__(self, items: Sequence[Sequence[Any]]) -> None:
        self.items = items
        self.pending = deque(range(len(items)))
        self.verdicts: list[Verdict | None] = [None] * len(items)
        self.num_left = len(items)
        self.num_attempts = [0] * len(items)

    def decide(self, index: int, verdict: Verdict) -> None:
        self.verdicts[index] = verdict
        self.num_left -= 1

    def requeue(self, chunk: deque[int]) -> None:
        self.pending.extendleft(reversed(chunk))

    def fail_pending(self, reason: str) -> None:
        while self.pending:
            self.decide(self.pending.popleft(), crashed(reason))


class WorkerPool:
    """Grades items in `num_workers` processes at once. One more is kept warm to replace a worker that was killed.

    task: "module:function". A worker calls the function once with `arguments`; it returns the grading function, which
    maps
        the JSON values of an item to (Outcome, detail).
    deadline: seconds for one item. An item that exceeds it gets `timeout_outcome`, and its worker is killed; other
    items are
        not affected.
    memory_limit: bytes of address space of one worker.
    max_chunk: the most items sent to a worker at once.
    max_reason: characters of a verdict's reason; longer ones are cut off.
    timeout_outcome: TIMEOUT if only the item can cause the delay; CRASHED if the grader limits the time of items
    itself.
    """

    def __init__(
        self,
        task: str,
        arguments: dict[str, object],
        *,
        num_workers: int,
        deadline: float,
        memory_limit: int,
        max_chunk: int = 64,
        timeout_outcome: Outcome = Outcome.TIMEOUT,
        max_reason: int = 200,
    ) -> None:
        _check_limits(num_workers, deadline, memory_limit)
        self._options = json.dumps(
            {
                "task": task,
                "arguments": arguments,
                "deadline": deadline,
                "memory_limit": memory_limit,
                "max_reason": max_reason,
            }
        )
        self._num_workers, self._deadline = num_workers, deadline
        self._max_chunk, self._timeout_outcome = max_chunk, timeout_outcome
        self._lock = threading.Lock()
        self._num_failed_starts = 0
        self._closed = False
        self._workers: list[WorkerProcess] = []
        self._finalizer = weakref.finalize(self, _kill_all, self._workers)
        self._selector = selectors.DefaultSelector()
        start_error = self._start_missing()
        if start_error:
            raise RuntimeError(f"the verifier cannot run: no worker process can be started: {start_error}")

    def run(self, items: Sequence[Sequence[Any]]) -> list[Verdict]:
        """The verdict on each item, in order; CRASHED for items for which no worker could be started.

        Raises RuntimeError if the grading function cannot be loaded, since then no item can ever be graded.
        """
        with self._lock:
            if self._closed:
                raise ValueError("the pool is closed: make a new verifier instead of using one after close()")
            batch = _Batch(items)
            try:
                while batch.num_left:
                    start_error = self._start_missing()
                    if start_error:
                        batch.fail_pending(f"no worker process can be started: {start_error}")
                        continue
                    self._assign(batch)
                    self._exchange(batch)
                    self._expire(batch)
            finally:  # after an exception such as KeyboardInterrupt nobody waits for the replies of busy workers
                for worker in list(self._workers):
                    if worker.chunk or worker.num_graded > _RECYCLE_AFTER:
                        self._remove(worker)
            self._start_missing()
            return [verdict for verdict in batch.verdicts if verdict is not None]

    def close(self) -> None:
        """Ends the workers. Safe to call twice."""
        with self._lock:
            self._closed = True
            self._finalizer()
            self._selector.close()

    def _start_missing(self) -> str | None:
        """Starts missing workers. Returns the error if there is no worker at all, else None."""
        for worker in list(self._workers):
            if not worker.chunk and worker.ready and worker.process.poll() is not None:
                self._remove(worker)  # died while idle, which no item caused
        is_retry = False
        while len(self._workers) < self._num_workers + 1:
            try:
                worker = WorkerProcess(self._options)
            except OSError as error:
                if self._workers:
                    return None  # continue with fewer workers
                if is_retry:
                    return str(error)
                is_retry = True
                time.sleep(_FORK_PAUSE)
                continue
            self._workers.append(worker)
            self._selector.register(worker.stdout, selectors.EVENT_READ, worker)
        return None

    def _remove(self, worker: WorkerProcess) -> None:
        for pipe in (worker.stdin, worker.stdout):
            if pipe in self._selector.get_map():
                self._selector.unregister(pipe)
        self._workers.remove(worker)
        worker.kill()

    def _assign(self, batch: _Batch) -> None:
        num_busy = sum(bool(worker.chunk) for worker in self._workers)
        for worker in self._workers:
            if not batch.pending or num_busy >= self._num_workers:
                return
            if not worker.ready or worker.chunk:
                continue
            # Chunks get smaller towards the end, so that no worker has a long chunk left while the others are idle.
            size = min(self._max_chunk, -(-len(batch.pending) // (2 * self._num_workers)))
            worker.chunk = deque(batch.pending.popleft() for _ in range(size))
            worker.outbox = json.dumps([list(batch.items[index]) for index in worker.chunk]).encode() + b"\n"
            worker.started_at = time.monotonic()
            self._selector.register(worker.stdin, selectors.EVENT_WRITE, worker)
            num_busy += 1

    def _exchange(self, batch: _Batch) -> None:
        """Waits until a pipe is ready or a deadline is reached, then writes and reads without blocking."""
        for key, _ in self._selector.select(max(0.0, min(map(self._time_left, self._workers)))):
            worker: WorkerProcess = key.data
            if worker not in self._workers:
                continue
            if key.fd == worker.stdin:
                worker.send()
                if not worker.outbox:
                    self._selector.unregister(worker.stdin)
            else:
                self._receive(worker, batch)

    def _time_left(self, worker: WorkerProcess) -> float:
        """Seconds until the deadline of the worker's current item or of its start; infinite for an idle worker."""
        if worker.ready and not worker.chunk:
            return math.inf
        return worker.started_at + (self._deadline if worker.ready else _START_DEADLINE) - time.monotonic()

    def _receive(self, worker: WorkerProcess, batch: _Batch) -> None:
        lines = worker.receive()
        if lines is None:
            self._handle_exit(worker, batch)
            return
        try:
            for line in lines:
                self._take(worker, batch, *json.loads(line))
        except (ValueError, TypeError, IndexError, RecursionError):  # graded code wrote into the pipe of the replies
            self._handle_exit(worker, batch)

    def _take(self, worker: WorkerProcess, batch: _Batch, outcome: str, detail: str) -> None:
        if worker.ready:
            verdict = Verdict(Outcome(outcome), detail)
            batch.decide(worker.chunk.popleft(), verdict)
            worker.num_graded += 1
        elif outcome == "ready":
            worker.ready, self._num_failed_starts = True, 0
        else:
            raise RuntimeError(f"the verifier cannot run: its worker failed to start: {detail}")
        worker.started_at = time.monotonic()

    def _handle_exit(self, worker: WorkerProcess, batch: _Batch) -> None:
        """Handles a worker that ended by itself: retries its current item once and requeues the rest of its chunk."""
        self._remove(worker)
        status = worker.process.returncode
        if not worker.ready:
            self._num_failed_starts += 1
            if self._num_failed_starts >= _MAX_FAILED_STARTS:
                self._num_failed_starts = 0
                batch.fail_pending(f"{_MAX_FAILED_STARTS} workers died as they started, the last with status {status}")
        elif worker.chunk:
            batch.num_attempts[worker.chunk[0]] += 1
            if batch.num_attempts[worker.chunk[0]] >= _MAX_ATTEMPTS:
                batch.decide(worker.chunk.popleft(), crashed(f"the worker died twice, last with status {status}"))
            batch.requeue(worker.chunk)

    def _expire(self, batch: _Batch) -> None:
        for worker in list(self._workers):
            if self._time_left(worker) > 0:
                continue
            self._receive(worker, batch)  # the reply may have arrived while this process was delayed
            if worker not in self._workers or self._time_left(worker) > 0:
                continue
            self._remove(worker)
            if worker.ready:
                batch.decide(
                    worker.chunk.popleft(), Verdict(self._timeout_outcome, f"no verdict within {self._deadline:g} s")
                )
                batch.requeue(worker.chunk)
            else:
                batch.fail_pending(f"a worker was not ready after {_START_DEADLINE:g} s")


def _kill_all(workers: list[WorkerProcess]) -> None:
    while workers:
        workers.pop().kill()


def _check_limits(num_workers: int, deadline: float, memory_limit: int) -> None:
    if num_workers < 1:
        raise ValueError(f"num_workers={num_workers!r} must be at least 1: it is the number of worker processes")
    if not 0 < deadline < 3600:
        raise ValueError(f"deadline={deadline!r} must be between 0 and 3600: it is the seconds for one answer")
    if memory_limit < 1 << 29:
        raise ValueError(
            f"memory_limit={memory_limit!r} must be at least {1 << 29} bytes: libraries alone need half of that"
        )
