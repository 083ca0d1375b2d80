"""Predefined names of programs and tests.

A function is graded as part of a file, as on the sites from which such tasks come: LeetCode provides its solutions with
DEFAULT_MODULES and their names. They are added to the built-in names, so that a program's own definitions hide them.
"""

from __future__ import annotations

import builtins
import importlib
import sys
import typing
from collections.abc import Sequence
from typing import Any

from rewards.sandbox.link import OpaqueRemote, TestsEndpoint

ANNOTATION_MODULES = ("typing",)
DEFAULT_MODULES = (
    *("typing", "collections", "itertools", "functools", "heapq", "bisect", "math"),
    *("copy", "datetime", "json", "operator", "random", "re", "statistics", "string", "sys"),
)
_TYPES = {name for name in typing.__all__ if name[0].isupper()}
_ALIASES = {"np": "numpy", "pd": "pandas"}
_WITH_NAMES = {"collections", "itertools", "functools", "heapq", "bisect", "math"}


def add_builtins(modules: Sequence[str]) -> None:
    """Adds the modules, the public names of those in _WITH_NAMES and the types of typing to the built-in names."""
    offered = {name: importlib.import_module(name) for name in modules}
    names = {
        name: value
        for module, held in offered.items()
        for name, value in vars(held).items()
        if (module in _WITH_NAMES and not name.startswith("_")) or (module == "typing" and name in _TYPES)
    }
    for name, value in {**names, **offered}.items():
        if not hasattr(builtins, name):
            setattr(builtins, name, value)


class TestNames(dict[str, Any]):
    """The global names of tests. An undefined name resolves to the module of that name, else to an OpaqueRemote."""

    def __init__(self, link: TestsEndpoint) -> None:
        super().__init__(__name__="tests")
        self._link = link

    def __missing__(self, name: str) -> Any:
        if hasattr(builtins, name) or name.startswith("__"):
            raise KeyError(name)
        module = _ALIASES.get(name, name)
        if module in sys.stdlib_module_names or module in sys.modules:
            return importlib.import_module(module)
        return OpaqueRemote(self._link, name, name)


def remove_classes(names: dict[str, Any]) -> None:
    """Removes the tests' own classes, whose objects cannot be passed to the program, so that the names resolve to the
    program's classes."""
    for name, value in list(names.items()):
        if isinstance(value, type) and value.__module__ == names["__name__"]:
            del names[name]
