"""What a field of an options class declares beside its type: possible values, default by model, whether a resume may change it.

Each of them is a mark in the field's `Annotated`. Nothing heavy is imported here, so that `--help` answers at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar, get_args, get_type_hints

import tyro

from rewards.errors import UserError


@dataclass(frozen=True)
class Bound:
    """The possible values of an option: `holds` tests one, `possible` names them in an error message. None is always possible."""

    holds: Callable[[Any], object]
    possible: str


@dataclass(frozen=True)
class ByModel:
    """Default of an option that the user leaves out: for pretrained models, and for the tiny one by its built-in task."""

    tiny: Any
    pretrained: Any
    # Of the tiny model, where it differs from `tiny`. No dict: a mark must be hashable.
    by_task: tuple[tuple[str, Any], ...] = ()

    def hint(self, default: str) -> str:
        """What `--help` shows behind an option's text."""
        if default != "None":  # a recipe or a resumed run sets it
            return f"(default: {default})"
        tasks = ", ".join(f"{value} on {task}" for task, value in self.by_task)
        tasks = f" ({tasks})" if tasks else ""
        pretrained = "" if self.pretrained is None else f", {self.pretrained} for others"
        return f"(default: {self.tiny} for the tiny model{tasks}{pretrained})"


@dataclass(frozen=True)
class FixedOnResume:
    """A resumed run must have the option's old value."""


Mark = TypeVar("Mark", Bound, ByModel, FixedOnResume)
FIXED_ON_RESUME = FixedOnResume()


def by_model(tiny: Any, pretrained: Any, **by_task: Any) -> tuple[ByModel, object]:
    """The mark and tyro's own, which shows the defaults in `--help`. by_task: small_programs is the task small-programs."""
    default = ByModel(tiny, pretrained, tuple((name.replace("_", "-"), value) for name, value in by_task.items()))
    return default, tyro.conf.arg(help_behavior_hint=default.hint)


def at_least(least: int) -> Bound:
    return Bound(lambda value: value >= least, f"at least {least}")


def auto_or_at_least(least: int) -> Bound:
    return Bound(lambda value: value == "auto" or value >= least, f"at least {least}, or auto")


def one_of(names: Iterable[str]) -> Bound:
    return Bound(lambda value: value in names, "one of " + ", ".join(sorted(names)))


def any_of(*names: str) -> Bound:
    """The bound of an option with several values, each of which must be among the names."""
    return Bound(lambda values: set(values) <= set(names), "among " + ", ".join(names))


POSITIVE = Bound(lambda value: 0 < value < math.inf, "more than 0")
NOT_NEGATIVE = Bound(lambda value: 0 <= value < math.inf, "0 or more")
SHARE = Bound(lambda value: 0 <= value <= 1, "in [0, 1]")
MODERATE = Bound(lambda value: 1e-6 <= value <= 1e6, "from 1e-6 to 1e6")
POSITIVE_SHARE = Bound(lambda value: 0 < value <= 1, "more than 0 and at most 1")
INNER_SHARE = Bound(lambda value: 0 < value < 1, "more than 0 and less than 1")


@cache
def declared(options: type, kind: type[Mark]) -> dict[str, Mark]:
    """The fields of an options class that have a mark of this kind, with the mark."""
    hints = get_type_hints(options, include_extras=True)
    return {name: mark for name, hint in hints.items() for mark in get_args(hint)[1:] if isinstance(mark, kind)}


def require_possible(options: object, declared_in: type) -> None:
    """Raises UserError for a value outside of the bound that its field of the class `declared_in` declares."""
    for name in declared(declared_in, Bound):
        require_possible_value(name, getattr(options, name), declared_in)


def require_possible_value(name: str, value: object, declared_in: type) -> None:
    """Raises UserError if the value is outside of the bound that the field of the class `declared_in` declares, if it has one."""
    bound = declared(declared_in, Bound).get(name)
    if value is not None and bound is not None and not bound.holds(value):
        raise UserError(f"{name} is {value!r}: it must be {bound.possible}")
