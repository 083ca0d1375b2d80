"""The program verifier: programs and tasks in, scores out."""

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

_MAX_OUTPUT = 1 << 20


class SandboxUnavailable(UserError):
    """Programs cannot be shut in well enough here: says what is missing, and what to do."""


class ProgramVerifier(PooledVerifier):
    """Runs programs against tests, shut in; a `rewards.score.Verifier`. A program is right if it passes every test.

    A task is one of (function and stdin take an optional "float_tol")
        {"type": "asserts", "entry_point": str, "asserts": [str]}      and optionally "setup": str, run before them, and
            "also_defines": [str], names beside the entry point that programs are asked to define
        {"type": "function", "fn_name": str, "tests": [{"args": [...], "expected": ...}]}
        {"type": "stdin", "tests": [{"stdin": str, "stdout": str}]}
    and each may have a "prefix" (source before every program) and a "solution" (must pass, see check_references).
    Asserts call the function in another process: arguments go and results come by value (rewards.sandbox.link), so that a
    change of its arguments is not seen. What a program does to itself is its own fault, and worth 0: a score without a value is
    only for what fails on this side.

    completions: the texts are completions; the program is their last fenced block, without a fence the whole text.
    num_workers: processes that judge at once, each with a sandbox of its own.
    cpu_seconds, wall_seconds, memory_limit: of one program; of one test, where the task is a script. All tests of a script
        together, and a program that is run again since the machine seemed busy, may take twice wall_seconds.
    allow_unsafe_code: run programs even below level 2 of isolation (rewards.sandbox.isolation).
    without: layers not to use. packages: modules beside the standard library that programs may import.

    Raises SandboxUnavailable where the level is below 2, or nothing can be run at all. `isolation` tells the level.
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
        self.isolation = _require_isolation(allow_unsafe_code, without)
        sandbox = {
            "layers": self.isolation.layers,
            "packages": list(packages),
            "readable": [sysconfig.get_path("purelib")] if packages else [],
        }
        if packages:
            _check_packages(packages, sandbox)
        limits: Limits = {
            "cpu_seconds": cpu_seconds,
            "wall_seconds": wall_seconds,
            "memory": memory_limit,
            "output": _MAX_OUTPUT,
        }
        pool = WorkerPool(
            "rewards.programs.grader:load",
            {"completions": completions, "limits": limits, **sandbox},
            num_workers=num_workers,
            deadline=6 * wall_seconds + 30,  # the judge keeps the time; beyond this it has failed
            memory_limit=2 * memory_limit + (1 << 30),
            max_chunk=8,
            timeout_outcome=Outcome.CRASHED,
        )
        super().__init__("program", pool)

    def _scores(self, items: Sequence[Sequence[Any]]) -> list[Score]:
        refused = {i: score for i, item in enumerate(items) if (score := _refused(*item)) is not None}
        graded = iter(super()._scores([item for i, item in enumerate(items) if i not in refused]))
        return [refused[i] if i in refused else next(graded) for i in range(len(items))]


def _require_isolation(allow_unsafe_code: bool, without: Sequence[str] = ()) -> Isolation:
    """The isolation of this machine. Raises SandboxUnavailable where it is below the floor and not allowed to be."""
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
            "namespaces. allow_unsafe_code runs programs all the same: only where nothing can be lost"
        )
    return isolation


def _check_limits(cpu_seconds: int, wall_seconds: float, memory_limit: int) -> None:
    if isinstance(cpu_seconds, float) or cpu_seconds < 1:
        raise ValueError(
            f"cpu_seconds={cpu_seconds!r} must be a whole number of at least 1: the kernel counts in seconds"
        )
    if not 0 < wall_seconds < 500:
        raise ValueError(f"wall_seconds={wall_seconds!r} must be between 0 and 500: the time one program may take")
    if memory_limit < 1 << 27:
        raise ValueError(
            f"memory_limit={memory_limit!r} must be at least {1 << 27} bytes: the interpreter needs half of it"
        )


def _check_packages(packages: Sequence[str], sandbox: dict[str, Any]) -> None:
    try:
        Sandbox(**sandbox).close()
    except SandboxError as error:
        raise UserError(f"packages={list(packages)!r} cannot be imported where programs run: {error}") from None


def _refused(*item: Any) -> Score | None:
    """The score of what cannot even be handed to a judge."""
    *program, task = item
    try:
        json.dumps(task, ensure_ascii=False).encode()
    except (TypeError, ValueError, RecursionError) as error:  # half a character is a ValueError
        return Score(None, Outcome.BAD_REFERENCE, {}, f"the task is not JSON: {error}"[:200])
    if program and not isinstance(program[0], str):
        return Score(0.0, Outcome.UNPARSED, {"program": 0.0}, f"a program is text, not {type(program[0]).__name__}")
    return None
