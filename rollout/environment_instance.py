"""An instance of an environment where it lives: in a thread of its own, or in a worker process of `rewards.worker`."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from rewards.function_verifier import is_json
from rewards.functions.call import Result, Tail, result_of, result_of_error
from rewards.functions.worker import MAX_RESULTS, imported
from rewards.verdict import Verdict, crashed, right
from rollout.tool_worker import MAX_OUTPUT, Wait, answer_of, reason_of, result_of_call

RESET, GET_REWARD = "reset", "get_reward"


@dataclass
class Instance:
    """The user's object. wait: returns what a coroutine returns."""

    made: Any
    wait: Wait

    def reset(self, row: Mapping[str, Any]) -> Any:
        """What the object's reset returns for those columns of the row that it has a parameter for. Raises what it raises."""
        parameters = inspect.signature(self.made.reset).parameters
        takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        named = [name for name, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        arguments = row if takes_all else {name: row[name] for name in named if name in row}
        return result_of_call(self.made.reset, arguments, self.wait)

    def call(self, name: str, arguments: Mapping[str, Any]) -> tuple[bool, str]:
        """(True, the answer) or (False, the error): see rollout.tool_worker.answer_of."""
        verdict = answer_of(getattr(self.made, name), arguments, MAX_OUTPUT, self.wait)
        return verdict.is_correct, verdict.reason

    def get_reward(self) -> Result:
        """What get_reward returns, as a reward function's result is read: NaN and exceptions are CRASHED."""
        try:
            return result_of(result_of_call(self.made.get_reward, {}, self.wait))
        except BaseException as error:  # noqa: BLE001  whatever the user's class raises
            return result_of_error(error)

    def state(self) -> dict[str, Any]:
        """Its public attributes that are plain data; numbers of numpy and torch as numbers."""
        attributes = {name: value for name, value in getattr(self.made, "__dict__", {}).items() if name[0] != "_"}
        plain = {name: _number(value) for name, value in attributes.items()}
        return {name: value for name, value in plain.items() if is_json(value)}


def _number(value: Any) -> Any:
    return value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value


def load(source: Mapping[str, Any], folder: str) -> Callable[..., Verdict]:
    """Makes an instance in the trainer's working folder. A worker calls this once.

    An item is a method of Instance with its arguments. The verdict has what it returns, as JSON; CRASHED is what it raises.
    """
    runner = asyncio.Runner()
    with _quiet():
        instance = Instance(imported(source, folder)(), runner.run)

    def answer(method: str, *arguments: Any) -> Verdict:
        try:
            with _quiet():
                returned = getattr(instance, method)(*arguments)
        except BaseException as error:  # noqa: BLE001  whatever the user's class raises
            return crashed(reason_of(error))
        if not is_json(returned):
            return crashed(f"it returned a {type(returned).__name__}")
        written = json.dumps(returned)
        return right(written) if len(written) <= MAX_RESULTS else crashed(f"it returned {len(written)} characters")

    return answer


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with contextlib.redirect_stdout(Tail()), contextlib.redirect_stderr(Tail()):
        yield
