"""The zygote process: imports commonly used modules, enters the isolation layers, then forks a child for each job.

rewards.sandbox.client starts it as a separate interpreter whose standard input is a socket to the grader. It reads
neither programs nor results, which pass directly between the grader and the child: it only starts, watches and ends
children.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import gc
import importlib
import json
import os
import resource
import select
import signal
import site
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from rewards.sandbox import child, kernel, layers
from rewards.sandbox import filter as allowlist

MAX_MESSAGE = 4096
END = b"end"  # the grader's message to end a child
CHILD_FAILED = 111  # exit status of a child that failed before its program started
NUM_DESCRIPTORS = 6
_MAX_THREADS = 1_000  # that one child may start in total
_PRELOADED = (
    *("abc", "array", "bisect", "cmath", "collections", "copy", "dataclasses", "datetime", "decimal", "enum"),
    *("fractions", "functools", "heapq", "itertools", "json", "math", "numbers", "operator", "queue", "random", "re"),
    *("statistics", "string", "textwrap", "threading", "time", "traceback", "typing"),
)


def main(kind: Callable[[socket.socket, list[str], list[str]], Zygote]) -> None:
    """Runs a zygote of this kind with the options of the command line."""
    options = json.loads(sys.argv[1])
    control = socket.socket(fileno=os.dup(0))
    try:
        for module in (*_PRELOADED, *options["packages"]):
            importlib.import_module(module)
        zygote = kind(control, options["layers"], [*layers.library_folders(), *options["readable"]])
    except (OSError, ImportError) as error:
        control.sendall(json.dumps({"failed": str(error)}).encode())
        return
    site.setquit()  # defines exit and quit, which are missing under the option -S
    del sys.path[0]  # the folder of this package, which programs do not need
    gc.collect()
    gc.freeze()  # otherwise a collection in a child would write to, and thus copy, every page with an object
    control.sendall(json.dumps({"ready": True}).encode())
    zygote.serve()


class Zygote:
    """An interpreter that has entered the layers in `entered`, with access to the `readable` folders only."""

    def __init__(self, control: socket.socket, entered: list[str], readable: list[str]) -> None:
        self._control = control
        with contextlib.suppress(OSError):  # if memory runs out, the kernel should kill this rather than the trainer
            Path("/proc/self/oom_score_adj").write_text("1000")
        self._filtered = layers.SECCOMP in entered
        self._children: TextIO | None = None
        if layers.NAMESPACES in entered:
            layers.enter_namespaces(readable)
        else:  # opened now, because landlock may forbid it later
            self._children = open("/proc/thread-self/children", encoding="ascii")  # noqa: SIM115
            kernel.inherit_orphans()
        kernel.hide_memory()
        if layers.NAMESPACES not in entered and layers.LANDLOCK not in entered:
            layers.become_nobody()
        kernel.drop_privileges()
        if layers.LANDLOCK in entered:
            layers.enter_landlock(readable)
        self._new_threads: int | None = None
        if self._filtered:
            allowlist.program(os.getpid())  # once here, so that children find most of it assembled
            with contextlib.suppress(
                OSError
            ):  # Linux before 5.5, or another filter with a listener exists: the number of threads is then unbounded
                self._new_threads = kernel.install_notifying_filter(allowlist.thread_filter())

    def serve(self) -> None:
        """Runs one job after another until the grader closes the connection."""
        while True:
            message, descriptors, _, _ = socket.recv_fds(self._control, MAX_MESSAGE, NUM_DESCRIPTORS)
            if not message:
                return
            if message == END:  # it arrived after the child had ended by itself
                continue
            reply = self._run(json.loads(message), descriptors)
            self._control.sendall(json.dumps(reply).encode())

    def _run(self, limits: child.Limits, descriptors: list[int]) -> dict[str, Any]:
        """Starts a child, waits until it ends or must be ended, and ends everything that it started."""
        myself, failure = os.getpid(), ""
        try:
            pid = os.fork()
        except OSError as error:
            pid, failure = -1, f"fork: {error.strerror}"
        if pid == 0:
            self._become_child(limits, descriptors, myself)
        for descriptor in descriptors:
            os.close(descriptor)
        if pid < 0:
            return {"failed": failure}
        ended_by = self._wait(pid, limits["wall_seconds"])
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # wait without reaping: its limits can still be read
        may_have_killed_itself = not self._filtered or _lowered_own_cpu_limit(pid, limits)
        _, status, usage = os.wait4(pid, 0)
        self._kill_strays()
        return {
            "status": os.waitstatus_to_exitcode(status),
            "cpu": usage.ru_utime + usage.ru_stime,
            "memory": 1024 * usage.ru_maxrss,
            "ended_by": ended_by,
            "may_have_killed_itself": may_have_killed_itself,
        }

    def _become_child(self, limits: child.Limits, descriptors: list[int], parent: int) -> None:
        """Sets up the session and the descriptors of the child, then runs the job. Never returns."""
        try:
            os.setsid()
            aside = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, 32) for descriptor in descriptors]  # not the final numbers
            for wanted, descriptor in enumerate(aside):
                os.dup2(descriptor, wanted)
            os.closerange(len(descriptors), os.sysconf("SC_OPEN_MAX"))
            kernel.die_with_parent(signal.SIGKILL)
            if os.getppid() != parent:  # the zygote died before the line above took effect
                return
            child.run(limits, filtered=self._filtered)
        except BaseException as error:  # noqa: BLE001  reported to the grader
            os.write(child.STDERR, f"{type(error).__name__}: {error}".encode())
        finally:  # after an exception the child must not continue as a second zygote
            os._exit(CHILD_FAILED)

    def _wait(self, pid: int, seconds: float) -> str:
        """Waits until the child exits ("exit"), runs out of time ("wall"), or is ended by the grader ("grader")."""
        deadline, num_threads = time.monotonic() + seconds, 0
        ended = os.pidfd_open(pid)
        poll = select.poll()
        for descriptor in (ended, self._control, *([self._new_threads] if self._new_threads is not None else [])):
            poll.register(descriptor, select.POLLIN)
        try:
            while (left := deadline - time.monotonic()) > 0:
                ready = [descriptor for descriptor, _ in poll.poll(left * 1000)]
                if ended in ready:
                    return "exit"
                if self._control.fileno() in ready:
                    self._control.recv(MAX_MESSAGE)
                    return "grader"
                if self._new_threads in ready:
                    num_threads += 1
                    refusal = errno.EAGAIN if num_threads > _MAX_THREADS else 0
                    with contextlib.suppress(OSError):  # the child ended while its call waited
                        kernel.reply_to_call(self._new_threads, lambda thread, refusal=refusal: refusal)
            return "wall"
        finally:
            os.close(ended)

    def _kill_strays(self) -> None:
        """Kills the processes that a child left: all others in a process tree of its own, elsewhere all children."""
        with contextlib.suppress(ChildProcessError, ProcessLookupError):
            if os.getpid() == 1:
                os.kill(-1, signal.SIGKILL)
            while True:
                for stray in self._strays():
                    os.kill(stray, signal.SIGKILL)
                os.waitpid(-1, 0)

    def _strays(self) -> list[int]:
        if self._children is None:
            return []
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)  # raises if there are no children: nearly always
        self._children.seek(0)
        return [int(pid) for pid in self._children.read().split()]


def _lowered_own_cpu_limit(pid: int, limits: child.Limits) -> bool:
    """Whether a child lowered its hard limit of processor time, at which the kernel kills it by SIGKILL."""
    with contextlib.suppress(OSError):  # the kernel may refuse to tell
        hard = resource.prlimit(pid, resource.RLIMIT_CPU)[1]
        return hard != resource.RLIM_INFINITY and hard <= limits["cpu_seconds"]  # infinite if not yet set
    return False


if __name__ == "__main__":
    main(Zygote)
