"""The grader's interface to a zygote: submits jobs, collects a child's output, ends a child that writes too much."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from rewards.sandbox.child import SET_UP, Limits
from rewards.sandbox.zygote import CHILD_FAILED, END, MAX_MESSAGE

_ROOT = Path(__file__).resolve().parents[2]
_START_SECONDS = 60.0
_GRACE_SECONDS = 5.0  # added to a child's wall-clock limit, for the zygote to answer
_READ_SIZE = 1 << 16
_HIGH_MEMORY_SHARE = 0.5  # of a child's memory limit


class SandboxError(RuntimeError):
    """The sandbox failed, which is not the program's fault."""


class SandboxLostError(SandboxError):
    """The zygote died or stopped answering while a program ran, which a program without a seccomp filter can cause."""


class KilledForMemoryError(SandboxError):
    """A child was killed from outside while it used so much memory that the kernel may have run out of memory."""


@dataclass(frozen=True)
class ChildResult:
    """How a child ended, and its output.

    status: the exit status, or minus the signal that ended the child. cpu: seconds of processor time.
    ended_by: "exit" (by itself), "wall" (its wall-clock time was over) or "grader" (it wrote too much, or finish() was
        called with terminate).
    """

    status: int
    cpu: float
    ended_by: str
    overflowed: bool
    stdout: bytes
    stderr: bytes
    result: bytes


class ZygoteProcess:
    """A zygote: an interpreter that runs `module`, and the control socket to it.

    Raises SandboxError if it cannot be started or the layers cannot be entered.
    """

    def __init__(self, module: str, layers: Sequence[str], packages: Sequence[str], readable: Sequence[str]) -> None:
        options = {"layers": list(layers), "packages": list(packages), "readable": list(readable)}
        flags = ("-B", "-s", "-S", "-P", "-W", "ignore", "-X", "utf8")
        path = os.pathsep.join([str(_ROOT), *readable])
        try:
            self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError as error:
            raise SandboxError(f"no socket pair can be created: {error.strerror}") from None
        try:
            self.process = subprocess.Popen(
                [sys.executable, *flags, "-m", module, json.dumps(options)],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd="/",
                env={"PYTHONPATH": path, "PYTHONHASHSEED": "0", "LC_ALL": "C.UTF-8", "OMP_NUM_THREADS": "1"},
                start_new_session=True,
            )
        except OSError as error:
            self.control.close()
            raise SandboxError(f"no process can be started: {error.strerror}") from None
        finally:
            theirs.close()
        self.control.settimeout(_START_SECONDS)
        try:
            self.receive_reply()
        except SandboxError:
            self.close()
            raise

    def receive_reply(self) -> dict[str, Any]:
        try:
            message = self.control.recv(MAX_MESSAGE)
        except OSError as error:
            raise SandboxLostError(f"the zygote does not answer: {error}") from None
        if not message:
            raise SandboxLostError("the zygote died")
        answer = json.loads(message)
        if "failed" in answer:
            raise SandboxError(answer["failed"])
        return answer

    def close(self) -> None:
        """Ends the zygote and everything it started. Safe to call twice."""
        self.control.close()
        with suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait()


class Sandbox:
    """A zygote that has entered `layers`, and the children that it forks, one at a time.

    packages: modules that the zygote imports for programs to use. readable: folders that these modules need to read.
    Raises SandboxError if the layers cannot be entered.
    """

    def __init__(self, layers: Sequence[str], *, packages: Sequence[str] = (), readable: Sequence[str] = ()) -> None:
        self._running: _Child | None = None
        self._zygote = ZygoteProcess("rewards.sandbox.zygote", layers, packages, readable)
        self._control, self._process = self._zygote.control, self._zygote.process

    def run(self, job: dict[str, Any], limits: Limits, *, stdin: bytes = b"") -> ChildResult:
        """Runs a job in a new child and waits for its end. On a SandboxError the sandbox is closed."""
        self.start(job, limits, stdin=stdin)
        return self.finish()

    def start(
        self, job: dict[str, Any], limits: Limits, *, stdin: bytes = b"", link: socket.socket | None = None
    ) -> None:
        """Starts a job in a new child. link: the child's end of a connection to another child."""
        try:
            child = self._running = _Child(job, stdin, limits)
            child_ends = [*child.child_ends, *([link.fileno()] if link else [])]
            socket.send_fds(self._control, [json.dumps(limits).encode()], child_ends)
        except OSError as error:
            self.close()
            raise SandboxError(f"a job cannot be sent to the zygote: {error.strerror}") from None
        child.close_child_ends()

    def finish(self, *, terminate: bool = False, peer: Sandbox | None = None) -> ChildResult:
        """Waits for the child that was started.

        terminate: end it instead of waiting. peer: the sandbox of a connected child, whose output is read meanwhile.
        """
        child = self._running
        assert child
        others = [peer._running] if peer and peer._running else []
        try:
            if terminate:
                self._control.send(END)
            reply = self._watch(child, others)
            _check(reply, child)
        except OSError as error:
            self.close()
            raise SandboxLostError(str(error)) from None
        except SandboxError:
            self.close()
            raise
        child.close()
        self._running = None
        stdout, stderr, result = map(bytes, child.written)
        result = result.removeprefix(SET_UP)
        return ChildResult(reply["status"], reply["cpu"], reply["ended_by"], child.overflows, stdout, stderr, result)

    def _watch(self, child: _Child, others: Sequence[_Child]) -> dict[str, Any]:
        """Reads the children's output until the zygote reports the end of `child`; ends it if it writes too much."""
        deadline = time.monotonic() + child.limits["wall_seconds"] + _GRACE_SECONDS
        end_sent = False
        pipes = {pipe: writer for writer in (child, *others) for pipe in writer.pipes}
        poll = select.poll()
        for descriptor in (self._control.fileno(), *pipes):
            poll.register(descriptor, select.POLLIN)
        reply = None
        while reply is None:
            left = deadline - time.monotonic()
            if left <= 0:
                raise SandboxLostError("the zygote does not answer")
            for descriptor, _ in poll.poll(left * 1000):
                if descriptor == self._control.fileno():
                    reply = self._zygote.receive_reply()
                elif not pipes[descriptor].read(descriptor):
                    poll.unregister(descriptor)
            if child.overflows and not end_sent and reply is None:
                self._control.send(END)
                end_sent = True
        for descriptor in child.pipes:  # the writers are gone, so all that is left can be read now
            while child.read(descriptor):
                pass
        return reply

    def close(self) -> None:
        """Ends the zygote and everything it started. Safe to call twice."""
        if self._running:
            self._running.close()
            self._running = None
        self._zygote.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class _Child:
    """The file descriptors of a child (the parent's ends in `pipes`, its own in `child_ends`) and its output so far."""

    def __init__(self, job: dict[str, Any], stdin: bytes, limits: Limits) -> None:
        self.limits = limits
        self.pipes: list[int] = []
        self.child_ends: list[int] = []
        self.written = [bytearray(), bytearray(), bytearray()]
        try:
            self.child_ends.append(memory_file(stdin))
            for _ in self.written:
                ours, theirs = os.pipe2(os.O_CLOEXEC)
                os.set_blocking(ours, False)
                self.pipes.append(ours)
                self.child_ends.append(theirs)
            self.child_ends.append(memory_file(json.dumps(job).encode()))
        except OSError:
            self.close()
            raise

    @property
    def overflows(self) -> bool:
        return any(len(written) > self.limits["output"] for written in self.written[::2])

    def read(self, pipe: int) -> bool:
        """Reads once; returns whether there may be more to read now. Output beyond the limit is discarded, so that the
        writer does not block."""
        try:
            data = os.read(pipe, _READ_SIZE)
        except BlockingIOError:
            return False
        written = self.written[self.pipes.index(pipe)]
        if len(written) <= self.limits["output"]:
            written += data
        return bool(data)

    def close(self) -> None:
        self.close_child_ends()
        while self.pipes:
            os.close(self.pipes.pop())

    def close_child_ends(self) -> None:
        while self.child_ends:
            os.close(self.child_ends.pop())


def _check(reply: dict[str, Any], child: _Child) -> None:
    """Raises SandboxError if the child's end was not caused by its program."""
    _, stderr, result = child.written
    if reply["status"] == CHILD_FAILED and not result.startswith(SET_UP):
        raise SandboxError(f"a child could not be set up: {stderr.decode(errors='replace')[:200]}")
    in_time = reply["cpu"] < child.limits["cpu_seconds"]
    was_killed = reply["status"] == -signal.SIGKILL and reply["ended_by"] == "exit" and in_time
    if was_killed and not reply["may_have_killed_itself"]:
        uses_much_memory = reply["memory"] > _HIGH_MEMORY_SHARE * child.limits["memory"]
        raise (KilledForMemoryError if uses_much_memory else SandboxError)(
            "a child was killed from outside; was there too little memory?"
        )


def memory_file(content: bytes) -> int:
    """A descriptor of an anonymous file with this content, positioned at its start."""
    descriptor = os.memfd_create("plumbline")
    with open(descriptor, "wb", closefd=False) as file:
        file.write(content)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor
