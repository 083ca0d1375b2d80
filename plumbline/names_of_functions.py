"""Names of functions and classes that a program has in memory, as the options of a run would name them."""

from __future__ import annotations

import base64
import importlib.util
import sys
from collections.abc import Callable, Collection
from functools import partial
from pickle import PicklingError
from typing import Any

import cloudpickle

from rewards.errors import UserError
from rewards.functions.declaration import Declaration
from rewards.functions.source import KEPT, NOTEBOOK

Reference = Callable[[Any, Collection[str]], str]


def reference_to(function: Any, taken: Collection[str] = ()) -> str:
    """The text by which `--reward` names the function: module:name, or __main__:name for one that is kept by value.

    A function of an importable module is named by it. Every other callable is pickled by value; one that runs in this
    process is kept as it is. taken: references that others have. Raises UserError for what cannot be called or pickled.
    """
    _require_callable("reward", function, "a function")
    try:
        declaration = Declaration.of(function)
    except UserError as error:
        raise UserError(f"reward is the function {_name_of(function)!r}: {error}") from None
    advice = ", or mark the function with @plumbline.reward(in_process=True)"
    return _reference("reward", function, taken, in_process=declaration.in_process, advice=advice)


def tool_reference_to(function: Any, taken: Collection[str] = ()) -> str:
    """The text by which `--tools` names the function. See reference_to."""
    _require_callable("tools", function, "a function")
    return _reference("tools", function, taken)


def environment_reference_to(made_by: Any, taken: Collection[str] = ()) -> str:
    """The text by which `--environment` names a class, or whatever makes an environment when it is called. One that asks for processes is
    pickled by value. See reference_to."""
    _require_callable("environment", made_by, "a class")
    has_process = getattr(made_by, "own_process", False) is True
    is_importable = _importable(made_by) is not None
    return _reference("environment", made_by, taken, in_process=not has_process and not is_importable)


def _require_callable(option: str, given: Any, what: str) -> None:
    if not callable(given):
        raise UserError(f"{option} is {given!r}: it must be {what}, or a name as for --{option}, or several of them")


def _reference(option: str, given: Any, taken: Collection[str], *, in_process: bool = False, advice: str = "") -> str:
    importable = _importable(given)
    if importable is not None and not in_process:
        return importable
    name = _name_of(given)
    possible = (f"{NOTEBOOK}:{name}{n}" for n in ("", *(f"_{n}" for n in range(2, len(taken) + 3))))
    reference = next(one for one in possible if one not in taken)
    KEPT[reference.rpartition(":")[2]] = given if in_process else _pickled(option, given, advice)
    return reference


def _importable(given: Any) -> str | None:
    """module:name for what an import gives; None for everything else."""
    module, qualified = getattr(given, "__module__", None) or NOTEBOOK, getattr(given, "__qualname__", "")
    found: Any = sys.modules.get(module)
    for part in qualified.split("."):
        found = getattr(found, part, None)
    is_importable = module != NOTEBOOK and found is given and importlib.util.find_spec(module) is not None
    return f"{module}:{qualified}" if is_importable else None


def _name_of(function: Any) -> str:
    """A name for what the user calls it: of a partial its function's, of an object its class's."""
    while isinstance(function, partial):
        function = function.func
    return getattr(function, "__name__", type(function).__name__).replace("<lambda>", "reward")


def _pickled(option: str, given: Callable[..., Any], advice: str) -> str:
    try:
        return base64.b64encode(cloudpickle.dumps(given)).decode()
    except (TypeError, ValueError, AttributeError, RecursionError, PicklingError) as error:
        raise UserError(
            f"{option} is the function {_name_of(given)!r}, which cannot be pickled for the worker processes ({error}): it uses an object "
            f"of this process; create that object inside the function{advice}"
        ) from None
