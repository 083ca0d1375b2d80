"""What a reward function declares: the arguments that it asks for, by name, and options of how it is called."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, overload

from rewards.errors import UserError

ENVIRONMENTS = (
    "environments"  # of a group: for each completion an object with the attributes of its environment, as in TRL
)
GROUP_ARGUMENTS = ("answers", "completions", ENVIRONMENTS)  # lists, of a whole group of completions of one problem
SINGLE_ARGUMENTS = ("answer", "completion")
PROMPTS = "prompts"  # of a group, as in TRL; a function that asks for it alone grades single completions
ROW_ARGUMENTS = ("prompt", "reference", "problem")
_OPTIONS = "__plumbline_reward__"
_WAITING_DEADLINE = 60.0  # seconds for one call of an async function, which waits for something else than the answer

AnyFunction = TypeVar("AnyFunction", bound=Callable[..., Any])


@overload
def reward(function: AnyFunction, /) -> AnyFunction: ...


@overload
def reward(
    *, in_process: bool = False, deadline: float | None = None, concurrency: int = 16
) -> Callable[[AnyFunction], AnyFunction]: ...


def reward(
    function: Callable[..., Any] | None = None,
    /,
    *,
    in_process: bool = False,
    deadline: float | None = None,
    concurrency: int = 16,
) -> Any:
    """Decorator with the options of a reward function; without brackets it leaves all as they are.

    in_process: call it in the trainer's process, which no deadline or memory limit protects; for functions that need an
        object of that process, such as a loaded model.
    deadline: seconds for one call. Default: --verifier-deadline; 60 for an async function.
    concurrency: calls of an async function that wait at once, over all worker processes.
    """
    if deadline is not None and not 0 < deadline < 3600:
        raise UserError(f"deadline is {deadline!r}: it must be between 0 and 3600, the seconds for one call")
    if concurrency < 1:
        raise UserError(f"concurrency is {concurrency!r}: it must be at least 1, the calls that wait at once")

    def mark(function: AnyFunction) -> AnyFunction:
        setattr(function, _OPTIONS, {"in_process": in_process, "deadline": deadline, "concurrency": concurrency})
        return function

    return mark if function is None else mark(function)


@dataclass(frozen=True, kw_only=True)
class Declaration:
    """arguments: the names of the function's parameters. required: those without a default. takes_all: it has **kwargs.

    is_async, in_process, deadline, concurrency: see `reward`. deadline: None if the function leaves it to the run.
    """

    arguments: tuple[str, ...]
    required: tuple[str, ...]
    takes_all: bool = False
    is_async: bool = False
    in_process: bool = False
    deadline: float | None = None
    concurrency: int = 16

    @property
    def takes_group(self) -> bool:
        """Whether one call grades all completions of a problem's group."""
        return any(name in GROUP_ARGUMENTS for name in self.arguments)

    @property
    def takes_lists(self) -> bool:
        """Whether it is called as TRL does: all that it is given is a list with an entry for each completion of the group."""
        return self.takes_group and "answers" not in self.arguments

    @staticmethod
    def of(function: Callable[..., Any]) -> Declaration:
        """Raises UserError for parameters that cannot be passed by name, or that ask for one and for all answers."""
        try:
            parameters = inspect.signature(function).parameters.values()
        except (ValueError, TypeError):  # some that are built in tell nothing
            raise UserError("its parameters have no names; write a function that calls it") from None
        positional = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.VAR_POSITIONAL)]
        if positional:
            raise UserError(f"its parameter {positional[0]!r} cannot be passed by name; write it without / and *")
        named = [p for p in parameters if p.kind is not p.VAR_KEYWORD]
        names = tuple(p.name for p in named)
        group = [name for name in names if name in GROUP_ARGUMENTS]
        single = [name for name in names if name in SINGLE_ARGUMENTS]
        if group and single:
            raise UserError(
                f"it asks for {single[0]!r}, of one completion, and for {group[0]!r}, of the whole group; ask for one of the two"
            )
        is_async = any(map(inspect.iscoroutinefunction, (function, getattr(function, "__call__", None))))  # noqa: B004
        options: dict[str, Any] = {"deadline": _WAITING_DEADLINE if is_async else None}
        options |= {k: v for k, v in getattr(function, _OPTIONS, {}).items() if v is not None}
        return Declaration(
            arguments=names,
            required=tuple(p.name for p in named if p.default is p.empty),
            takes_all=len(named) < len(parameters),
            is_async=is_async,
            **options,
        )

    @staticmethod
    def from_json(written: Mapping[str, Any]) -> Declaration:
        names = {"arguments": tuple(written["arguments"]), "required": tuple(written["required"])}
        return Declaration(**{**written, **names})

    def chosen(self, offered: Mapping[str, Any]) -> dict[str, Any]:
        """Those of the offered arguments that the function asks for."""
        if self.takes_all:
            return dict(offered)
        return {name: offered[name] for name in self.arguments if name in offered}

    def missing(self, offered: Mapping[str, Any]) -> list[str]:
        """The required arguments that are not offered."""
        return [name for name in self.required if name not in offered]
