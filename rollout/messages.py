"""Reads chat messages of data sets, whose content is text or a list of text parts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from rewards.errors import UserError
from rollout.records import Message


def read_messages(prompt: Any, what: str) -> tuple[Message, ...]:
    """Converts a text, one message or a list of messages into messages of text. what: the name of the problem in a UserError.

    Numbers become the text that they are written as. Anything else is refused: it would reach the model as Python's repr of an object.
    """
    if isinstance(prompt, str | int | float) and not isinstance(prompt, bool):
        prompt = [{"role": "user", "content": prompt}]
    messages = [prompt] if isinstance(prompt, Mapping) else prompt
    if not isinstance(messages, list | tuple) or not messages or not all(map(is_message, messages)):
        raise UserError(
            f"{what}: prompt {_shown(prompt)} is neither text nor a list of messages with 'role' and 'content'; change the data set, or "
            "name the column of the question with --prompt-column"
        )
    return tuple({**message, "content": _text(message["content"], what)} for message in messages)


def messages_in(text: str) -> list[dict[str, Any]] | None:
    """The chat messages of a text that is JSON of them; None for any other text."""
    if not text.lstrip().startswith(("{", "[")):
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    found = [found] if isinstance(found, dict) else found
    return found if found and all(map(is_message, found)) else None


def is_message(value: Any) -> bool:
    return isinstance(value, Mapping) and isinstance(value.get("role"), str) and "content" in value


def _text(content: Any, what: str) -> str:
    if isinstance(content, list | tuple):
        return "".join(_text_of_part(part, what) for part in content)
    if isinstance(content, str | int | float) and not isinstance(content, bool):
        return require_encodable(str(content), what)
    raise UserError(
        f"{what}: the content of a message is {_shown(content)}: it must be text or a list of parts of text; fill it or drop the row"
    )


def _text_of_part(part: Any, what: str) -> str:
    if isinstance(part, str):
        return require_encodable(part, what)
    if isinstance(part, Mapping) and part.get("type", "text") == "text" and isinstance(part.get("text"), str):
        return require_encodable(part["text"], what)
    raise UserError(
        f'{what}: a part of a message is {_shown(part)}: only {{"type": "text", "text": "..."}} is read; drop the row, or replace '
        "the part by text"
    )


def _shown(value: Any) -> str:
    return ascii(value)[:80]


def require_encodable(text: str, what: str) -> str:
    """Returns the text. Raises UserError if it cannot be encoded in UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{what}: its text has half of a surrogate pair, {text[error.start]!a}, at character {error.start}, which no tokenizer "
            "encodes; repair the text or drop the row"
        ) from None
    return text
