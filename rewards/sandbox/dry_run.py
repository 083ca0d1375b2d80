"""Runs tests without a program: any fault found then is a fault of the tests.

Every result is an Anything, with which the tests continue as far as possible.
"""

from __future__ import annotations

import ast
from typing import Any

from rewards.sandbox.link import ARITHMETIC, COMPARISONS, OpaqueRemote, Remote, TestsEndpoint


class DryRun(TestsEndpoint):
    """A connection without a program: checks the requests of the tests and answers each with an Anything."""

    def __init__(self) -> None:
        self.num_calls = 0
        self.abort_reason: dict[str, Any] = {}

    def _answer(self, request: list[Any]) -> Any:
        *_, keep_remote = request
        return Remote(self, 0) if keep_remote else Anything()

    def _name(self, value: Any) -> Any:
        return 0 if isinstance(value, Anything) else super()._name(value)


class Anything:
    """An object that supports every operation, mostly returning itself, and equals everything."""

    def __getattr__(self, name: str) -> Anything:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __call__(self, *_: Any, **__: Any) -> Anything:
        return self

    def __getitem__(self, _: Any) -> Anything:
        return self

    def _with(self, *others: Any) -> Any:
        return NotImplemented if any(isinstance(other, OpaqueRemote) for other in others) else self

    def _is_so(self, other: Any) -> Any:
        return NotImplemented if isinstance(other, OpaqueRemote) else True

    def __bool__(self) -> bool:
        return True

    def __hash__(self) -> int:
        return 0

    def __len__(self) -> int:
        return 0

    def __iter__(self) -> Any:
        return iter(())

    def __next__(self) -> Anything:
        return self

    def __int__(self) -> int:
        return 0

    __index__ = __trunc__ = __int__

    def __float__(self) -> float:
        return 0.0

    def __str__(self) -> str:
        return ""


for _operation in ARITHMETIC:
    setattr(Anything, _operation, Anything._with)
for _operation in COMPARISONS:
    setattr(Anything, _operation, Anything._is_so)


class _NoAsserts(ast.NodeTransformer):
    def visit_Assert(self, node: ast.Assert) -> ast.stmt:
        """Replaces the assert by an expression that evaluates the truth of its test and discards it."""
        return ast.copy_location(ast.Expr(ast.UnaryOp(ast.Not(), node.test)), node)


def without_asserts(source: str) -> ast.Module:
    """The tests with every assert replaced, so that none can fail."""
    return ast.fix_missing_locations(_NoAsserts().visit(ast.parse(source)))
