"""Reads the tool calls of a model's turn, in the format of its family."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, get_args

from transformers import PreTrainedTokenizerBase

from rewards.errors import UserError, first_line
from rollout.records import ToolFormat

_TAGGED = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)
_PYTHON_TAG = "<|python_tag|>"  # Llama may write it before a call
_SHOWN = 80  # characters of a malformed call in a message


class ToolCall(NamedTuple):
    name: str
    arguments: Mapping[str, Any]


class Malformed(NamedTuple):
    """A call that cannot be read. reason: what the model is told about it."""

    reason: str


def format_of(tokenizer: PreTrainedTokenizerBase) -> ToolFormat:
    """The format that the chat template asks for. Raises UserError if it is none of those that are read."""
    template = str(tokenizer.chat_template)
    if "<tool_call>" in template and "<function=" not in template:
        return "hermes"
    if '"parameters"' in template and "<tool_call>" not in template:
        return "llama3"
    raise UserError(
        "tool_format is None: the chat template does not show in which format the model calls tools; choose one with --tool-format, "
        f"of {', '.join(get_args(ToolFormat))}, or give another template with --chat-template"
    )


def read_calls(text: str, tool_format: ToolFormat) -> list[ToolCall | Malformed]:
    """The calls of a turn, in order; [] for a turn that makes none. What the model thinks (up to </think>) is not read.

    hermes: <tool_call>{"name": ..., "arguments": {...}}</tool_call>, any number of them in the text.
    llama3: the whole turn is {"name": ..., "parameters": {...}}, or several of them, separated by semicolons.
    """
    _, _, said = text.rpartition("</think>")
    return _READERS[tool_format](said)


def _hermes(said: str) -> list[ToolCall | Malformed]:
    return [_call(written, "arguments") for written in _TAGGED.findall(said)]


def _llama3(said: str) -> list[ToolCall | Malformed]:
    rest = said.strip().removeprefix(_PYTHON_TAG).strip()
    if not rest.startswith("{"):
        return []
    decoder, calls = json.JSONDecoder(), list[ToolCall | Malformed]()
    while rest.startswith("{"):
        try:
            _, end = decoder.raw_decode(rest)
        except (ValueError, RecursionError):
            end = len(rest)
        calls.append(_call(rest[:end], "parameters"))
        rest = rest[end:].lstrip("; \n")
    is_answer = all(isinstance(call, Malformed) for call in calls) and '"parameters"' not in said
    return [] if is_answer else calls  # an answer may be JSON too


_READERS: Mapping[ToolFormat, Callable[[str], list[ToolCall | Malformed]]] = {"hermes": _hermes, "llama3": _llama3}


def _call(written: str, arguments_key: str) -> ToolCall | Malformed:
    form = f'{{"name": ..., "{arguments_key}": {{...}}}}'
    try:
        read = json.loads(written)
    except (ValueError, RecursionError) as error:
        shown = " ".join(written.split())[:_SHOWN]
        return Malformed(f"{shown!r} is no JSON ({first_line(error)}); write {form}")
    if not isinstance(read, dict) or not isinstance(read.get("name"), str):
        return Malformed(f"a call must have a name; write {form}")
    arguments = read.get(arguments_key, {})
    if not isinstance(arguments, dict):
        return Malformed(f"the {arguments_key} of {read['name']} must be an object; write {form}")
    return ToolCall(read["name"], arguments)
