"""The task of a program as validated data."""

from __future__ import annotations

import ast
import keyword
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from rewards.programs.compare import same_value
from rewards.sandbox.values import NotPlain, encode
from rewards.verdict import BadReference


@dataclass(frozen=True, kw_only=True)
class Task:
    """Fields of every task.

    prefix: source that precedes every program, such as the code that a model was asked to complete.
    solution: a program that must pass, if one is known. float_tol: tolerance for numbers (rewards.programs.compare).
    """

    prefix: str
    solution: str | None
    float_tol: float

    @property
    def defines(self) -> str | None:
        """The function that a program must define, if any."""
        return None


@dataclass(frozen=True, kw_only=True)
class StdinTask(Task):
    """The program is a script. tests: (standard input, expected standard output) of each test."""

    tests: tuple[tuple[str, str], ...]


@dataclass(frozen=True, kw_only=True)
class FunctionTask(Task):
    """The program defines a function. tests: (arguments, expected result) of each test."""

    fn_name: str
    tests: tuple[tuple[list[Any], Any], ...]

    @property
    def defines(self) -> str:
        return self.fn_name


@dataclass(frozen=True, kw_only=True)
class AssertsTask(Task):
    """The program defines a function that Python statements test: they raise unless it is correct.

    entry_point: the name of the function, which the statements can also use as `candidate`.
    also_defines: further names that programs are asked to define. Any other undefined name is left to the program, too,
    but
        its value can only be passed back to the program (rewards.sandbox.link).
    given: the prefix as valid Python, whose definitions the statements can use.
    setup: statements that run before `asserts` in the same namespace.
    """

    entry_point: str
    also_defines: tuple[str, ...]
    given: str
    setup: str
    asserts: tuple[str, ...]

    @property
    def defines(self) -> str:
        return self.entry_point


def parse_task(task: Any) -> StdinTask | FunctionTask | AssertsTask:
    """The validated task. Raises BadReference."""
    if not isinstance(task, Mapping):
        raise BadReference(f"a task is a JSON object, not {type(task).__name__}")
    kinds = {"stdin": _stdin_task, "function": _function_task, "asserts": _asserts_task}
    kind = task.get("type")
    if not isinstance(kind, str) or kind not in kinds:
        raise BadReference(f"type is {kind!r}: it must be one of {', '.join(sorted(kinds))}")
    prefix, solution, float_tol = task.get("prefix", ""), task.get("solution"), task.get("float_tol") or 0.0
    if not isinstance(prefix, str) or not isinstance(solution, str | None):
        raise BadReference("prefix and solution must be source text")
    if isinstance(float_tol, bool) or not isinstance(float_tol, int | float) or not 0 <= float_tol < 1:
        raise BadReference(f"float_tol is {float_tol!r}: it must be a number in [0, 1)")
    return kinds[kind](task, {"prefix": prefix, "solution": solution, "float_tol": float(float_tol)})


def _stdin_task(task: Mapping[str, Any], common: dict[str, Any]) -> StdinTask:
    tests = [(test["stdin"], test["stdout"]) for test in _tests(task, "stdin", "stdout")]
    if not all(isinstance(text, str) for test in tests for text in test):
        raise BadReference("stdin and stdout of every test must be text")
    if not any(stdout.strip() for _, stdout in tests):
        raise BadReference("no test expects any output: a program that does nothing would pass")
    return StdinTask(tests=tuple(tests), **common)


def _function_task(task: Mapping[str, Any], common: dict[str, Any]) -> FunctionTask:
    tests = [(test["args"], test["expected"]) for test in _tests(task, "args", "expected")]
    if not all(isinstance(args, list) for args, _ in tests):
        raise BadReference("args of every test must be a list")
    for number, (_, expected) in enumerate(tests, 1):
        _check_expected(number, expected)
    return FunctionTask(fn_name=_identifier(task, "fn_name"), tests=tuple(tests), **common)


def _asserts_task(task: Mapping[str, Any], common: dict[str, Any]) -> AssertsTask:
    entry_point, setup, asserts = _identifier(task, "entry_point"), task.get("setup", ""), task.get("asserts")
    also_defines = task.get("also_defines", [])
    if not isinstance(also_defines, list) or not all(isinstance(name, str) for name in also_defines):
        raise BadReference("also_defines must be a list of names")
    if not isinstance(asserts, list) or not asserts or not all(isinstance(a, str) for a in [setup, *asserts]):
        raise BadReference("asserts must be a list of at least one text of Python, and setup such a text")
    names = {node.id for text in asserts for node in ast.walk(_parsed(text)) if isinstance(node, ast.Name)}
    _parsed(setup)
    if not names & {entry_point, "candidate"}:
        raise BadReference(f"asserts never use {entry_point}: every program would pass them")
    return AssertsTask(
        entry_point=entry_point,
        also_defines=tuple(also_defines),
        given=_standing_alone(common["prefix"]),
        setup=setup,
        asserts=tuple(asserts),
        **common,
    )


def _standing_alone(prefix: str) -> str:
    """The prefix as valid Python: with an empty body added if it ends with the first line of a function, and "" if it
    is not Python."""
    last = prefix.rstrip().rpartition("\n")[2]
    body = " " * (len(last) - len(last.lstrip()) + 1) + "pass\n"
    for text in (prefix, f"{prefix.rstrip()}\n{body}"):
        with suppress(BadReference):
            _parsed(text)
            return text
    return ""


def _check_expected(number: int, expected: Any) -> None:
    try:
        encode(expected)
    except NotPlain as error:
        raise BadReference(f"the expected result of test {number} is {error}: no program could return it") from None
    if not same_value(expected, expected, 0.0):
        raise BadReference(f"test {number} expects NaN, which equals nothing")


def _tests(task: Mapping[str, Any], *fields: str) -> list[Mapping[str, Any]]:
    tests = task.get("tests")
    if not isinstance(tests, list) or not tests:
        raise BadReference("tests must be a list of at least one test: without one every program would pass")
    for number, test in enumerate(tests, 1):
        if not isinstance(test, Mapping) or not set(fields) <= set(test):
            raise BadReference(f"test {number} must be an object with {' and '.join(fields)}")
    return tests


def _identifier(task: Mapping[str, Any], field: str) -> str:
    name = task.get(field)
    if not isinstance(name, str) or not name.isidentifier() or keyword.iskeyword(name):
        raise BadReference(f"{field} is {name!r}: it must be the name of the tested function")
    return name


def _parsed(source: str) -> ast.AST:
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise BadReference(f"asserts and setup must be Python: {str(error) or 'nested too deep'}") from None
