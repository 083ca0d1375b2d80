"""Where a function or a class of the user comes from: a file, a module, or its pickled value."""

from __future__ import annotations

import ast
import base64
import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from rewards.errors import UserError

NOTEBOOK = "__main__"  # module of functions that are defined in a notebook or in the script that runs
# Functions of NOTEBOOK that this process was given, by name: as base64 of the cloudpickle, or themselves if they run here.
KEPT: dict[str, str | Callable[..., Any]] = {}


@dataclass(frozen=True, kw_only=True)
class Source:
    """module: a path that ends in .py, or a dotted name. name: of the function in it, with dots for attributes.

    by_value: base64 of the function as cloudpickle writes it, in place of the module.
    folders: searched for modules before the installed ones. kind: what it should be, for messages.
    """

    module: str
    name: str
    by_value: str | None = None
    folders: tuple[str, ...] = ()
    kind: Literal["function", "class"] = "function"

    def __str__(self) -> str:
        return f"{self.module}:{self.name}"

    @staticmethod
    def parse(text: str, option: str = "reward") -> Source:
        """The source that "file.py:name" or "package.module:name" names. Raises UserError if there is no such file.

        option: what names it, for messages.
        """
        module, _, name = text.rpartition(":")
        kind = "class" if option == "environment" else "function"
        example = "Class" if kind == "class" else "function"
        if not all(part.isidentifier() for part in name.split(".")):
            raise UserError(
                f"{option} is {text!r}: {name!r} is not the name of a {kind}; write file.py:{example} or module:{example}"
            )
        if module == NOTEBOOK:
            if (kept := KEPT.get(name)) is None:
                raise UserError(
                    f"{option} is {text!r}: it was defined in a notebook or a script, which this process does not have; pass "
                    f"it again with plumbline.train({option}=...), or put it into a file"
                )
            return Source(module=module, name=name, by_value=kept if isinstance(kept, str) else None, kind=kind)
        if module.endswith(".py"):
            path = Path(module)
            if not path.is_file():
                raise UserError(f"{option} is {text!r}: there is no file {module!r} in {os.getcwd()!r}; give its path")
            folder = str(path.resolve().parent)
            return Source(module=str(path.resolve()), name=name, folders=(folder, os.getcwd()), kind=kind)
        if not all(part.isidentifier() for part in module.split(".")):
            raise UserError(f"{option} is {text!r}: {module!r} is neither a .py file nor the dotted name of a module")
        return Source(module=module, name=name, folders=(os.getcwd(), *filter(None, sys.path)), kind=kind)

    @property
    def runs_in_process(self) -> bool:
        """Whether the function is marked with in_process=True. The module is only read: importing it may load a model."""
        if self.module == NOTEBOOK:
            return self.by_value is None
        try:
            text = _text_of(self.module, self.folders)
            tree = ast.parse(text)
        except (OSError, ValueError, SyntaxError, ImportError):
            return False  # loading it gives the reason
        defined = (node for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
        calls = (
            d for node in defined if node.name == self.name for d in node.decorator_list if isinstance(d, ast.Call)
        )
        keywords = (keyword for call in calls for keyword in call.keywords if keyword.arg == "in_process")
        return any(isinstance(keyword.value, ast.Constant) and keyword.value.value is True for keyword in keywords)

    def load(self) -> Callable[..., Any]:
        """The function. Raises whatever the import raises, and UserError if the module has no function of this name."""
        if self.module == NOTEBOOK and self.by_value is None:
            kept = KEPT[self.name]
            assert callable(kept)  # parse has found it so
            return kept
        if self.by_value is not None:
            import cloudpickle  # the only user is a notebook

            return cloudpickle.loads(base64.b64decode(self.by_value))
        sys.path[:0] = [folder for folder in self.folders if folder not in sys.path]
        module = _file_module(self.module) if self.module.endswith(".py") else importlib.import_module(self.module)
        found: Any = module
        for part in self.name.split("."):
            found = getattr(found, part, None)
        if not callable(found):
            is_one, plural = {
                "function": (inspect.isfunction, "functions"),
                "class": (inspect.isclass, "classes"),
            }[self.kind]
            names = [n for n, one in inspect.getmembers(module, is_one) if one.__module__ == module.__name__]
            has = f"its {plural} are {', '.join(names)}" if names else f"it defines no {self.kind}"
            raise UserError(f"it has no {self.kind} {self.name!r}; {has}")
        return found


def _text_of(module: str, folders: Sequence[str]) -> str:
    if module.endswith(".py"):
        return Path(module).read_text(encoding="utf-8")
    found = (
        PathFinder.find_spec(module, [*folders, *sys.path]) if "." not in module else importlib.util.find_spec(module)
    )
    return Path((found and found.origin) or "").read_text(encoding="utf-8")


def _file_module(path: str) -> ModuleType:
    """The module of a file, registered under a name of its own: the file may be called like an installed package."""
    name = f"plumbline_reward_{Path(path).stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None  # the path ends in .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look their module up
    spec.loader.exec_module(module)
    return module
