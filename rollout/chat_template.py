"""Chooses the tokenizer's chat template, and finds out what it writes at the end of the model's turn and behind it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise, takewhile
from pathlib import Path
from typing import Any

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from rewards.errors import UserError, first_line
from rollout.records import Message
from rollout.tool_worker import encodable

# Jinja's own errors, and those of a template's expression on a value of an unexpected type.
TEMPLATE_ERRORS = (TemplateError, TypeError, ValueError)
QUESTION, ANSWER, FOLLOW_UP = "plumbline-question", "plumbline-answer", "plumbline-follow-up"
ToolSchema = Mapping[str, Any]  # of a tool, as transformers.utils.get_json_schema makes it
GUARD = "\ufdd0"  # stands where a text is cut; Unicode keeps this character out of every text
_TURNS_TRIED = 3
_SHOWN = 30  # characters before and behind the place where two renderings part


def choose_template(tokenizer: PreTrainedTokenizerBase, chosen: str | None) -> None:
    """Sets the tokenizer's template to `chosen`: a Jinja file, or the name of one of the tokenizer's templates."""
    own: Any = tokenizer.chat_template
    named: dict[str, str] = own if isinstance(own, dict) else {}
    if chosen is None and (not named or "default" in named):
        return
    has = f"the tokenizer's templates are {', '.join(sorted(named))}" if named else "the tokenizer names no templates"
    if chosen is None:
        raise UserError(f"chat_template is None: {has}, and none is the default; choose one with --chat-template")
    if chosen in named:
        tokenizer.chat_template = named[chosen]
        return
    try:
        tokenizer.chat_template = Path(chosen).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"chat_template is {chosen!r}: it is no readable text file ({error}), and {has}; give a file with a Jinja "
            "template, or one of these names"
        ) from None


def added_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """The tokens that were added to the learnt vocabulary, special tokens included, with their ids."""
    return tokenizer.get_added_vocab()  # pyright: ignore[reportCallIssue,reportOptionalCall]  the stubs know no such method


def encode_as_text(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[int, ...]:
    """The tokens of a text in which nothing is structure: what is written like an added token, as <|im_end|>, is its letters."""
    return _encode_guarded(tokenizer, guarded(text, added_tokens(tokenizer)))


def tokens_between_turns(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], tools: Sequence[ToolSchema] = ()
) -> tuple[int, ...]:
    """`text_between_turns` as tokens. The messages are encoded as text, so that a tool's answer cannot end its turn and begin another."""
    structure = added_tokens(tokenizer)
    as_text = [
        {
            key: value if key == "role" or not isinstance(value, str) else guarded(value, structure)
            for key, value in m.items()
        }
        for m in messages
    ]
    return _encode_guarded(tokenizer, text_between_turns(tokenizer, as_text, tools))


def guarded(text: str, structure: Iterable[str]) -> str:
    """The text with a guard behind the first character of whatever is written like one of these tokens. Tokens of white space are none."""
    tokens = [token for token in structure if len(token) > 1 and not token.isspace() and token in text]
    starts = "|".join(f"{re.escape(token[0])}(?={re.escape(token[1:])})" for token in tokens)
    return re.sub(starts, lambda start: start[0] + GUARD, text) if starts else text


def _encode_guarded(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[int, ...]:
    pieces = text.split(GUARD)
    return tuple(token for piece in pieces for token in tokenizer.encode(piece, add_special_tokens=False))


def text_between_turns(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], tools: Sequence[ToolSchema] = ()
) -> str:
    """The template's text between two turns of the model with these messages in between, from the end of the first turn's content on.

    The earlier turns are not rendered again: some templates change them once they are history (drop their reasoning, say).
    A template may trim or escape a message's content, so whether it leaves messages out is found with marked contents.
    """
    marked = [{**message, "content": f"plumbline-{i}-marker"} for i, message in enumerate(messages)]
    if not all(message["content"] in _behind_turn(tokenizer, marked, tools) for message in marked):
        raise UserError(
            f"chat_template: it leaves out some of the messages {[dict(message) for message in messages]} behind the model's turn; use "
            "other roles, or another template with --chat-template"
        )
    return _behind_turn(tokenizer, messages, tools)


def _behind_turn(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], tools: Sequence[ToolSchema]) -> str:
    conversation = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}, *messages]
    try:
        rendering = _rendered(tokenizer, conversation, tools)
    except TEMPLATE_ERRORS as error:
        roles = ", ".join(message["role"] for message in messages)
        raise UserError(
            f"chat_template: it cannot render messages (roles {roles}) behind the model's turn: {first_line(error)}; use other roles, "
            "or another template with --chat-template"
        ) from None
    _, _, behind = rendering.partition(ANSWER)  # the first: a message may repeat it
    return behind


def _rendered(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], tools: Sequence[ToolSchema]) -> str:
    """The text from which the model takes its next turn."""
    conversation: Any = list(messages)
    shown: Any = list(tools) or None
    return str(tokenizer.apply_chat_template(conversation, tools=shown, tokenize=False, add_generation_prompt=True))


def name_of(tool: ToolSchema) -> str:
    """The name by which the model calls the tool."""
    return str(tool["function"]["name"])


def require_tool_turns(tokenizer: PreTrainedTokenizerBase, tools: Sequence[ToolSchema]) -> None:
    """Raises UserError unless the template shows these tools to the model, and has a place for their answers between two turns."""
    names = ", ".join(name_of(tool) for tool in tools)
    if tokenizer.chat_template is None:
        raise UserError(
            f"tools are {names}: the model's tokenizer has no chat template, which would show them to the model; give one with "
            "--chat-template, or another model"
        )
    renamed = [
        {**tool, "function": {**tool["function"], "name": f"plumbline_{i}_tool"}} for i, tool in enumerate(tools)
    ]
    try:
        shown = _rendered(tokenizer, [{"role": "user", "content": QUESTION}], renamed)
    except TEMPLATE_ERRORS as error:
        raise UserError(
            f"chat_template: it cannot render the tools {names}: {first_line(error)}; give another template with --chat-template"
        ) from None
    if not all(tool["function"]["name"] in shown for tool in renamed):
        raise UserError(
            f"tools are {names}: the chat template has no place for tools, so that the model would never read of them; give a template "
            "that renders `tools` with --chat-template"
        )
    reply = tool_reply(name_of(tools[0]), FOLLOW_UP)
    text_between_turns(tokenizer, [reply], tools)
    require_prefix_preserving(tokenizer, reply, tools)


def tool_reply(name: str, content: str) -> Message:
    """The message with a tool's answer. Name and content may repeat what the model or the tool wrote: they are made encodable."""
    return {"role": "tool", "name": encodable(name), "content": encodable(content)}


def require_prefix_preserving(
    tokenizer: PreTrainedTokenizerBase, reply: Message, tools: Sequence[ToolSchema] = ()
) -> None:
    """Raises UserError unless the context of each turn, as the template renders it, begins with the context of the turn before.

    A rollout appends to the tokens of the engine. Under another template the model would be trained on contexts that it never
    gets where the conversation is rendered as a whole. reply: a message as it stands between two turns.
    """
    conversation: list[Message] = [{"role": "user", "content": QUESTION}]
    try:
        contexts = [_rendered(tokenizer, conversation, tools)]
        thought = "<think>\nplumbline-thought\n</think>\n\n" if contexts[0].rstrip().endswith("<think>") else ""
        for turn in range(1, _TURNS_TRIED):
            conversation += [{"role": "assistant", "content": f"{thought}{ANSWER}-{turn}"}, reply]
            contexts.append(_rendered(tokenizer, conversation, tools))
    except TEMPLATE_ERRORS as error:
        raise UserError(
            f"chat_template: it cannot render a message of role {reply['role']!r} behind the model's turn: {first_line(error)}; give "
            "another template with --chat-template"
        ) from None
    for turn, (before, after) in enumerate(pairwise(contexts), start=1):
        if not after.startswith(before):
            at = len(_common_beginning(before, after))
            raise UserError(
                f"chat_template: it is not prefix-preserving: once turn {turn} is answered, it writes {_around(after, at)} where the model "
                f"of turn {turn} read {_around(before, at)}, so that later turns would have another context in use than in training; "
                "give a template that leaves earlier turns as they are with --chat-template"
            )


def _common_beginning(text: str, other: str) -> str:
    return "".join(a for a, b in takewhile(lambda pair: pair[0] == pair[1], zip(text, other, strict=False)))


def _around(text: str, at: int) -> str:
    return repr(text[max(0, at - _SHOWN) : at + _SHOWN])


def template_turn_end(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The token, or otherwise the text, that the template writes directly behind the content of the model's turn.

    It is the common beginning of what follows a final assistant message and of what follows one that a user message answers, as a
    template may open the next turn in either case. None if the template ends a turn with white space or cannot render such messages.
    """
    if tokenizer.chat_template is None:
        return None
    messages: list[dict[str, str]] = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}]
    try:
        renderings = [
            str(tokenizer.apply_chat_template(conversation, tokenize=False))
            for conversation in (messages, [*messages, {"role": "user", "content": FOLLOW_UP}])
        ]
    except TEMPLATE_ERRORS:
        return None
    if not all(ANSWER in rendering for rendering in renderings):
        return None
    last, answered = (rendering.rpartition(ANSWER)[2].lstrip() for rendering in renderings)
    common = _common_beginning(last, answered)
    tokens = [token for token in added_tokens(tokenizer) if common.startswith(token)]
    if tokens:
        return max(tokens, key=len)
    line, newline, _ = common.partition("\n")
    is_whole = bool(newline) or common == last.rstrip()
    return line.rstrip() or None if is_whole else None
