"""The tools of a run: functions of the user, which answer calls of the model in killable worker processes."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict
from queue import SimpleQueue
from typing import Any, NamedTuple, Protocol

from rewards.errors import UserError
from rewards.functions.source import Source
from rewards.functions.worker import MEMORY_LIMIT
from rewards.pool import WorkerPool
from rewards.score import Outcome
from rollout.chat_template import ToolSchema, name_of
from rollout.tool_worker import MAX_OUTPUT

_DECLARE_DEADLINE = 120.0  # seconds, of which the library that makes schemas takes some to import
_MAX_VERDICT = 1 << 21  # characters of all schemas, or of an answer


class Answer(NamedTuple):
    """What the model reads. failed: it is an error."""

    text: str
    failed: bool = False

    @staticmethod
    def error(reason: str) -> Answer:
        return Answer(f"Error: {reason}", failed=True)


class Tools(Protocol):
    """The tools of one rollout."""

    def call(self, name: str, arguments: Mapping[str, Any]) -> Answer:
        """The tool's answer, or the error of the call. It raises nothing that the tool raises."""
        ...

    def close(self) -> None:
        """Ends what the rollout has of its own. Safe to call twice."""


class ToolSource(Protocol):
    """Tools of a run, which each rollout gets anew. schemas: as the model is shown them."""

    @property
    def schemas(self) -> Sequence[ToolSchema]: ...

    def begin(self) -> Tools:
        """The tools of one rollout, which share no state with those of another."""
        ...

    def close(self) -> None:
        """Ends all worker processes. Safe to call twice."""


class JoinedTools:
    """The tools of one rollout, from several sources, by name. They are ended by who began them."""

    def __init__(self, of: Sequence[tuple[Sequence[ToolSchema], Tools]]) -> None:
        self._by_name = {name_of(schema): tools for schemas, tools in of for schema in schemas}

    def call(self, name: str, arguments: Mapping[str, Any]) -> Answer:
        if name not in self._by_name:
            return Answer.error(f"there is no tool {name!r}; the tools are {', '.join(self._by_name)}")
        return self._by_name[name].call(name, arguments)


class Toolbox:
    """Typed functions with docstrings, named file.py:function or module:function; a ToolSource.

    Calls share no state: each is run by any of the workers. Several threads may call at the same time, num_workers of which are
    served at once.

    deadline: seconds for one call. max_output: characters of one answer.
    Raises UserError for a function that cannot be loaded, has no schema, or has the name of another one.
    """

    def __init__(
        self, specs: Sequence[str], *, num_workers: int = 2, deadline: float = 5.0, max_output: int = MAX_OUTPUT
    ) -> None:
        self._deadline = deadline
        sources = [asdict(Source.parse(spec, option="tools")) for spec in specs]
        arguments = {"sources": sources, "folder": os.getcwd(), "max_output": max_output}
        self._free: SimpleQueue[WorkerPool] = SimpleQueue()
        with closing(_pool(arguments, _DECLARE_DEADLINE)) as pool:
            self.schemas = _declared(pool)
        with ExitStack() as on_error:
            pools = [on_error.enter_context(closing(_pool(arguments, deadline))) for _ in range(num_workers)]
            self._close = on_error.pop_all().close
        for pool in pools:
            self._free.put(pool)
        self._names = [name_of(schema) for schema in self.schemas]

    def begin(self) -> Tools:
        return _Shared(self)

    def call(self, name: str, arguments: Mapping[str, Any]) -> Answer:
        pool = self._free.get()
        try:
            (verdict,) = pool.run([("call", self._names.index(name), arguments)])
        finally:
            self._free.put(pool)
        if verdict.is_correct:
            return Answer(verdict.reason)
        if verdict.outcome is Outcome.TIMEOUT:
            return Answer.error(f"{name} gave no answer within {self._deadline:g} seconds")
        return Answer.error(verdict.reason if verdict.outcome is Outcome.WRONG else f"{name} failed: {verdict.reason}")

    def close(self) -> None:
        """Ends the workers. Safe to call twice."""
        self._close()


class _Shared:
    """What a rollout has of a toolbox: its calls, and nothing of its own."""

    def __init__(self, toolbox: Toolbox) -> None:
        self.call = toolbox.call

    def close(self) -> None:
        pass


def _pool(arguments: dict[str, Any], deadline: float) -> WorkerPool:
    return WorkerPool(
        "rollout.tool_worker:load",
        arguments,
        num_workers=1,
        deadline=deadline,
        memory_limit=MEMORY_LIMIT,
        max_reason=_MAX_VERDICT,
    )


def _declared(pool: WorkerPool) -> list[ToolSchema]:
    (verdict,) = pool.run([("declare",)])
    if not verdict.is_correct:
        raise UserError(verdict.reason)
    schemas: list[ToolSchema] = json.loads(verdict.reason)
    require_one_of_each_name(schemas)
    return schemas


def require_one_of_each_name(schemas: Sequence[ToolSchema]) -> None:
    """Raises UserError if two tools have one name, by which the model calls them."""
    names = [name_of(schema) for schema in schemas]
    twice = [name for i, name in enumerate(names) if name in names[:i]]
    if twice:
        raise UserError(f"tools has two that are called {twice[0]!r}: the model calls them by name; rename one")
