"""Names of reward functions that a program has in memory, as `--reward` would name them."""

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


def reference_to(function: Any, taken: Collection[str] = ()) -> str:
    """The text by which `--reward` names the function: module:name, or __main__:name for one that is kept by value.

    A function of an importable module is named by it. Every other callable is pickled by value; one that runs in this
    process is kept as it is. taken: references that others have. Raises UserError for what cannot be called or pickled.
    """
    name = _name_of(function)
    if not callable(function):
        raise UserError(f"reward is {function!r}: it must be a function, or a name as for --reward, or several of them")
    try:
        declaration = Declaration.of(function)
    except UserError as error:
        raise UserError(f"reward is the function {name!r}: {error}") from None
    module, qualified = getattr(function, "__module__", None) or NOTEBOOK, getattr(function, "__qualname__", "")
    found: Any = sys.modules.get(module)
    for part in qualified.split("."):
        found = getattr(found, part, None)
    is_importable = module != NOTEBOOK and found is function and importlib.util.find_spec(module) is not None
    if is_importable and not declaration.in_process:
        return f"{module}:{qualified}"
    possible = (f"{NOTEBOOK}:{name}{n}" for n in ("", *(f"_{n}" for n in range(2, len(taken) + 3))))
    reference = next(one for one in possible if one not in taken)
    KEPT[reference.rpartition(":")[2]] = function if declaration.in_process else _pickled(function, name)
    return reference


def _name_of(function: Any) -> str:
    """A name for what the user calls it: of a partial its function's, of an object its class's."""
    while isinstance(function, partial):
        function = function.func
    return getattr(function, "__name__", type(function).__name__).replace("<lambda>", "reward")


def _pickled(function: Callable[..., Any], name: str) -> str:
    try:
        return base64.b64encode(cloudpickle.dumps(function)).decode()
    except (TypeError, ValueError, AttributeError, RecursionError, PicklingError) as error:
        raise UserError(
            f"reward is the function {name!r}, which cannot be pickled for the worker processes ({error}): it uses an object "
            "of this process; create that object inside the function, or mark the function with @plumbline.reward(in_process=True)"
        ) from None
