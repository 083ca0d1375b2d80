"""Calls are read in the family's own format; what cannot be read is answered, never raised."""

from __future__ import annotations

import json
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards.errors import UserError
from rollout.chat_template import ToolSchema
from rollout.records import ToolFormat
from rollout.tool_calls import Malformed, ToolCall, format_of, read_calls
from rollout.xml_values import Unread, read_value
from tests.rollout.test_tool_turns import TEMPLATES
from tests.rollout.tool_templates import HERMES, LLAMA3, NO_TOOLS, tool_tokenizer

ADD = ToolCall("add", {"a": 1, "b": [2]})
XML = "<tool_call>\n<function=add>\n<parameter=a>\n1\n</parameter>\n<parameter=b>\n[2]\n</parameter>\n</function>\n</tool_call>"


def schema(**types: object) -> ToolSchema:
    """Of a tool add with arguments of these types."""
    properties = {name: kind if isinstance(kind, dict) else {"type": kind} for name, kind in types.items()}
    return {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": properties}}}


TOOLS = [schema(a="integer", b="array")]


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
        ("qwen3-coder", f"So:\n{XML}", [ADD]),
        ("qwen3-coder", XML.replace("\n", ""), [ADD]),
        ("qwen3-coder", XML.partition("</parameter>\n</function>")[0], [ADD]),  # ended by the end of the turn
        ("qwen3-coder", f"<think>{XML}</think>{XML} and {XML}", [ADD, ADD]),
        ("qwen3-coder", "<tool_call><function=now></function></tool_call>", [("now", {})]),
        ("qwen3-coder", "The answer is 4 < 5", []),
        ("code-fences", "So:\n```python\nx = 1\nprint(x)\n```\n```output", [("python", {"code": "x = 1\nprint(x)\n"})]),
        ("code-fences", "```python\n1\n```\nor\n```python\n2\n```\n\n```output", [("python", {"code": "2\n"})]),
        ("code-fences", "```python\nprint('```')\n```output", [("python", {"code": "print('```')\n"})]),
        ("code-fences", "<think>\n```py \n1\n```\n```output", [("python", {"code": "1\n"})]),
        ("code-fences", "```python\n1\n```\nThe answer is 4.", []),
        ("code-fences", XML, []),
        ("llama3", "The set {1, 2}", []),
        ("llama3", "{1, 2}", []),
    ],
)
def test_calls_are_read(tool_format: ToolFormat, text: str, calls: list[ToolCall]) -> None:
    assert read_calls(text, tool_format, TOOLS) == calls


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
        ("qwen3-coder", "<tool_call>add(1, 2)</tool_call>", r"'add\(1, 2\)' is no call; write <function=NAME>"),
        ("qwen3-coder", XML.replace("\n1\n", "\none\n"), "parameter a of add is 'one': it must be of type integer"),
        ("qwen3-coder", XML.replace("=b>", "=a>"), "add has the parameter a twice"),
        ("code-fences", "I compute.\n```output", "write a block ```python before ```output"),
        ("code-fences", "```python\n\n```\n```output", "write a block ```python before"),
        ("code-fences", "```json\n{}\n```\n```output", "write a block ```python before"),
    ],
)
def test_a_malformed_call_says_what_is_wrong_with_it(tool_format: ToolFormat, text: str, reason: str) -> None:
    (call,) = read_calls(text, tool_format, TOOLS)
    assert isinstance(call, Malformed)
    with pytest.raises(ValueError, match=reason):
        raise ValueError(call.reason)


PIECES = [
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
    "\n",
]
PIECES += [
    "<function=add>",
    "<function=",
    "</function>",
    "<parameter=a>",
    "<parameter=",
    "</parameter>",
    "```python",
    "```output",
    "```",
]


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(get_args(ToolFormat)),
    st.lists(st.sampled_from(PIECES), max_size=12).map("".join) | st.text(),
    st.sampled_from(["", "```output"]),
)
def test_no_text_raises(tool_format: ToolFormat, text: str, end: str) -> None:
    for call in read_calls(text + end, tool_format, TOOLS):
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


VALUES = {
    "string": st.text(st.characters(exclude_categories=["Cs"])).filter(lambda text: "parameter" not in text),
    "integer": st.integers(),
    "number": st.floats(allow_nan=False, allow_infinity=False),
    "boolean": st.booleans(),
    "array": st.lists(st.none() | st.booleans() | st.integers() | st.text(st.characters(exclude_categories=["Cs"]))),
    "object": st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), st.integers()),
}
RENDERED = {"hermes": "qwen3", "llama3": "llama3_1", "qwen3-coder": "qwen3_5_think"}


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(list(RENDERED)),
    st.dictionaries(st.sampled_from(list(VALUES)), st.just(0)).flatmap(
        lambda kinds: st.fixed_dictionaries({kind: VALUES[kind] for kind in kinds})
    ),
)
def test_a_call_that_the_template_writes_is_read(tool_format: ToolFormat, arguments: dict[str, Any]) -> None:
    """Each argument has the name of its type. Behind a thought the templates of Qwen write what the model would."""
    words = tool_tokenizer((TEMPLATES / f"{RENDERED[tool_format]}.jinja").read_text())
    question = {"role": "user", "content": "x?"}
    call = {"type": "function", "function": {"name": "add", "arguments": arguments}}
    turn = {"role": "assistant", "content": "", "tool_calls": [call]}
    before = words.apply_chat_template([question], add_generation_prompt=True, tokenize=False)
    whole = words.apply_chat_template([question, turn], tokenize=False)
    assert isinstance(before, str) and isinstance(whole, str)
    said = whole.removeprefix(before).removesuffix("\n").removesuffix("<|im_end|>").removesuffix("<|eot_id|>")
    assert read_calls(said, tool_format, [schema(**{kind: kind for kind in VALUES})]) == [("add", arguments)]


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("12", {"type": "string"}, "12"),
        ("12", {"type": "integer"}, 12),
        ("12", {"type": ["integer", "string"]}, 12),
        ("twelve", {"anyOf": [{"type": "integer"}, {"type": "string"}]}, "twelve"),
        ("None", {"type": "string", "nullable": True}, None),
        ("null", {"type": "integer", "nullable": True}, None),
        ("True", {"type": "boolean"}, True),
        ("true", {"type": "integer"}, Unread),
        ("1.0", {"type": "integer"}, Unread),
        ("3", {"type": "number"}, 3),
        ("{", {"type": "object"}, Unread),
        ("[" * 100_000, {"type": "array"}, Unread),
        ('{"a": 1}', {}, {"a": 1}),
        ("a b", {}, "a b"),
        ("a", {"type": "uuid"}, "a"),
    ],
)
def test_values_have_the_types_of_the_schema(text: str, kind: dict[str, Any], value: Any) -> None:
    if value is Unread:
        with pytest.raises(Unread, match="it must be of type"):
            read_value(text, kind)
    else:
        read = read_value(text, kind)
        assert read == value and type(read) is type(value)


@pytest.mark.parametrize(
    ("name", "found"),
    [("qwen2_5", "hermes"), ("qwen3", "hermes"), ("llama3_1", "llama3"), ("qwen3_5_think", "qwen3-coder")],
)
def test_the_format_is_the_one_that_the_template_asks_for(name: str, found: str) -> None:
    assert format_of(tool_tokenizer((TEMPLATES / f"{name}.jinja").read_text())) == found
    assert [format_of(tool_tokenizer(t)) for t in (HERMES, LLAMA3)] == ["hermes", "llama3"]


@pytest.mark.parametrize("template", [NO_TOOLS, (TEMPLATES / "glm4moe.jinja").read_text()])
def test_a_template_with_another_format_is_refused(template: str) -> None:
    with pytest.raises(UserError, match=r"tool_format is None: .* choose one with --tool-format, of hermes, llama3"):
        format_of(tool_tokenizer(template))
