"""Chooses the tokenizer's chat template, and finds out what it writes at the end of the model's turn and behind it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from rewards.errors import UserError, first_line
from rollout.records import Message

# Jinja's own errors, and those of a template's expression on a value of an unexpected type.
TEMPLATE_ERRORS = (TemplateError, TypeError, ValueError)
QUESTION, ANSWER, FOLLOW_UP = "plumbline-question", "plumbline-answer", "plumbline-follow-up"


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


def text_between_turns(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> str:
    """The template's text between two turns of the model with these messages in between, from the end of the first turn's content on.

    The earlier turns are not rendered again: some templates change them once they are history (drop their reasoning, say).
    """
    conversation: Any = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}, *messages]
    try:
        rendering = str(tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True))
    except TEMPLATE_ERRORS as error:
        roles = ", ".join(message["role"] for message in messages)
        raise UserError(
            f"chat_template: it cannot render messages (roles {roles}) behind the model's turn: {first_line(error)}; use other roles, "
            "or another template with --chat-template"
        ) from None
    _, answer, between = rendering.rpartition(ANSWER)
    if not answer or not all(message["content"] in between for message in messages):
        raise UserError(
            f"chat_template: it leaves out some of the messages {[dict(message) for message in messages]} behind the model's turn; use "
            "other roles, or another template with --chat-template"
        )
    return between


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
    common = "".join(a for a, b in takewhile(lambda pair: pair[0] == pair[1], zip(last, answered, strict=False)))
    tokens = [token for token in added_tokens(tokenizer) if common.startswith(token)]
    if tokens:
        return max(tokens, key=len)
    line, newline, _ = common.partition("\n")
    is_whole = bool(newline) or common == last.rstrip()
    return line.rstrip() or None if is_whole else None
