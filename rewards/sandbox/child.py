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
from typing import Any, BinaryIO, TypedDict

from rewards.sandbox import filter as allowlist
from rewards.sandbox import kernel
from rewards.sandbox.values import MAX_LENGTH, NotPlain, from_json, to_json

STDIN, STDOUT, STDERR, RESULT, JOB, LINK = range(6)  # the child's file descriptors

SET_UP = b"+"  # first on the result pipe: whatever goes wrong from here on is the program's doing
_MAX_OPEN_FILES = 64
_MAX_PROCESSES = 256  # counts all of the user's; only where seccomp does not forbid new ones
_REASON_LENGTH = 150


class Limits(TypedDict):
    """Seconds of processor and of wall clock, bytes of address space."""

    cpu_seconds: int
    wall_seconds: float
    memory: int


def run(limits: Limits, *, filtered: bool) -> None:
    """Never returns. The descriptors are in place."""
    with open(JOB, "rb") as file:
        job = json.load(file)
    _restrict(limits, filtered=filtered)
    sys.stdin = open(STDIN, encoding="utf-8")  # noqa: SIM115  the program's
    sys.stdout = open(STDOUT, "w", encoding="utf-8")  # noqa: SIM115
    sys.stderr = open(STDERR, "w", encoding="utf-8", errors="backslashreplace", buffering=1)  # noqa: SIM115
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr
    random.seed(0)
    os.write(RESULT, SET_UP)
    status = _MODES[job["mode"]](job)
    with contextlib.suppress(Exception):  # a program may have closed it, or broken it
        sys.stdout.flush()
    os._exit(status)


def _restrict(limits: Limits, *, filtered: bool) -> None:
    cpu = limits["cpu_seconds"]
    resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu + 1))  # at the first a signal that may be ignored, then a kill
    for kind, limit in (
        (resource.RLIMIT_AS, limits["memory"]),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, _MAX_OPEN_FILES),
    ):
        resource.setrlimit(kind, (limit, limit))
    if filtered:
        kernel.install_filter(allowlist.program(os.getpid()))
    else:
        resource.setrlimit(resource.RLIMIT_NPROC, (_MAX_PROCESSES, _MAX_PROCESSES))


def _load(source: str, name: str) -> dict[str, Any]:
    """Execute the program as the module `name`. -> its names."""
    module = types.ModuleType(name)
    sys.modules[name] = module
    exec(compile(source, "<program>", "exec", dont_inherit=True), module.__dict__)
    return module.__dict__


def _stdin(job: dict[str, Any]) -> int:
    status = 0
    try:
        _load(job["source"], "__main__")
    except SystemExit as stop:
        status = _exit_status(stop)
    except BaseException as error:
        print(_described(error), file=sys.stderr)
        status = 1
    threading._shutdown()  # type: ignore[attr-defined]  wait for its threads, as at the end of any script
    atexit._run_exitfuncs()
    return status


def _exit_status(stop: SystemExit) -> int:
    if stop.code is None or isinstance(stop.code, int):
        return (stop.code or 0) & 0xFF
    print(stop.code, file=sys.stderr)
    return 1


def _calls(job: dict[str, Any]) -> int:
    with open(RESULT, "wb", buffering=0) as results:

        def reply(result: dict[str, Any]) -> None:
            results.write(json.dumps(result).encode() + b"\n")

        try:
            names = _load(job["source"], "program")
        except BaseException as error:
            reply({"error": _described(error)})
            return 0
        for name, arguments in from_json(job["calls"]):
            reply(_answer(names, name, arguments, {}))
    return 0


def _answer(names: dict[str, Any], name: str, args: list[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    try:
        return {"value": to_json(_function(names, name)(*args, **kwargs))}
    except NotPlain as error:
        return {"error": f"returned {error}", "type": "TypeError"}
    except BaseException as error:
        return {"error": _described(error), "type": type(error).__name__}


def _function(names: dict[str, Any], name: str) -> Callable[..., Any]:
    """A function of the program, or a method of its class Solution, as some data sets have it."""
    if name not in names and isinstance(names.get("Solution"), type):
        return getattr(names["Solution"](), name)
    if name not in names:
        raise NameError(f"the program does not define {name}")
    return names[name]


def _serve(job: dict[str, Any]) -> int:
    with open(LINK, "rb", closefd=False) as requests, open(LINK, "wb", buffering=0) as replies:
        names, failure = {}, None
        try:
            names = _load(job["source"], "program")
        except BaseException as error:
            failure = {"error": _described(error), "type": type(error).__name__}
        for request in requests:
            name, args, kwargs = from_json(request)
            answer = failure or _answer(names, name, list(args), kwargs)
            replies.write(json.dumps(answer).encode() + b"\n")
    return 0


class _Gone(BaseException):
    """The child that serves has ended. No test can catch it as an Exception."""


class _Program:
    """A function of the program as its tests see it: every call goes over the link, and every result is plain data."""

    num_calls = 0

    def __init__(self, name: str, requests: BinaryIO, replies: BinaryIO) -> None:
        self._name, self._requests, self._replies = name, requests, replies

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        _Program.num_calls += 1
        try:
            self._requests.write(to_json([self._name, args, kwargs]).encode() + b"\n")
            reply = self._replies.readline(2 * MAX_LENGTH)
        except OSError:
            raise _Gone from None
        if not reply.endswith(b"\n"):
            raise _Gone
        try:
            answer = json.loads(reply)
            if "value" in answer:
                return from_json(answer["value"])
            kind, message = str(answer["type"]), str(answer["error"])
        except (ValueError, TypeError, KeyError, RecursionError):
            raise TypeError("the program's reply is no value") from None
        raised = getattr(builtins, kind, None)
        if not (isinstance(raised, type) and issubclass(raised, Exception)):
            raised = RuntimeError  # a class of the program's own
        raise raised(message.removeprefix(f"{kind}: "))


class _TestNames(dict[str, Any]):
    """The names that tests see. One that nobody has defined is a module of the standard library, else the program's."""

    def __init__(self, make: Callable[[str], _Program]) -> None:
        super().__init__(__name__="tests")
        self._make = make

    def __missing__(self, name: str) -> Any:
        if hasattr(builtins, name) or name.startswith("__"):
            raise KeyError(name)
        return importlib.import_module(name) if name in sys.stdlib_module_names else self._make(name)


def _tests(job: dict[str, Any]) -> int:
    with open(LINK, "rb", closefd=False) as replies, open(LINK, "wb", buffering=0) as requests:
        names = _TestNames(lambda name: _Program(name, requests, replies))
        verdict = _tested(job, names)
    verdict["num_calls"] = _Program.num_calls
    with open(RESULT, "wb") as results:
        results.write(json.dumps(verdict).encode())
    return 0


def _tested(job: dict[str, Any], names: _TestNames) -> dict[str, Any]:
    try:
        tests = [compile(test, f"<test {i}>", "exec", dont_inherit=True) for i, test in enumerate(job["asserts"], 1)]
        exec(compile(job["setup"], "<setup>", "exec", dont_inherit=True), names)
    except Exception as error:
        return {"bad": _described(error)}
    entry_point = job["entry_point"]
    names[entry_point] = names["candidate"] = names.__missing__(entry_point)
    for number, test in enumerate(tests, 1):
        try:
            exec(test, names)
        except _Gone:
            return {"gone": number}
        except BaseException as error:
            return {"failed": number, "reason": _described(error)}
    return {"passed": len(tests)}


def _described(error: BaseException) -> str:
    try:
        text = f"{type(error).__name__}: {error}"
    except BaseException:  # its __str__ may be the program's
        text = type(error).__name__
    return text[:_REASON_LENGTH].rstrip(": ").encode("utf-8", "replace").decode()


_MODES: dict[str, Callable[[dict[str, Any]], int]] = {
    "stdin": _stdin,
    "calls": _calls,
    "serve": _serve,
    "tests": _tests,
}
