"""The trainer's end of one worker: its process, its two pipes, and what has gone through them. Nothing here blocks."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import deque
from pathlib import Path

_ROOT = Path(__file__).resolve().parent.parent  # what holds the package, installed or not
_MAX_REPLY = 1 << 16


class WorkerProcess:
    """One process and the chunk it is at. `chunk[0]` is the item in flight."""

    def __init__(self, options: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "rewards.worker", options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=_ROOT,
            env={**os.environ, "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"},
            start_new_session=True,  # Ctrl-C is for the trainer
        )
        assert self.process.stdin
        assert self.process.stdout
        self.stdin, self.stdout = self.process.stdin.fileno(), self.process.stdout.fileno()
        os.set_blocking(self.stdin, False)
        os.set_blocking(self.stdout, False)
        self.ready = False
        self.chunk: deque[int] = deque()
        self.outbox = b""
        self.inbox = b""
        self.started_at = time.monotonic()  # of the item in flight, or of the start
        self.num_graded = 0

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()

    def send(self) -> None:
        try:
            self.outbox = self.outbox[os.write(self.stdin, self.outbox) :]
        except BlockingIOError:
            pass
        except BrokenPipeError:  # it died; reading will tell
            self.outbox = b""

    def receive(self) -> list[bytes] | None:
        """The complete lines that have arrived, None at the end of the worker."""
        try:
            data = os.read(self.stdout, _MAX_REPLY)
        except BlockingIOError:
            return []
        self.inbox += data
        if not data or len(self.inbox) > 2 * _MAX_REPLY:
            return None
        *lines, self.inbox = self.inbox.split(b"\n")
        return lines
