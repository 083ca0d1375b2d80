"""Names that programs and tests may use without having defined them.

A function is judged as a part of a file, as the sites have it that such tasks are from: LeetCode gives its solutions the DEFAULT_MODULES
modules and their names. They stand where built-in names do, behind all that a program defines itself.
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
    """The modules by their names, what those of _WITH_NAMES hold, and the types of typing."""
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
    """The names that tests see. One that nobody has defined is a module, else it is the program's to define."""

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
    """An object of a class of the tests' own cannot be handed to the program; its own class of that name can make one."""
    for name, value in list(names.items()):
        if isinstance(value, type) and value.__module__ == names["__name__"]:
            del names[name]
