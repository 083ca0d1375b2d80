"""The tokenizer's chat template: which one is used, and what it writes at the end of the model's turn."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from rewards.errors import UserError, first_line
from rollout.records import Message

# Jinja's own errors, and what an expression of a template raises on a value of another type than it expects.
TEMPLATE_ERRORS = (TemplateError, TypeError, ValueError)
ASKED, SAID, NEXT = "plumbline-asked", "plumbline-said", "plumbline-next"


def choose_template(tokenizer: PreTrainedTokenizerBase, chosen: str | None) -> None:
    """Gives the tokenizer the template `chosen`: a file of Jinja, or one of several templates that it has by name."""
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
            f"chat_template is {chosen!r}: it is no file that can be read as text ({error}), and {has}; give a file with a Jinja "
            "template, or one of these names"
        ) from None


def added_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Its tokens outside of the vocabulary that was learnt, special ones among them."""
    return tokenizer.get_added_vocab()  # pyright: ignore[reportCallIssue,reportOptionalCall]  the stubs know no such method


def text_between_turns(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> str:
    """What the template writes behind the content of a model's turn up to where its next turn begins, these messages between them.

    The turns before are not rendered: some templates would change them (drop their reasoning, say) once they are history.
    """
    conversation: Any = [{"role": "user", "content": ASKED}, {"role": "assistant", "content": SAID}, *messages]
    try:
        rendering = str(tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True))
    except TEMPLATE_ERRORS as error:
        roles = ", ".join(message["role"] for message in messages)
        raise UserError(
            f"chat_template: it cannot render messages (roles {roles}) behind the model's turn: {first_line(error)}; use other roles, "
            "or another template with --chat-template"
        ) from None
    _, said, between = rendering.rpartition(SAID)
    if not said or not all(message["content"] in between for message in messages):
        raise UserError(
            f"chat_template: it leaves out some of the messages {[dict(message) for message in messages]} behind the model's turn; use "
            "other roles, or another template with --chat-template"
        )
    return between


def template_turn_end(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The token, or where there is none the text, that the template writes directly behind what the model has said.

    That is the beginning common to what follows a last message of the model and what follows one that the user answers: a template
    may open the next turn after either. None where the template ends a turn with white space, or cannot render such messages.
    """
    if tokenizer.chat_template is None:
        return None
    said: list[dict[str, str]] = [{"role": "user", "content": ASKED}, {"role": "assistant", "content": SAID}]
    try:
        renderings = [
            str(tokenizer.apply_chat_template(messages, tokenize=False))
            for messages in (said, [*said, {"role": "user", "content": NEXT}])
        ]
    except TEMPLATE_ERRORS:
        return None
    if not all(SAID in rendering for rendering in renderings):
        return None
    last, answered = (rendering.rpartition(SAID)[2].lstrip() for rendering in renderings)
    common = "".join(a for a, b in takewhile(lambda pair: pair[0] == pair[1], zip(last, answered, strict=False)))
    tokens = [token for token in added_tokens(tokenizer) if common.startswith(token)]
    if tokens:
        return max(tokens, key=len)
    line, newline, _ = common.partition("\n")
    is_whole = bool(newline) or common == last.rstrip()
    return line.rstrip() or None if is_whole else None
