"""What happens in a forked child: limits, then the program. The only file of the package that executes text.

A child has no secret: it is told the program and its inputs. Once the program runs, nothing that this process says can be
believed beyond the values it returns, which the judge compares.

    stdin   the program as a script, with standard input and output
    calls   the program as a module, then calls of its functions; each result is a line on the result pipe
    serve   the program as a module, then calls as they are asked for on the link
    tests   trusted tests, whose calls of the program go over the link to a child that serves
"""

from __future__ import annotations

import atexit
import builtins
import contextlib
import importlib
import json
import os
import random
import resource
import sys
import threading
import types
from collections.abc import Callable
from typing import Any, TypedDict

from rewards.sandbox import filter as allowlist
from rewards.sandbox import kernel
from rewards.sandbox.link import Broken, ProgramEnd, TestsEnd, described, raised
from rewards.sandbox.values import NotPlain, encode

STDIN, STDOUT, STDERR, RESULT, JOB, LINK = range(6)  # the child's file descriptors

SET_UP = b"+"  # first on the result pipe: whatever goes wrong from here on is the program's doing
_MAX_OPEN_FILES = 64
_MAX_PROCESSES = 256  # counts all of the user's; only where seccomp does not forbid new ones


class Limits(TypedDict):
    """Seconds of processor and of wall clock, bytes of address space, bytes of output and of results."""

    cpu_seconds: int
    wall_seconds: float
    memory: int
    output: int


def run(limits: Limits, *, filtered: bool) -> None:
    """Never returns. The descriptors are in place."""
    with open(JOB, "rb") as file:
        job = json.load(file)
    _restrict(limits, filtered=filtered)
    sys.stdin = sys.__stdin__ = open(STDIN, encoding="utf-8")  # noqa: SIM115  the program's
    sys.stdout = sys.__stdout__ = stdout = open(STDOUT, "w", encoding="utf-8")  # noqa: SIM115
    sys.stderr = sys.__stderr__ = open(STDERR, "w", encoding="utf-8", errors="backslashreplace", buffering=1)  # noqa: SIM115
    sys.argv = ["program.py"]
    random.seed(0)
    os.write(RESULT, SET_UP)
    status = _MODES[job["mode"]](job)
    with contextlib.suppress(Exception):  # a program may have closed it, or broken it
        stdout.flush()
    os._exit(status)


def _restrict(limits: Limits, *, filtered: bool) -> None:
    cpu = limits["cpu_seconds"]
    _limit(resource.RLIMIT_CPU, cpu, cpu + 1)  # at the first a signal that may be ignored, then a kill
    _limit(resource.RLIMIT_AS, limits["memory"])
    _limit(resource.RLIMIT_FSIZE, 0)
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_NOFILE, _MAX_OPEN_FILES)
    if filtered:
        kernel.install_filter(allowlist.program(os.getpid()))
    else:
        _limit(resource.RLIMIT_NPROC, _MAX_PROCESSES)


def _limit(kind: int, soft: int, hard: int | None = None) -> None:
    """Never above what there is already."""
    now = resource.getrlimit(kind)[1]
    allowed = [min(limit, now) if now != resource.RLIM_INFINITY else limit for limit in (soft, hard or soft)]
    resource.setrlimit(kind, (allowed[0], allowed[1]))


def _module(name: str) -> dict[str, Any]:
    """The names of a new module."""
    module = sys.modules[name] = types.ModuleType(name)
    module.__file__ = "program.py"
    return module.__dict__


def _execute(source: str, names: dict[str, Any]) -> None:
    exec(compile(source, "<program>", "exec", dont_inherit=True), names)


def _stdin(job: dict[str, Any]) -> int:
    names, status = _module("__main__"), 0
    try:
        _execute(job["source"], names)
    except SystemExit as stop:
        status = _exit_status(stop)
    except BaseException as error:
        print(described(error), file=sys.stderr)
        status = 1
    _end_script(names)
    return status


def _exit_status(stop: SystemExit) -> int:
    if stop.code is None or isinstance(stop.code, int):
        return (stop.code or 0) & 0xFF
    print(stop.code, file=sys.stderr)
    return 1


def _end_script(names: dict[str, Any]) -> None:
    """What an interpreter does at its end: wait for threads, run exit functions, write what is written, destroy objects."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    with contextlib.suppress(Exception):  # it may be an object of the program's
        sys.stdout.flush()
    for name in list(names):
        if name != "__builtins__":
            names[name] = None


def _calls(job: dict[str, Any]) -> int:
    with open(RESULT, "wb", buffering=0) as results:

        def reply(result: dict[str, Any]) -> None:
            results.write(json.dumps(result).encode() + b"\n")

        names = _module("program")
        try:
            _execute(job["source"], names)
        except BaseException as error:
            reply(raised(error))
            return 0
        for name, args in job["calls"]:
            try:
                reply({"value": encode(_function(names, name)(*args))})
            except NotPlain as error:
                reply({"error": f"returned {error}"})
            except BaseException as error:
                reply(raised(error))
    return 0


def _function(names: dict[str, Any], name: str) -> Callable[..., Any]:
    """A function of the program, or a method of its class Solution, as some data sets have it."""
    if name not in names and isinstance(names.get("Solution"), type):
        return getattr(names["Solution"](), name)
    if name not in names:
        raise NameError(f"the program does not define {name}")
    return names[name]


def _serve(job: dict[str, Any]) -> int:
    names = _module("program")
    failure: BaseException | None = None
    try:
        _execute(job["source"], names)
    except BaseException as error:
        failure = error

    def find(name: str) -> Any:
        if failure:
            raise failure
        return _function(names, name)

    program = ProgramEnd(find)
    with open(LINK, "rb", closefd=False) as requests, open(LINK, "wb", buffering=0) as replies:
        for request in requests:
            replies.write(program.reply(request))
    return 0


class _TestNames(dict[str, Any]):
    """The names that tests see. One that nobody has defined is a module of the standard library, else the program's."""

    def __init__(self, make: Callable[[str], Any]) -> None:
        super().__init__(__name__="tests")
        self._make = make

    def __missing__(self, name: str) -> Any:
        if hasattr(builtins, name) or name.startswith("__"):
            raise KeyError(name)
        return importlib.import_module(name) if name in sys.stdlib_module_names else self._make(name)


def _tests(job: dict[str, Any]) -> int:
    with open(LINK, "rb", closefd=False) as replies, open(LINK, "wb", buffering=0) as requests:
        link = TestsEnd(requests, replies)
        verdict = _tested(job, link)
    with open(RESULT, "wb") as results:
        results.write(json.dumps({"num_calls": link.num_calls, **verdict, **link.broken}).encode())
    return 0


def _tested(job: dict[str, Any], link: TestsEnd) -> dict[str, Any]:
    names, entry_point = _TestNames(link.remote), job["entry_point"]
    try:
        tests = [compile(test, f"<test {i}>", "exec", dont_inherit=True) for i, test in enumerate(job["asserts"], 1)]
        exec(compile(job["setup"], "<setup>", "exec", dont_inherit=True), names)
    except BaseException as error:
        return {"bad": described(error)}
    names[entry_point] = names["candidate"] = link.remote(entry_point)
    for number, test in enumerate(tests, 1):
        reason = ""
        try:
            exec(test, names)
        except Broken:
            pass
        except BaseException as error:
            reason = described(error)
        if reason or link.broken:
            return {"failed": number, "reason": reason}
    return {}


_MODES: dict[str, Callable[[dict[str, Any]], int]] = {
    "stdin": _stdin,
    "calls": _calls,
    "serve": _serve,
    "tests": _tests,
}
