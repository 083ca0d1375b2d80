"""Where instances of environments live: each in a thread of this process, or in a process of its own. Both answer by a deadline."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rewards.function_verifier import is_json
from rewards.functions.worker import MAX_RESULTS, MEMORY_LIMIT
from rollout.environment_instance import Instance
from rollout.own_process import OwnProcess
from rollout.own_thread import OwnThread, Raised

if TYPE_CHECKING:
    from rollout.environment import EnvironmentClass


class HostError(Exception):
    """Why an instance cannot go on, for users."""


class InThread:
    """An instance in a thread. What hangs goes on hanging there, and does not keep the run from going on or ending."""

    def __init__(self, of: EnvironmentClass, deadline: float) -> None:
        self._thread, self._deadline = OwnThread(), deadline
        self._instance = self._run("the class", lambda wait: Instance(of.make(), wait))

    def ask(self, method: str, *arguments: Any) -> Any:
        """What the method of the Instance returns. Raises HostError if it raises, or returns nothing within the deadline."""
        return self._run(_name_of(method, *arguments), lambda wait: getattr(self._instance, method)(*arguments))

    def close(self) -> None:
        self._thread.close()

    def _run(self, name: str, function: Any) -> Any:
        try:
            return self._thread.run(function, self._deadline)
        except TimeoutError:
            raise HostError(_late(name, self._deadline)) from None
        except Raised as raised:
            raise HostError(f"{name} fails: {raised}") from raised.__cause__


class InProcess:
    """An instance in a process, which is killed where it hangs or takes too much memory. It is sent the columns that JSON can hold."""

    def __init__(self, of: EnvironmentClass, deadline: float) -> None:
        self._deadline = deadline
        try:
            self._process = OwnProcess(
                "rollout.environment_instance:load",
                {"source": asdict(of.source), "folder": os.getcwd()},
                deadline=deadline,
                memory_limit=MEMORY_LIMIT,
                max_reason=MAX_RESULTS,
            )
        except (RuntimeError, TimeoutError, OSError) as error:
            raise HostError(f"its process cannot be started: {error}") from error

    def ask(self, method: str, *arguments: Any) -> Any:
        """As InThread's."""
        name = _name_of(method, *arguments)
        plain = [{k: v for k, v in a.items() if is_json(v)} if isinstance(a, dict) else a for a in arguments]
        try:
            verdict = self._process.ask([method, *plain], self._deadline)
        except TimeoutError:
            raise HostError(_late(name, self._deadline)) from None
        except RuntimeError as error:
            raise HostError(f"{name} fails: {error}") from error
        if not verdict.is_correct:
            raise HostError(f"{name} fails: {verdict.reason}")
        return json.loads(verdict.reason)

    def close(self) -> None:
        self._process.close()


def _name_of(method: str, *arguments: Any) -> str:
    """The name of the user's method that a method of Instance calls."""
    return str(arguments[0]) if method == "call" else method


def _late(name: str, deadline: float) -> str:
    return f"{name} gave no answer within {deadline:g} seconds"
