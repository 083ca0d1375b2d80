"""A worker as seen from the trainer: its process, its two pipes and their buffers. Only kill() blocks."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

_ROOT = Path(__file__).resolve().parent.parent  # the folder of the package, installed or not
_READ = 1 << 16  # bytes read at once
_MAX_REPLY = 1 << 22  # bytes of a line; a worker that sends more is ended


class WorkerProcess:
    """One worker process and its current chunk of item indices. `chunk[0]` is the current item.

    environment: variables beside those of this process.
    """

    def __init__(self, options: str, environment: Mapping[str, str] = MappingProxyType({})) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "rewards.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=_ROOT,
            env={**os.environ, "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1", **environment},
            start_new_session=True,  # so that Ctrl-C reaches the trainer only
        )
        assert self.process.stdin
        assert self.process.stdout
        self.stdin, self.stdout = self.process.stdin.fileno(), self.process.stdout.fileno()
        with contextlib.suppress(BrokenPipeError):  # the worker died, which receive() reports
            self.process.stdin.write(options.encode() + b"\n")
            self.process.stdin.flush()
        os.set_blocking(self.stdin, False)
        os.set_blocking(self.stdout, False)
        self.ready = False
        self.chunk: deque[int] = deque()
        self.outbox = b""
        self.inbox = b""
        self.started_at = time.monotonic()  # the start of the current item, or of the process
        self.num_graded = 0

    def kill(self) -> None:
        """Kills the worker and the processes that it has started."""
        if self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()

    def send(self) -> None:
        try:
            self.outbox = self.outbox[os.write(self.stdin, self.outbox) :]
        except BlockingIOError:
            pass
        except BrokenPipeError:  # the worker died, which receive() reports
            self.outbox = b""

    def receive(self) -> list[bytes] | None:
        """The complete lines that have arrived; None if the worker has ended or sent too much."""
        try:
            data = os.read(self.stdout, _READ)
        except BlockingIOError:
            return []
        self.inbox += data
        if not data or len(self.inbox) > _MAX_REPLY:
            return None
        *lines, self.inbox = self.inbox.split(b"\n")
        return lines
