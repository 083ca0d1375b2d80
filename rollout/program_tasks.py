"""Rows of a data set that ask for programs become tasks for rewards.program."""

from __future__ import annotations

import ast
import builtins
import json
from collections.abc import Mapping
from typing import Any

from rollout.errors import UserError

_ALIASES = {"input": "stdin", "output": "stdout"}


def asks_for_program(row: Mapping[str, Any]) -> bool:
    """Whether a row brings tests: its own ("tests"), or as HumanEval ("test", "entry_point") or MBPP ("test_list") has them."""
    return "tests" in row or "test_list" in row or {"test", "entry_point"} <= row.keys()


def program_task(row: Mapping[str, Any], what: str) -> dict[str, Any]:
    """The task of a row. `what` names the row in errors.

    tests: a list of asserts, of {"args", "expected"} (with "fn_name" beside it), or of {"stdin", "stdout"}; as JSON text too.
    """
    if "tests" not in row and "test_list" not in row:
        return _human_eval(row)
    tests = row.get("tests", row.get("test_list"))
    if isinstance(tests, str):
        try:
            tests = json.loads(tests)
        except json.JSONDecodeError as error:
            raise UserError(f"{what}: its tests are text, but not JSON: {error}") from None
    if not isinstance(tests, list):
        raise UserError(f"{what}: tests is {str(tests)[:60]!r}: it must be a list of tests")
    name = row.get("fn_name") or row.get("entry_point")
    extra = {"float_tol": row["float_tol"]} if row.get("float_tol") else {}
    if all(isinstance(test, str) for test in tests):
        setup = row.get("setup") or row.get("test_setup_code") or ""
        return {"type": "asserts", "entry_point": name or _tested(tests, what), "asserts": tests, "setup": setup}
    if not all(isinstance(test, dict) for test in tests):
        raise UserError(f"{what}: tests must all be asserts (text), or all be objects")
    tests = [{_ALIASES.get(key, key): value for key, value in test.items()} for test in tests]
    if tests and "args" in tests[0]:
        return {"type": "function", "fn_name": name, "tests": tests, **extra}
    return {"type": "stdin", "tests": tests, **extra}


def _human_eval(row: Mapping[str, Any]) -> dict[str, Any]:
    """The prompt is the beginning of the program: a completion may go on where it ends, and its helpers belong to the tests."""
    prompt, name = str(row["prompt"]), str(row["entry_point"])
    task = {"type": "asserts", "entry_point": name, "asserts": [str(row["test"]), f"check({name})"]}
    task |= {"setup": prompt, "prefix": prompt}
    return task | ({"solution": row["canonical_solution"]} if row.get("canonical_solution") else {})


def _tested(asserts: list[str], what: str) -> str:
    """The one function that every assert calls and that Python does not have."""
    try:
        called = [{_name(n) for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Call)} for text in asserts]
    except SyntaxError as error:
        raise UserError(f"{what}: a test is not Python: {error}") from None
    common = set.intersection(*called) - {None, *dir(builtins)} if called else set()
    if len(common) != 1:
        raise UserError(f"{what}: its tests do not say which function they are of; name it in a column 'entry_point'")
    return str(common.pop())


def _name(call: ast.Call) -> str | None:
    return call.func.id if isinstance(call.func, ast.Name) else None
