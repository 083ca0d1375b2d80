"""Calls are read in the family's own format; what cannot be read is answered, never raised."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards.errors import UserError
from rollout.records import ToolFormat
from rollout.tool_calls import Malformed, ToolCall, format_of, read_calls
from tests.rollout.test_tool_turns import TEMPLATES
from tests.rollout.tool_templates import HERMES, LLAMA3, NO_TOOLS, tool_tokenizer

ADD = ToolCall("add", {"a": 1, "b": [2]})


@pytest.mark.parametrize(
    ("tool_format", "text", "calls"),
    [
        ("hermes", 'So:\n<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": [2]}}\n</tool_call>', [ADD]),
        (
            "hermes",
            '<tool_call>{"name": "add", "arguments": {"a": 1, "b": [2]}}',
            [ADD],
        ),  # ended by the end of the turn
        (
            "hermes",
            '<tool_call>{"name": "now"}</tool_call> and <tool_call>{"name": "now"}</tool_call>',
            [("now", {})] * 2,
        ),
        ("hermes", '<think><tool_call>{"name": "now"}</tool_call>?</think>\n4', []),
        ("hermes", '{"name": "add", "parameters": {}}', []),
        ("llama3", '{"name": "add", "parameters": {"a": 1, "b": [2]}}', [ADD]),
        (
            "llama3",
            ' <|python_tag|>{"name": "now", "parameters": {}}; {"name": "now", "parameters": {}}\n',
            [("now", {})] * 2,
        ),
        ("llama3", '{"x": 4}', []),
        ("llama3", "The set {1, 2}", []),
        ("llama3", "{1, 2}", []),
    ],
)
def test_calls_are_read(tool_format: ToolFormat, text: str, calls: list[ToolCall]) -> None:
    assert read_calls(text, tool_format) == calls


@pytest.mark.parametrize(
    ("tool_format", "text", "reason"),
    [
        (
            "hermes",
            "<tool_call>add(1, 2)</tool_call>",
            r"'add\(1, 2\)' is no JSON .* write {\"name\": \.\.\., \"arguments\"",
        ),
        ("hermes", "<tool_call></tool_call>", "is no JSON"),
        ("hermes", "<tool_call>[1]</tool_call>", "must have a name"),
        ("hermes", '<tool_call>{"name": 3}</tool_call>', "must have a name"),
        ("hermes", '<tool_call>{"name": "add", "arguments": [1, 2]}</tool_call>', "arguments of add must be an object"),
        ("hermes", "<tool_call>" + "[" * 100_000, "is no JSON"),
        ("hermes", '<tool_call>{"name": "add", "arguments": {"a": ' + "9" * 5000 + "}}", "is no JSON"),
        ("llama3", '{"name": "add", "parameters": {"a": 1}', "is no JSON"),
        ("llama3", '{"parameters": {"a": 1}}', "must have a name"),
    ],
)
def test_a_malformed_call_says_what_is_wrong_with_it(tool_format: ToolFormat, text: str, reason: str) -> None:
    (call,) = read_calls(text, tool_format)
    assert isinstance(call, Malformed)
    with pytest.raises(ValueError, match=reason):
        raise ValueError(call.reason)


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(["hermes", "llama3"]),
    st.lists(
        st.sampled_from(
            [
                "<tool_call>",
                "</tool_call>",
                "{",
                "}",
                '"name": ',
                '"parameters": ',
                '"a"',
                ";",
                ",",
                "[",
                "</think>",
                "9",
                "\\",
            ]
        ),
        max_size=12,
    ),
)
def test_no_text_raises(tool_format: ToolFormat, pieces: list[str]) -> None:
    for call in read_calls("".join(pieces), tool_format):
        assert isinstance(call, ToolCall | Malformed)


@given(
    st.dictionaries(
        st.text(), st.none() | st.booleans() | st.text() | st.floats(allow_nan=False) | st.lists(st.integers())
    )
)
def test_whatever_arguments_are_written_are_read(arguments: dict[str, object]) -> None:
    for key, before, behind in (("arguments", "<tool_call>", "</tool_call>"), ("parameters", "", "")):
        written = json.dumps({"name": "f", key: arguments}).replace("<", "\\u003c")
        tool_format = "hermes" if before else "llama3"
        assert read_calls(f"{before}{written}{behind}", tool_format) == [("f", arguments)]


@pytest.mark.parametrize(("name", "found"), [("qwen2_5", "hermes"), ("qwen3", "hermes"), ("llama3_1", "llama3")])
def test_the_format_is_the_one_that_the_template_asks_for(name: str, found: str) -> None:
    assert format_of(tool_tokenizer((TEMPLATES / f"{name}.jinja").read_text())) == found
    assert [format_of(tool_tokenizer(t)) for t in (HERMES, LLAMA3)] == ["hermes", "llama3"]


@pytest.mark.parametrize("template", [NO_TOOLS, (TEMPLATES / "qwen3_5_think.jinja").read_text()])
def test_a_template_with_another_format_is_refused(template: str) -> None:
    with pytest.raises(UserError, match=r"tool_format is None: .* choose one with --tool-format, of hermes, llama3"):
        format_of(tool_tokenizer(template))
