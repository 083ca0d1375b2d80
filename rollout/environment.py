"""Environments by the contract of TRL's `environment_factory`: a class whose methods are the model's tools.

    reset(self, **row) -> str | None    begins an episode; what it returns is appended to the question
    any other public method             a tool: types, and a docstring that describes each argument
    get_reward(self) -> float           optional: the reward of the episode

Each of them may be async. An instance plays one episode at a time, and is reset for the next. It lives in this process, in a thread of
its own, or in a process of its own if the class has the attribute own_process = True (rollout/environment_host.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from inspect import getmembers, isfunction
from queue import Empty, SimpleQueue
from typing import Any

from rewards.errors import UserError
from rewards.functions.call import Result
from rewards.functions.source import Source
from rewards.score import FinalState
from rollout.chat_template import ToolSchema
from rollout.environment_host import HostError, InProcess, InThread
from rollout.environment_instance import GET_REWARD, RESET
from rollout.environment_names import read_name
from rollout.own_thread import OwnThread, Raised
from rollout.records import Problem
from rollout.tool_worker import encodable, reason_of, schema_of
from rollout.toolbox import Answer

COLUMN = "environment"  # of a row: the name of its environment, where a run has several
_START_DEADLINE = 120.0  # seconds for the import of a file and the making of an instance


@dataclass(frozen=True, kw_only=True)
class EnvironmentClass:
    """The user's class, or whatever makes instances when it is called.

    schemas: of its tools. own_process: whether each instance has a process of its own, as a class asks by this attribute.
    """

    spec: str
    source: Source
    make: Callable[[], Any]
    schemas: tuple[ToolSchema, ...]
    has_reward: bool
    own_process: bool

    @staticmethod
    def load(spec: str) -> EnvironmentClass:
        """The class that file.py:name or module:name names. It makes one instance to look at. Raises UserError if it is no environment."""
        source = Source.parse(spec, option="environment")
        with closing(OwnThread()) as thread:
            try:
                return thread.run(lambda _: _looked_at(spec, source), _START_DEADLINE)
            except TimeoutError:
                raise UserError(
                    f"environment is {spec!r}: no instance of it was made within {_START_DEADLINE:g} seconds; mend what its file or its "
                    "__init__ waits for"
                ) from None
            except Raised as raised:
                raise UserError(f"environment is {spec!r}: {raised}") from raised.__cause__


class Environment:
    """An instance and the episode that it plays: a rollout's own tools (rollout.toolbox.Tools).

    deadline: seconds for each call of a method. free: where it waits for its next episode.
    failure: why the episode cannot go on; "" while it can. After a failure the instance is not used again.
    """

    def __init__(self, of: EnvironmentClass, deadline: float, free: SimpleQueue[Environment]) -> None:
        self.of, self.failure = of, ""
        self._free, self._is_playing = free, True
        self._host: InThread | InProcess | None = None
        try:
            self._host = (InProcess if of.own_process else InThread)(of, deadline)
        except HostError as error:
            self.failure = str(error)

    @property
    def schemas(self) -> tuple[ToolSchema, ...]:
        return self.of.schemas

    def reset(self, problem: Problem) -> str | None:
        """Begins an episode with the columns of the problem's row. -> what the environment says; None after a failure."""
        self._is_playing = True
        observation = self._ask(RESET, {"prompt": list(problem.messages), **problem.metadata})
        if isinstance(observation, str):
            return encodable(observation)
        if observation is None:
            return None
        self.failure = f"reset returned a {type(observation).__name__}, not text or None"
        return None

    def call(self, name: str, arguments: Mapping[str, Any]) -> Answer:
        answered = self._ask("call", name, arguments)
        if answered is None:
            return Answer.error(self.failure)
        is_right, text = answered
        return Answer(text) if is_right else Answer.error(text)

    def end(self) -> FinalState:
        """How the episode stands. NaN and exceptions of get_reward are CRASHED, which has no value."""
        state = self._ask("state")
        result = self._ask(GET_REWARD) if self.of.has_reward else None
        if self.failure:
            return FinalState(failure=f"environment {self.of.spec}: {self.failure}")
        return FinalState(None if result is None else Result(*result).score(), state or {})

    def close(self) -> None:
        """Ends the episode; the instance waits for the next one. Safe to call twice."""
        if self._is_playing:
            self._is_playing = False
            if self.failure:
                self.end_host()
            else:
                self._free.put(self)

    def end_host(self) -> None:
        """Ends its process, or its thread when the method that runs has returned."""
        if self._host is not None:
            self._host.close()

    def _ask(self, method: str, *arguments: Any) -> Any:
        """What a method of the Instance returns; None, and a failure, if it raises or returns nothing within the deadline."""
        if self._host is None or self.failure:
            return None
        try:
            return self._host.ask(method, *arguments)
        except HostError as error:
            self.failure = str(error)
            return None


class Environments:
    """The environments of a run. Each row names its own in the column `environment`; a single one without a name is that of every row.

    specs: file.py:Class or module:Class, or NAME=file.py:Class; of several a class without a name is called as the class.
    deadline: seconds for each call of a method.
    Raises UserError for what is no environment.
    """

    def __init__(self, specs: Sequence[str], *, deadline: float) -> None:
        named = [read_name(spec) for spec in specs]
        self._is_for_all = len(named) == 1 and named[0][0] is None
        names = [name or spec.rpartition(":")[2] for name, spec in named]
        if twice := [name for i, name in enumerate(names) if name in names[:i]]:
            raise UserError(
                f"environment has two that are called {twice[0]!r}; name one of them, as NAME=file.py:Class"
            )
        self._classes = {name: EnvironmentClass.load(spec) for name, (_, spec) in zip(names, named, strict=True)}
        self._deadline = deadline
        self._free = {name: SimpleQueue[Environment]() for name in names}

    @property
    def classes(self) -> list[EnvironmentClass]:
        return list(self._classes.values())

    @property
    def have_reward(self) -> bool:
        """Whether one of them has a get_reward."""
        return any(of.has_reward for of in self.classes)

    def schemas_of(self, problem: Problem) -> tuple[ToolSchema, ...]:
        """Of the tools of the problem's environment. Raises UserError if its row names none of the run's."""
        return self._classes[self._name_of(problem)].schemas

    def begin(self, problem: Problem) -> tuple[Environment, Problem]:
        """An episode for the problem's row, and the problem with what the environment says at its beginning. A reset that fails is the
        failure of the episode."""
        name = self._name_of(problem)
        try:
            environment = self._free[name].get_nowait()
        except Empty:
            environment = Environment(self._classes[name], self._deadline, self._free[name])
        observation = environment.reset(problem if self._is_for_all else _without_name(problem))
        return environment, problem if observation is None else _with_observation(problem, observation)

    def begun(self, problem: Problem) -> Problem:
        """The problem with what the environment says at the beginning of an episode that is not played. Raises UserError if its reset
        fails."""
        environment, begun = self.begin(problem)
        environment.close()
        if environment.failure:
            raise UserError(
                f"environment is {environment.of.spec!r}: on problem {problem.id!r} {environment.failure}; mend it, or leave out the row"
            )
        return begun

    def close(self) -> None:
        """Ends the instances that play no episode. Safe to call twice."""
        for free in self._free.values():
            while not free.empty():
                free.get().end_host()

    def _name_of(self, problem: Problem) -> str:
        if self._is_for_all:
            (name,) = self._classes
            return name
        name = problem.metadata.get(COLUMN)
        if not isinstance(name, str) or name not in self._classes:
            raise UserError(
                f"problem {problem.id!r} has the {COLUMN} {name!r}: it must be one of {', '.join(self._classes)}, as the option "
                "environment names them; change that column of its row, or name another environment"
            )
        return name


def _without_name(problem: Problem) -> Problem:
    return replace(problem, metadata={name: value for name, value in problem.metadata.items() if name != COLUMN})


def _with_observation(problem: Problem, observation: str) -> Problem:
    *before, last = problem.messages
    return replace(problem, prompt=(*before, {**last, "content": last["content"] + observation}))


def _looked_at(spec: str, source: Source) -> EnvironmentClass:
    """The class of the source, by one instance that it makes. Raises UserError if it is no environment."""
    try:
        make = source.load()
        instance = make()
    except BaseException as error:
        raise UserError(f"no instance of it can be made: {reason_of(error)}") from error
    methods = _public_methods(instance)
    if RESET not in methods:
        raise UserError(
            "it has no method reset; give it one, reset(self, **row), which begins an episode and returns the text that is appended to "
            "the question, or None"
        )
    tools = {name: method for name, method in methods.items() if name not in (RESET, GET_REWARD)}
    return EnvironmentClass(
        spec=spec,
        source=source,
        make=make,
        schemas=tuple(_schema(name, method) for name, method in tools.items()),
        has_reward=GET_REWARD in methods,
        own_process=getattr(instance, "own_process", False) is True,
    )


def _public_methods(instance: Any) -> dict[str, Callable[..., Any]]:
    """Bound methods by name. They are listed on the class: on the instance properties would be evaluated."""
    names = [name for name, _ in getmembers(type(instance), isfunction) if not name.startswith("_")]
    return {name: getattr(instance, name) for name in names}


def _schema(name: str, method: Callable[..., Any]) -> ToolSchema:
    """By the name of the attribute: that of the function is another one behind a decorator without functools.wraps."""
    try:
        schema = schema_of(method)
    except UserError as error:
        raise UserError(f"its method {name!r}: {error}; or begin its name with _") from None
    return {**schema, "function": {**schema["function"], "name": name}}
