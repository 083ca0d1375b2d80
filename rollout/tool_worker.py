"""Tools in a worker process of `rewards.pool`: functions of the user, which are run with what the model writes.

An item is ("declare",), or ("call", index, arguments) with the index of the tool. The verdict is CORRECT, with the schemas as JSON or
the tool's answer in place of a reason; WRONG, with the last line of the exception; or CRASHED, with why a tool cannot be loaded.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rewards.errors import UserError, first_line
from rewards.functions.call import Tail, last_line
from rewards.functions.worker import end_fork_of, imported
from rewards.verdict import Verdict, crashed, right, wrong

_MAX_ERROR = 300  # characters of an exception
Tool = Callable[..., Any]


def load(sources: Sequence[Mapping[str, Any]], folder: str, max_output: int) -> Callable[..., Verdict]:
    """Imports the tools in the trainer's working folder. A worker calls this once; a failed import is the answer to "declare"."""
    process = os.getpid()
    tools: list[Tool] = []
    for source in sources:
        try:
            tools.append(imported(source, folder))
        except BaseException as error:  # noqa: BLE001  the user's file may raise anything
            reason = f"tools has {source['module']}:{source['name']}: it cannot be loaded: {reason_of(error)}"
            return lambda *item: crashed(reason)

    def answer(what: str, index: int = 0, arguments: Mapping[str, Any] | None = None) -> Verdict:
        if what == "declare":
            return _declared(sources, tools)
        printed = Tail()
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            verdict = answer_of(tools[index], arguments or {}, max_output)
        end_fork_of(process)
        return verdict

    return answer


def answer_of(tool: Tool, arguments: Mapping[str, Any], max_output: int) -> Verdict:
    """Calls a tool: the text of what it returns, at most max_output characters of it, or the exception that it raises."""
    try:
        text = _text(result_of_call(tool, arguments))
    except (Exception, SystemExit) as error:  # noqa: BLE001  whatever the user's tool raises is an answer
        return wrong(reason_of(error))
    left = len(text) - max_output
    return right(text if left <= 0 else f"{text[:max_output]}\n({left} more characters are left out)")


def reason_of(error: BaseException) -> str:
    """The message of a user's mistake, or the last line of another exception's traceback."""
    return str(error) if isinstance(error, UserError) else last_line(error)[:_MAX_ERROR]


def result_of_call(function: Tool, arguments: Mapping[str, Any]) -> Any:
    """What the function returns, also where it is async."""
    returned = function(**arguments)
    return asyncio.run(_awaited(returned)) if inspect.isawaitable(returned) else returned


async def _awaited(returned: Any) -> Any:
    return await returned


def _text(returned: Any) -> str:
    if isinstance(returned, bytes | bytearray | memoryview):
        raise TypeError(f"the tool returned {type(returned).__name__}, not text")
    return str(returned).encode(errors="replace").decode()  # half of a surrogate pair cannot be tokenized


def _declared(sources: Sequence[Mapping[str, Any]], tools: Sequence[Tool]) -> Verdict:
    schemas = []
    for source, tool in zip(sources, tools, strict=True):
        try:
            schemas.append(schema_of(tool))
        except UserError as error:
            return crashed(f"tools has {source['module']}:{source['name']}: {error}")
    return right(json.dumps(schemas))


def schema_of(tool: Tool) -> dict[str, Any]:
    """The tool's JSON schema, by its types and its docstring. Raises UserError if these do not give one."""
    from transformers.utils.chat_template_utils import (  # only declaring needs it, and it takes a second
        DocstringParsingException,
        TypeHintParsingException,
        get_json_schema,
    )

    try:
        return get_json_schema(tool)
    except (DocstringParsingException, TypeHintParsingException, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{first_line(error)}; a tool is a function with types, and a docstring that describes it and, under Args:, each argument"
        ) from None
