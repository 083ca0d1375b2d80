"""Converts data set rows with program tests into tasks for rewards.program.

Faulty tests are found there, when references are checked: such a problem is dropped and reported.
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
    """Whether a row has tests: in our format ("tests"), HumanEval's ("test", "entry_point") or MBPP's ("test_list")."""
    return "tests" in row or "test_list" in row or {"test", "entry_point"} <= row.keys()


def program_task(row: Mapping[str, Any]) -> dict[str, Any]:
    """The task of a row.

    Its "tests" are a list of asserts, of {"args", "expected"} (with "fn_name" beside it), or of {"stdin", "stdout"}; also in
    LiveCodeBench's format, {"input", "output", "testtype"}, or in APPS's, {"inputs", "outputs"}; each also as JSON text.
    """
    if "tests" not in row and "test_list" not in row:
        return _human_eval(row)
    tests = _loaded(row.get("tests", row.get("test_list")))
    name = row.get("fn_name") or row.get("entry_point")
    if isinstance(tests, dict):
        name = name or tests.get("fn_name")
        tests = _rows(tests, is_function=bool(name))
    if not isinstance(tests, list) or not tests:
        return {"type": "stdin", "tests": tests}  # the type does not matter: there are no tests
    if all(isinstance(test, str) for test in tests):
        setup = row.get("setup") or row.get("test_setup_code") or ""
        return {
            "type": "asserts",
            "entry_point": name or tested_function(tests, setup),
            "asserts": tests,
            "setup": setup,
        }
    extra = {"float_tol": row["float_tol"]} if row.get("float_tol") else {}
    first = tests[0] if isinstance(tests[0], dict) else {}
    if "args" in first:
        return {"type": "function", "fn_name": name, "tests": tests, **extra}
    if first.get("testtype") == "functional":
        name = name or _func_name(row) or _func_name(first)
        return {"type": "function", "fn_name": name, "tests": [_call(test) for test in tests], **extra}
    return {"type": "stdin", "tests": [_script(test) for test in tests], **extra}


def _loaded(value: Any) -> Any:
    """The value of a JSON text; any other value as it is."""
    if isinstance(value, str):
        with suppress(ValueError, RecursionError):
            return json.loads(value)
    return value


def _rows(columns: Mapping[str, Any], *, is_function: bool) -> list[Any] | None:
    """Tests in APPS's format, {"inputs": [...], "outputs": [...]}, in which results of functions are lists of one item."""
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
    """LiveCodeBench's functional test: each line of the input is an argument in JSON, the output is the result in JSON."""
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
    """A text that some data sets store as a list of its lines, or as a number."""
    if isinstance(value, list) and all(isinstance(line, str) for line in value):
        return "\n".join(value)
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def _human_eval(row: Mapping[str, Any]) -> dict[str, Any]:
    """HumanEval's task. The prompt is the beginning of the program: a completion may continue it, and the tests need its helpers."""
    prompt, name = str(row["prompt"]), str(row["entry_point"])
    task = {"type": "asserts", "entry_point": name, "asserts": [str(row["test"]), f"check({name})"]}
    task |= {"setup": prompt, "prefix": prompt}
    return task | ({"solution": row["canonical_solution"]} if row.get("canonical_solution") else {})


def tested_function(asserts: list[str], setup: Any) -> str | None:
    """The only function that every assert calls and that neither Python nor the tests define; None if there is no single one."""
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
