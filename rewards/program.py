"""The program verifier: scores programs by running them against tests in a sandbox."""

from __future__ import annotations

import json
import sysconfig
from collections.abc import Sequence
from typing import Any

from rewards.errors import UserError
from rewards.pool import WorkerPool
from rewards.pooled_verifier import PooledVerifier
from rewards.sandbox.child import Limits
from rewards.sandbox.client import Sandbox, SandboxError
from rewards.sandbox.isolation import MIN_LEVEL, Isolation, measure
from rewards.sandbox.layers import LAYERS
from rewards.score import Outcome, Score

MAX_OUTPUT = 1 << 20  # bytes


class SandboxUnavailable(UserError):
    """Programs cannot be sandboxed well enough on this machine. The message says what is missing and what to do."""


class ProgramVerifier(PooledVerifier):
    """Runs programs against tests in a sandbox; a `rewards.score.Verifier`. A program is correct if it passes every
    test.

    A task is one of (function and stdin take an optional "float_tol")
        {"type": "asserts", "entry_point": str, "asserts": [str]}      and optionally "setup": str, run before them, and
            "also_defines": [str], names besides the entry point that programs are asked to define
        {"type": "function", "fn_name": str, "tests": [{"args": [...], "expected": ...}]}
        {"type": "stdin", "tests": [{"stdin": str, "stdout": str}]}
    and each may have a "prefix" (source before every program) and a "solution" (which must pass, see check_references).
    Asserts call the function in another process, and arguments and results are passed by value (rewards.sandbox.link),
    so that tests do not see changes that the function makes to its arguments. A program that exhausts its limits or
    kills itself scores 0: only a failure of the verifier gives a score without a value.

    completions: the texts are completions; the program is the last fenced block, or the whole text if there is no
    fence.
    num_workers: worker processes, each with its own sandbox.
    cpu_seconds, wall_seconds, memory_limit: limits of one program, or of each test if the task is a script. All tests
    of a
        script together, or a program that is run again because the machine seemed busy, may take twice wall_seconds.
    allow_unsafe_code: run programs even below isolation level 2 (rewards.sandbox.isolation).
    without: layers not to use. packages: modules besides the standard library that programs may import.
    isolation: the isolation of this machine.

    Raises SandboxUnavailable if the isolation level is below 2 and allow_unsafe_code is off, or if no program can be
    run.
    """

    def __init__(
        self,
        *,
        completions: bool = False,
        num_workers: int = 2,
        cpu_seconds: int = 3,
        wall_seconds: float = 6.0,
        memory_limit: int = 1 << 30,
        allow_unsafe_code: bool = False,
        without: Sequence[str] = (),
        packages: Sequence[str] = (),
    ) -> None:
        _check_limits(cpu_seconds, wall_seconds, memory_limit)
        self.isolation = require_isolation(allow_unsafe_code, without)
        limits: Limits = {
            "cpu_seconds": cpu_seconds,
            "wall_seconds": wall_seconds,
            "memory": memory_limit,
            "output": MAX_OUTPUT,
        }
        arguments = {"completions": completions, **_sandbox(self.isolation, packages)}
        super().__init__("program", program_pool("load", arguments, limits, num_workers))

    def _scores(self, items: Sequence[Sequence[Any]]) -> list[Score]:
        refused = {i: score for i, item in enumerate(items) if (score := _refused(*item)) is not None}
        graded = iter(super()._scores([item for i, item in enumerate(items) if i not in refused]))
        return [refused[i] if i in refused else next(graded) for i in range(len(items))]


def program_pool(load: str, arguments: dict[str, Any], limits: Limits, num_workers: int, **more: Any) -> WorkerPool:
    """Workers that run programs by this function of rewards.programs.grader, which enforces the limits itself."""
    return WorkerPool(
        f"rewards.programs.grader:{load}",
        {"limits": limits, **arguments},
        num_workers=num_workers,
        deadline=6 * limits["wall_seconds"] + 30,  # the grader's own limits end well before this
        memory_limit=2 * limits["memory"] + (1 << 30),
        max_chunk=8,
        timeout_outcome=Outcome.CRASHED,
        **more,
    )


def require_isolation(allow_unsafe_code: bool, without: Sequence[str] = ()) -> Isolation:
    """The isolation of this machine. Raises SandboxUnavailable if it is below MIN_LEVEL and allow_unsafe_code is
    off."""
    unknown = set(without) - set(LAYERS)
    if unknown:
        raise UserError(f"without={list(without)!r}: there is no layer {unknown.pop()!r}, only {', '.join(LAYERS)}")
    try:
        isolation = measure(frozenset(without))
    except SandboxError as error:
        raise SandboxUnavailable(f"programs cannot be run here: {error}") from None
    if isolation.rank < MIN_LEVEL and not allow_unsafe_code:
        raise SandboxUnavailable(
            f"programs cannot be run safely here: isolation is {isolation.describe()}; level {MIN_LEVEL} is needed. "
            "Linux 5.13 or newer offers landlock, and most containers allow it; namespaces need unprivileged user "
            "namespaces. allow_unsafe_code runs programs nevertheless: use it only on a machine with nothing to lose"
        )
    return isolation


def _check_limits(cpu_seconds: int, wall_seconds: float, memory_limit: int) -> None:
    if isinstance(cpu_seconds, float) or cpu_seconds < 1:
        raise ValueError(
            f"cpu_seconds={cpu_seconds!r} must be an integer of at least 1: the kernel counts whole seconds"
        )
    if not 0 < wall_seconds < 500:
        raise ValueError(f"wall_seconds={wall_seconds!r} must be between 0 and 500: the time limit of one program")
    if memory_limit < 1 << 27:
        raise ValueError(
            f"memory_limit={memory_limit!r} must be at least {1 << 27} bytes: the interpreter alone needs half of that"
        )


def _sandbox(isolation: Isolation, packages: Sequence[str]) -> dict[str, Any]:
    """The arguments of each Sandbox. Raises UserError for packages that cannot be imported there."""
    readable = [sysconfig.get_path("purelib")] if packages else []
    sandbox = {"layers": isolation.layers, "packages": list(packages), "readable": readable}
    if packages:
        _check_packages(packages, sandbox)
    return sandbox


def _check_packages(packages: Sequence[str], sandbox: dict[str, Any]) -> None:
    try:
        Sandbox(**sandbox).close()
    except SandboxError as error:
        raise UserError(f"packages={list(packages)!r} cannot be imported in the sandbox: {error}") from None


def _refused(*item: Any) -> Score | None:
    """The score of an item that cannot be sent to a worker, None for any other item."""
    *program, task = item
    try:
        json.dumps(task, ensure_ascii=False).encode()
    except (TypeError, ValueError, RecursionError) as error:  # a lone surrogate is a ValueError
        return Score(None, Outcome.BAD_REFERENCE, {}, f"the task is not JSON: {error}"[:200])
    if program and not isinstance(program[0], str):
        return Score(0.0, Outcome.UNPARSED, {"program": 0.0}, f"the program is not text: {type(program[0]).__name__}")
    return None
