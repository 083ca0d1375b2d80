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
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Literal, get_args, get_origin, get_type_hints

from rewards.errors import UserError, first_line
from rewards.functions.call import Tail, last_line
from rewards.functions.worker import end_fork_of, imported
from rewards.verdict import Verdict, crashed, right, wrong

MAX_OUTPUT = 2000  # characters of one answer
_MAX_ERROR = 300  # characters of an exception
_JSON_TYPES = (str, int, float, bool, type(None), list, tuple, dict, Any)
Wait = Callable[[Coroutine[Any, Any, Any]], Any]  # returns what a coroutine returns
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


def answer_of(tool: Tool, arguments: Mapping[str, Any], max_output: int, wait: Wait = asyncio.run) -> Verdict:
    """Calls a tool: the text of what it returns, at most max_output characters of it, or the exception that it raises.

    It is called in no main thread but a worker's, which Ctrl-C does not reach: a KeyboardInterrupt is the tool's own.
    """
    try:
        text = _text(result_of_call(tool, arguments, wait))
    except BaseException as error:  # noqa: BLE001  whatever the user's tool raises is an answer
        return wrong(reason_of(error))
    left = len(text) - max_output
    return right(text if left <= 0 else f"{text[:max_output]}\n({left} more characters are left out)")


def reason_of(error: BaseException) -> str:
    """The message of a user's mistake, or the last line of another exception's traceback."""
    return str(error) if isinstance(error, UserError) else last_line(error)[:_MAX_ERROR]


def result_of_call(function: Tool, arguments: Mapping[str, Any], wait: Wait = asyncio.run) -> Any:
    """What the function returns, also where it is async."""
    returned = function(**arguments)
    return wait(_awaited(returned)) if inspect.isawaitable(returned) else returned


async def _awaited(returned: Any) -> Any:
    return await returned


def _text(returned: Any) -> str:
    if isinstance(returned, bytes | bytearray | memoryview):
        raise TypeError(f"the tool returned {type(returned).__name__}, not text")
    return encodable(str(returned))


def encodable(text: str) -> str:
    """The text with ? in place of each half of a surrogate pair, which no tokenizer encodes."""
    return str.encode(text, errors="replace").decode()


def _declared(sources: Sequence[Mapping[str, Any]], tools: Sequence[Tool]) -> Verdict:
    schemas = []
    for source, tool in zip(sources, tools, strict=True):
        try:
            schemas.append(schema_of(tool))
        except UserError as error:
            return crashed(f"tools has {source['module']}:{source['name']}: {error}")
    return right(json.dumps(schemas))


def schema_of(tool: Tool) -> dict[str, Any]:
    """The tool's JSON schema, by its types and its docstring. Raises UserError if these do not give one that the model can call it by."""
    from transformers.utils.chat_template_utils import (  # only declaring needs it, and it takes a second
        DocstringParsingException,
        TypeHintParsingException,
        get_json_schema,
    )

    _require_function(tool)
    try:
        _require_named_arguments(tool)
        return get_json_schema(tool)
    except UserError:
        raise
    except (DocstringParsingException, TypeHintParsingException, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{first_line(error)}; a tool is a function with types, and a docstring that describes it and, under Args:, each argument"
        ) from None


def _require_function(tool: Tool) -> None:
    if not inspect.isroutine(tool):
        what = "a class" if inspect.isclass(tool) else f"an object of the class {type(tool).__name__}"
        raise UserError(f"it is {what}, not a function; name a function, or a method of an object")
    if inspect.isgeneratorfunction(tool) or inspect.isasyncgenfunction(tool):
        raise UserError(
            "it is a generator, of which the model would read nothing that it yields; return the whole text"
        )


def _require_named_arguments(tool: Tool) -> None:
    """Raises UserError for arguments that a call cannot give by name, or as JSON."""
    for name, parameter in inspect.signature(tool).parameters.items():
        if name in ("self", "cls") and parameter.annotation is parameter.empty:
            raise UserError(
                f"its argument {name!r} is an object that no call has; name the method of an object, or a function"
            )
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise UserError(f"its argument {name!r} has no name in a call; write it without / and *")
    try:
        types = get_type_hints(tool)
    except (NameError, AttributeError, TypeError, SyntaxError) as error:
        raise UserError(
            f"its types {getattr(tool, '__annotations__', {})} cannot be read: {first_line(error)}; import them where the file is run, "
            "not under TYPE_CHECKING alone"
        ) from None
    for name, of in types.items():
        if name != "return" and not _is_json_type(of):
            raise UserError(
                f"its argument {name!r} has the type {inspect.formatannotation(of)}, but the model writes JSON and reads no fields of it; "
                "use str, int, float, bool, Literal, list, dict or a union of these, and make the object in the tool"
            )


def _is_json_type(of: Any) -> bool:
    """Whether values of JSON are of this type. A class that is none of theirs would be shown to the model as an object without fields."""
    origin = get_origin(of)
    if origin is None:
        return any(of is one for one in _JSON_TYPES)
    return origin is Literal or all(one is ... or _is_json_type(one) for one in get_args(of))
