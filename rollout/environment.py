"""Environments by the contract of TRL's `environment_factory`: a class whose methods are the model's tools.

    reset(self, **row) -> str | None    begins an episode; what it returns is appended to the question
    any other public method             a tool: types, and a docstring that describes each argument
    get_reward(self) -> float           optional: the reward of the episode

Each of them may be async. Instances live in this process: one for each rollout, so that episodes share nothing.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rewards.errors import UserError
from rewards.functions.call import result_of, result_of_error
from rewards.functions.declaration import Declaration
from rewards.functions.source import Source
from rewards.score import Score
from rollout.chat_template import ToolSchema
from rollout.records import Problem
from rollout.tool_worker import answer_of, reason_of, result_of_call, schema_of
from rollout.toolbox import MAX_OUTPUT, Answer

_RESET, _GET_REWARD = "reset", "get_reward"


@dataclass(frozen=True, kw_only=True)
class EnvironmentClass:
    """The user's class, or whatever makes instances when it is called. schemas: of its tools."""

    spec: str
    make: Callable[[], Any]
    schemas: tuple[ToolSchema, ...]
    has_reward: bool

    @staticmethod
    def load(spec: str) -> EnvironmentClass:
        """The class that file.py:name or module:name names. It makes one instance to look at. Raises UserError if it is no environment."""
        source = Source.parse(spec, option="environment")
        try:
            make = source.load()
            instance = make()
        except (Exception, SystemExit) as error:
            raise UserError(f"environment is {spec!r}: no instance of it can be made: {reason_of(error)}") from error
        methods = _public_methods(instance)
        if _RESET not in methods:
            raise UserError(
                f"environment is {spec!r}: it has no method reset; give it one, reset(self, **row), which begins an episode and returns "
                "the text that is appended to the question, or None"
            )
        tools = {name: method for name, method in methods.items() if name not in (_RESET, _GET_REWARD)}
        return EnvironmentClass(
            spec=spec,
            make=make,
            schemas=tuple(_schema(spec, name, method) for name, method in tools.items()),
            has_reward=_GET_REWARD in methods,
        )

    def start(self, problem: Problem) -> tuple[Environment, str | None]:
        """A new instance for the problem's row, and what it says at the beginning. Raises UserError if it raises, or returns no text."""
        try:
            environment = Environment(self.make(), [schema["function"]["name"] for schema in self.schemas])
            observation = environment.reset(problem)
        except (Exception, SystemExit) as error:
            raise UserError(
                f"environment is {self.spec!r}: reset fails on problem {problem.id!r}: {reason_of(error)}; fix it, or drop the row"
            ) from error
        if not isinstance(observation, str | None):
            raise UserError(
                f"environment is {self.spec!r}: reset returned a {type(observation).__name__} for problem {problem.id!r}; return text "
                "that is appended to the question, or None"
            )
        return environment, observation


class Environment:
    """One instance, for one rollout. It answers the model's calls by its methods (rollout.toolbox.Tools)."""

    def __init__(self, instance: Any, tools: list[str]) -> None:
        self.instance, self._tools = instance, tools

    def reset(self, problem: Problem) -> Any:
        """Begins an episode with the columns of the problem's row, those that reset asks for."""
        row = {"prompt": list(problem.messages), **problem.metadata}
        return result_of_call(self.instance.reset, Declaration.of(self.instance.reset).chosen(row))

    def call(self, name: str, arguments: Mapping[str, Any]) -> Answer:
        if name not in self._tools:
            return Answer.error(f"there is no tool {name!r}; the tools are {', '.join(self._tools)}")
        verdict = answer_of(getattr(self.instance, name), arguments, MAX_OUTPUT)
        return Answer(verdict.reason) if verdict.is_correct else Answer.error(verdict.reason)

    def reward(self) -> Score:
        """What get_reward returns, as a reward function's result is read: NaN and exceptions are CRASHED, which has no value."""
        try:
            return result_of(result_of_call(self.instance.get_reward, {})).score()
        except (Exception, SystemExit) as error:  # noqa: BLE001  as in `call`
            return result_of_error(error).score()

    def close(self) -> None:
        """An instance in this process has nothing to end."""


def _public_methods(instance: Any) -> dict[str, Callable[..., Any]]:
    """Bound methods by name. They are listed on the class: on the instance properties would be evaluated."""
    names = [name for name, _ in inspect.getmembers(type(instance), inspect.isfunction) if not name.startswith("_")]
    return {name: getattr(instance, name) for name in names}


def _schema(spec: str, name: str, method: Callable[..., Any]) -> ToolSchema:
    try:
        return schema_of(method)
    except UserError as error:
        raise UserError(f"environment is {spec!r}: its method {name!r}: {error}; or begin its name with _") from None
