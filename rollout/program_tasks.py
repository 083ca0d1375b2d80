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

    tests: a list of asserts, of {"args", "expected"} (with "fn_name" beside it), or of {"stdin", "stdout"}; also as
        LiveCodeBench has them, {"input", "output", "testtype"}, or APPS, {"inputs", "outputs"}; each as JSON text too.
    """
    if "tests" not in row and "test_list" not in row:
        return _human_eval(row)
    tests = _loaded(row.get("tests", row.get("test_list")))
    name = row.get("fn_name") or row.get("entry_point")
    if isinstance(tests, dict):
        name = name or tests.get("fn_name")
        tests = _rows(tests, is_function=bool(name))
    if not isinstance(tests, list) or not tests:
        return {"type": "stdin", "tests": tests}  # whichever was meant: it has none
    if all(isinstance(test, str) for test in tests):
        setup = row.get("setup") or row.get("test_setup_code") or ""
        return {"type": "asserts", "entry_point": name or _tested(tests, setup), "asserts": tests, "setup": setup}
    extra = {"float_tol": row["float_tol"]} if row.get("float_tol") else {}
    first = tests[0] if isinstance(tests[0], dict) else {}
    if "args" in first:
        return {"type": "function", "fn_name": name, "tests": tests, **extra}
    if first.get("testtype") == "functional":
        name = name or _func_name(row) or _func_name(first)
        return {"type": "function", "fn_name": name, "tests": [_call(test) for test in tests], **extra}
    return {"type": "stdin", "tests": [_script(test) for test in tests], **extra}


def _loaded(value: Any) -> Any:
    """The value that stands in JSON text, or the text."""
    if isinstance(value, str):
        with suppress(ValueError, RecursionError):
            return json.loads(value)
    return value


def _rows(columns: Mapping[str, Any], *, is_function: bool) -> list[Any] | None:
    """Tests as APPS has them, {"inputs": [...], "outputs": [...]}. It puts results of functions into lists of one."""
    inputs, outputs = columns.get("inputs"), columns.get("outputs")
    if not isinstance(inputs, list) or not isinstance(outputs, list) or len(inputs) != len(outputs):
        return None
    if not is_function:
        return [{"input": i, "output": o} for i, o in zip(inputs, outputs, strict=True)]
    if all(isinstance(output, list) and len(output) == 1 for output in outputs):
        outputs = [output for (output,) in outputs]
    return [{"args": i, "expected": o} for i, o in zip(inputs, outputs, strict=True)]


def _func_name(holder: Mapping[str, Any]) -> Any:
    metadata = _loaded(holder.get("metadata"))
    return metadata.get("func_name") if isinstance(metadata, dict) else None


def _call(test: Any) -> Any:
    """LiveCodeBench's functional test: each line of the input is an argument as JSON, the output is the result."""
    try:
        return {
            "args": [json.loads(line) for line in test["input"].splitlines()],
            "expected": json.loads(test["output"]),
        }
    except (TypeError, AttributeError, LookupError, ValueError, RecursionError):
        return test


def _script(test: Any) -> Any:
    if not isinstance(test, dict):
        return test
    return {_ALIASES.get(key, key): _text(value) for key, value in test.items()}


def _text(value: Any) -> Any:
    """Some data sets have text as a list of its lines, and output that is one number as a number."""
    if isinstance(value, list) and all(isinstance(line, str) for line in value):
        return "\n".join(value)
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def _human_eval(row: Mapping[str, Any]) -> dict[str, Any]:
    """The prompt is the beginning of the program: a completion may go on where it ends, and its helpers belong to the tests."""
    prompt, name = str(row["prompt"]), str(row["entry_point"])
    task = {"type": "asserts", "entry_point": name, "asserts": [str(row["test"]), f"check({name})"]}
    task |= {"setup": prompt, "prefix": prompt}
    return task | ({"solution": row["canonical_solution"]} if row.get("canonical_solution") else {})


def _tested(asserts: list[str], setup: Any) -> str | None:
    """The one function that every assert calls and that neither Python nor the tests themselves have."""
    try:
        trees = [ast.parse(text) for text in asserts]
        own = {name for tree in [*trees, ast.parse(setup)] for node in ast.walk(tree) for name in _defined(node)}
    except (SyntaxError, ValueError, TypeError):
        return None
    called = [{_name(n) for n in ast.walk(tree) if isinstance(n, ast.Call)} for tree in trees]
    common = set.intersection(*called) - {None, *dir(builtins), *own}
    return common.pop() if len(common) == 1 else None


def _defined(node: ast.AST) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    if isinstance(node, ast.Import | ast.ImportFrom):
        return [alias.asname or alias.name for alias in node.names]
    return [node.id] if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) else []


def _name(call: ast.Call) -> str | None:
    return call.func.id if isinstance(call.func, ast.Name) else None
