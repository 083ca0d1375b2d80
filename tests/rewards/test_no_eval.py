"""No model text may reach an evaluator: verl's reward ran code from answers through sympy's parse_expr, which calls eval."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

REWARDS = Path(__file__).resolve().parents[2] / "rewards"
FORBIDDEN = {
    *("eval", "exec", "compile", "__import__", "parse_expr", "sympify", "lambdify", "parse_latex"),
    *("pickle", "cPickle", "dill", "marshal", "shelve"),
}

RUNS_PROGRAMS = "sandbox/child.py"  # the only file that executes text, in a sandbox


def _forbidden_names(source: str) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Name):
            names = [node.id]
        elif isinstance(node, ast.Attribute) and not (node.attr == "compile" and _is_re(node.value)):
            names = [node.attr]
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names = [part for alias in node.names for part in alias.name.split(".")]
            names += (getattr(node, "module", None) or "").split(".")
        found += [f"line {node.lineno}: {name}" for name in names if name in FORBIDDEN]  # type: ignore[attr-defined]
    return found


def _is_re(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id == "re"


@pytest.mark.parametrize("path", sorted(REWARDS.rglob("*.py")), ids=lambda path: path.stem)
def test_nothing_in_rewards_evaluates_text(path: Path) -> None:
    found = _forbidden_names(path.read_text(encoding="utf-8"))
    if str(path.relative_to(REWARDS)) == RUNS_PROGRAMS:
        found = [f for f in found if not f.endswith((": exec", ": compile"))]
    assert found == []


@pytest.mark.parametrize(
    "source",
    ["eval(text)", "import pickle", "from sympy.parsing.sympy_parser import parse_expr", "sympy.sympify(text)",
     "f = exec", "import sympy as s\ns.lambdify(x, text)", "from pickle import loads"],
)  # fmt: skip
def test_the_lint_sees_what_it_forbids(source: str) -> None:
    assert _forbidden_names(source)
