"""Rows of a data set that ask for programs become tasks for rewards.program.

What is wrong with a row's tests is found there, when references are checked: such a problem is left out and told of.
"""

from __future__ import annotations

import ast
import builtins
import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

_ALIASES = {"input": "stdin", "output": "stdout"}


def asks_for_program(row: Mapping[str, Any]) -> bool:
    """Whether a row brings tests: its own ("tests"), or as HumanEval ("test", "entry_point") or MBPP ("test_list") has them."""
    return "tests" in row or "test_list" in row or {"test", "entry_point"} <= row.keys()


def program_task(row: Mapping[str, Any]) -> dict[str, Any]:
    """The task of a row.

    tests: a list of asserts, of {"args", "expected"} (with "fn_name" beside it), or of {"stdin", "stdout"}; as JSON text too.
    """
    if "tests" not in row and "test_list" not in row:
        return _human_eval(row)
    tests = row.get("tests", row.get("test_list"))
    if isinstance(tests, str):
        with suppress(json.JSONDecodeError):
            tests = json.loads(tests)
    if not isinstance(tests, list) or not tests:
        return {"type": "stdin", "tests": tests}  # whichever was meant: it has none
    name = row.get("fn_name") or row.get("entry_point")
    extra = {"float_tol": row["float_tol"]} if row.get("float_tol") else {}
    if all(isinstance(test, str) for test in tests):
        setup = row.get("setup") or row.get("test_setup_code") or ""
        return {"type": "asserts", "entry_point": name or _tested(tests), "asserts": tests, "setup": setup}
    tests = [{_ALIASES.get(k, k): v for k, v in test.items()} if isinstance(test, dict) else test for test in tests]
    if "args" in tests[0]:
        return {"type": "function", "fn_name": name, "tests": tests, **extra}
    return {"type": "stdin", "tests": tests, **extra}


def _human_eval(row: Mapping[str, Any]) -> dict[str, Any]:
    """The prompt is the beginning of the program: a completion may go on where it ends, and its helpers belong to the tests."""
    prompt, name = str(row["prompt"]), str(row["entry_point"])
    task = {"type": "asserts", "entry_point": name, "asserts": [str(row["test"]), f"check({name})"]}
    task |= {"setup": prompt, "prefix": prompt}
    return task | ({"solution": row["canonical_solution"]} if row.get("canonical_solution") else {})


def _tested(asserts: list[str]) -> str | None:
    """The one function that every assert calls and that Python does not have."""
    try:
        called = [{_name(n) for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Call)} for text in asserts]
    except (SyntaxError, ValueError):
        return None
    common = set.intersection(*called) - {None, *dir(builtins)}
    return common.pop() if len(common) == 1 else None


def _name(call: ast.Call) -> str | None:
    return call.func.id if isinstance(call.func, ast.Name) else None
