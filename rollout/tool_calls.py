"""Reads the tool calls of a model's turn, in the format of its family."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, get_args

from transformers import PreTrainedTokenizerBase

from rewards.errors import UserError, first_line
from rollout.chat_template import ToolSchema, name_of
from rollout.code_fences import OUTPUT, PYTHON, code_before_output
from rollout.records import ToolFormat
from rollout.xml_values import Unread, read_value

_TAGGED = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)
_FUNCTION = re.compile(r"<function=([^>\s]+)>(.*?)(?:</function>|\Z)", re.DOTALL)
_PARAMETER = re.compile(r"<parameter=([^>\s]+)>(.*?)(?:</parameter>|(?=<parameter=)|\Z)", re.DOTALL)
_XML_FORM = "<function=NAME><parameter=KEY>VALUE</parameter></function>"
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
    if "<tool_call>" in template and "<arg_key>" not in template:
        return "qwen3-coder" if "<function=" in template else "hermes"
    if '"parameters"' in template and "<tool_call>" not in template:
        return "llama3"
    raise UserError(
        "tool_format is None: the chat template does not show in which format the model calls tools; choose one with --tool-format, "
        f"of {', '.join(get_args(ToolFormat))}, or give another template with --chat-template"
    )


def read_calls(text: str, tool_format: ToolFormat, tools: Sequence[ToolSchema] = ()) -> list[ToolCall | Malformed]:
    """The calls of a turn, in order; [] for a turn that makes none. What the model thinks (up to </think>) is not read, but in code fences.

    hermes: <tool_call>{"name": ..., "arguments": {...}}</tool_call>, any number of them in the text.
    llama3: the whole turn is {"name": ..., "parameters": {...}}, or several of them, separated by semicolons.
    qwen3-coder: <tool_call><function=NAME><parameter=KEY>VALUE</parameter></function></tool_call>, any number of them. Values are text;
        the schemas of the tools say what type each has.
    code-fences: the turn ends with ```output, behind a block ```python, which is the code of the tool python.
    """
    if tool_format == "code-fences":
        return _code_fences(text)
    _, _, said = text.rpartition("</think>")
    if tool_format == "qwen3-coder":
        return [_xml_call(written, tools) for written in _TAGGED.findall(said)]
    return _hermes(said) if tool_format == "hermes" else _llama3(said)


def _code_fences(text: str) -> list[ToolCall | Malformed]:
    code = code_before_output(text)
    if code is None:
        return []
    return [
        ToolCall(PYTHON, {"code": code}) if code.strip() else Malformed(f"write a block ```{PYTHON} before {OUTPUT}")
    ]


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


def _xml_call(written: str, tools: Sequence[ToolSchema]) -> ToolCall | Malformed:
    found = _FUNCTION.search(written)
    if found is None:
        return Malformed(f"{_shown(written)} is no call; write {_XML_FORM}")
    name, body = found.groups()
    schemas = [tool["function"].get("parameters", {}).get("properties", {}) for tool in tools if name_of(tool) == name]
    types = schemas[0] if schemas else {}
    arguments = dict[str, Any]()
    for key, value in _PARAMETER.findall(body):
        if key in arguments:
            return Malformed(f"{name} has the parameter {key} twice; write {_XML_FORM}")
        try:
            arguments[key] = read_value(value.removeprefix("\n").removesuffix("\n"), types.get(key, {}))
        except Unread as error:
            return Malformed(f"the parameter {key} of {name} is {_shown(value)}: {error}")
    return ToolCall(name, arguments)


def _shown(written: str) -> str:
    return repr(" ".join(written.split())[:_SHOWN])


def _call(written: str, arguments_key: str) -> ToolCall | Malformed:
    form = f'{{"name": ..., "{arguments_key}": {{...}}}}'
    try:
        read = json.loads(written)
    except (ValueError, RecursionError) as error:
        return Malformed(f"{_shown(written)} is no JSON ({first_line(error)}); write {form}")
    if not isinstance(read, dict) or not isinstance(read.get("name"), str):
        return Malformed(f"a call must have a name; write {form}")
    arguments = read.get(arguments_key, {})
    if not isinstance(arguments, dict):
        return Malformed(f"the {arguments_key} of {read['name']} must be an object; write {form}")
    return ToolCall(read["name"], arguments)
