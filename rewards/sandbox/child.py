"""Runs in a forked child: sets limits, then executes the program. The only file of the package that executes text.

A child holds no secrets: it receives only the program and its inputs. Once the program runs, nothing that this process
reports can be trusted; the grader only compares the values it returns. Modes of a job:

    stdin    runs the program as a script with standard input and output
    calls    loads the program as a module and calls its functions; each result is a line on the result pipe
    serve    loads the program as a module and executes the calls that arrive on the link
    tests    runs trusted tests, whose calls of the program go over the link to a child in mode serve
    dry_run  runs the same tests without a program
    session  runs the snippets that arrive on the link
"""

from __future__ import annotations

import ast
import atexit
import contextlib
import io
import json
import os
import random
import resource
import sys
import threading
import types
from collections.abc import Callable, Iterator
from typing import Any, TypedDict

from rewards.sandbox import filter as allowlist
from rewards.sandbox import kernel
from rewards.sandbox.dry_run import DryRun, without_asserts
from rewards.sandbox.link import ProgramEndpoint, TestsAborted, TestsEndpoint, describe_error, encode_error
from rewards.sandbox.names import ANNOTATION_MODULES, DEFAULT_MODULES, TestNames, add_builtins, remove_classes
from rewards.sandbox.snippets import run_snippets
from rewards.sandbox.values import NotPlain, encode

STDIN, STDOUT, STDERR, RESULT, JOB, LINK = range(6)  # the child's file descriptors

SET_UP = b"+"  # first byte on the result pipe: any failure after it is caused by the program
_MAX_OPEN_FILES = 64
_MAX_PROCESSES = 256  # of the user in total; set only if no seccomp filter forbids new processes


class Limits(TypedDict):
    """Limits of a child: seconds of processor time and of wall-clock time, bytes of address space (memory), bytes of
    standard output and of results each (output)."""

    cpu_seconds: int
    wall_seconds: float
    memory: int
    output: int


def run(limits: Limits, *, filtered: bool) -> None:
    """Runs the job in the file descriptor JOB. Expects all descriptors in place. Never returns."""
    with open(JOB, "rb") as file:
        job = json.load(file)
    _restrict(limits, filtered=filtered)
    sys.stdin = sys.__stdin__ = open(STDIN, encoding="utf-8")  # noqa: SIM115  for the program
    sys.stdout = sys.__stdout__ = stdout = open(STDOUT, "w", encoding="utf-8")  # noqa: SIM115
    sys.stderr = sys.__stderr__ = open(STDERR, "w", encoding="utf-8", errors="backslashreplace", buffering=1)  # noqa: SIM115
    sys.argv = ["program.py"]
    random.seed(0)
    os.write(RESULT, SET_UP)
    status = _MODES[job["mode"]](job)
    with contextlib.suppress(Exception):  # the program may have closed or replaced it
        stdout.flush()
    os._exit(status)


def _restrict(limits: Limits, *, filtered: bool) -> None:
    cpu = limits["cpu_seconds"]
    _limit(resource.RLIMIT_CPU, cpu, cpu + 1)  # soft limit: SIGXCPU, which may be ignored; hard limit: SIGKILL
    _limit(resource.RLIMIT_AS, limits["memory"])
    _limit(resource.RLIMIT_FSIZE, 0)
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_NOFILE, _MAX_OPEN_FILES)
    if filtered:
        kernel.install_filter(allowlist.program(os.getpid()))
    else:
        _limit(resource.RLIMIT_NPROC, _MAX_PROCESSES)


def _limit(kind: int, soft: int, hard: int | None = None) -> None:
    """Sets a resource limit, never above the current hard limit."""
    now = resource.getrlimit(kind)[1]
    allowed = [min(limit, now) if now != resource.RLIM_INFINITY else limit for limit in (soft, hard or soft)]
    resource.setrlimit(kind, (allowed[0], allowed[1]))


def _module(name: str) -> dict[str, Any]:
    """The namespace of a new module."""
    module = sys.modules[name] = types.ModuleType(name)
    module.__file__ = "program.py"
    return module.__dict__


def _execute(source: str, names: dict[str, Any]) -> None:
    exec(_compiled(source, "<program>"), names)


def _compiled(source: str | ast.Module, file: str) -> types.CodeType:
    return compile(source, file, "exec", dont_inherit=True)


def _stdin(job: dict[str, Any]) -> int:
    names, status = _module("__main__"), 0
    try:
        _execute(job["source"], names)
    except SystemExit as stop:
        status = _exit_status(stop)
    except BaseException as error:
        print(describe_error(error), file=sys.stderr)
        status = 1
    _end_script(names)
    return status


def _exit_status(stop: SystemExit) -> int:
    if stop.code is None or isinstance(stop.code, int):
        return (stop.code or 0) & 0xFF
    print(stop.code, file=sys.stderr)
    return 1


def _end_script(names: dict[str, Any]) -> None:
    """Does what an interpreter does at exit: waits for threads, runs exit functions, flushes output, frees objects."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    with contextlib.suppress(Exception):  # sys.stdout may be an object of the program
        sys.stdout.flush()
    for name in list(names):
        if name != "__builtins__":
            names[name] = None


def _calls(job: dict[str, Any]) -> int:
    add_builtins(DEFAULT_MODULES)
    with open(RESULT, "wb", buffering=0) as results:

        def reply(result: dict[str, Any]) -> None:
            results.write(json.dumps(result).encode() + b"\n")

        names = _module("program")
        try:
            _execute(job["source"], names)
        except BaseException as error:
            reply(encode_error(error))
            return 0
        for name, args in job["calls"]:
            try:
                reply({"value": encode(_function(names, name)(*args))})
            except NotPlain as error:
                reply({"error": f"returned {error}"})
            except BaseException as error:
                reply(encode_error(error))
    return 0


def _function(names: dict[str, Any], name: str) -> Callable[..., Any]:
    """A function of the program, or a method of its class Solution, which some data sets ask for."""
    if name not in names and isinstance(names.get("Solution"), type):
        return getattr(names["Solution"](), name)
    if name not in names:
        raise NameError(f"the program does not define {name}")
    return names[name]


def _serve(job: dict[str, Any]) -> int:
    add_builtins(ANNOTATION_MODULES)
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

    program = ProgramEndpoint(find)
    with open(LINK, "rb", closefd=False) as requests, open(LINK, "wb", buffering=0) as replies:
        for request in requests:
            replies.write(program.reply(request))
    return 0


def _tests(job: dict[str, Any]) -> int:
    """Runs the tests up to the first failure."""
    with open(LINK, "rb", closefd=False) as replies, open(LINK, "wb", buffering=0) as requests:
        link = TestsEndpoint(requests, replies)
        return _report(link, next(_failures(job, link, _compiled), {}))


def _dry_run(job: dict[str, Any]) -> int:
    """Runs all tests, continuing after failures."""
    link = DryRun()
    failures = list(_failures(job, link, lambda source, file: _compiled(without_asserts(source), file)))
    return _report(link, failures[0] if failures else {})


def _report(link: TestsEndpoint, failure: dict[str, Any]) -> int:
    with open(RESULT, "wb") as results:
        results.write(json.dumps({"num_calls": link.num_calls, **failure, **link.abort_reason}).encode())
    return 0


def _failures(
    job: dict[str, Any], link: TestsEndpoint, compiled: Callable[[str, str], types.CodeType]
) -> Iterator[dict[str, Any]]:
    """Yields {"failed": number, "reason": text} for each test that fails, or {"bad": reason} if the tests cannot be
    run.

    job: the fields of a rewards.programs.task.AssertsTask.
    """
    os.dup2(STDERR, STDOUT)  # standard output of tests is discarded
    add_builtins(DEFAULT_MODULES)
    names = TestNames(link)
    programs = {name: link.remote(name) for name in (job["entry_point"], *job["also_defines"])}
    try:
        tests = [compiled(test, f"<test {number}>") for number, test in enumerate(job["asserts"], 1)]
        exec(compiled(job["given"], "<prefix>"), names)
        remove_classes(names)
        names.update(programs)
        exec(compiled(job["setup"], "<setup>"), names)
    except BaseException as error:
        yield {"bad": describe_error(error)}
        return
    names.update(programs, candidate=programs[job["entry_point"]])
    for number, test in enumerate(tests, 1):
        reason = ""
        try:
            exec(test, names)
        except TestsAborted:
            pass
        except BaseException as error:
            reason = describe_error(error)
        if reason or link.abort_reason:
            yield {"failed": number, "reason": reason}


def _session(job: dict[str, Any]) -> int:
    assert isinstance(sys.stdout, io.TextIOWrapper)
    sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")  # at a deadline what was printed is shown
    names = _module("__main__")

    def execute(source: str, file: str) -> None:
        """Shows the value of an expression at the end, as an interactive interpreter does."""
        statements = ast.parse(source, file).body
        last = [statements.pop()] if statements and isinstance(statements[-1], ast.Expr) else []
        exec(_compiled(ast.Module(statements, []), file), names)
        exec(compile(ast.Interactive(last), file, "single", dont_inherit=True), names)

    run_snippets(LINK, execute)
    return 0


_MODES: dict[str, Callable[[dict[str, Any]], int]] = {
    "stdin": _stdin,
    "calls": _calls,
    "serve": _serve,
    "tests": _tests,
    "dry_run": _dry_run,
    "session": _session,
}
