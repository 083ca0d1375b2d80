"""What of the model's answer its prompt has begun: a template or a last message of the assistant's may open a tag, a fence or a box."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

_TAGS = ("think", "answer")
_FENCE = re.compile(r"^[ \t]*(?:```|~~~)", re.MULTILINE)
_BOX = re.compile(r"\\boxed\s*\{")
_MARK = re.compile(rf"<(?:{'|'.join(_TAGS)})>|{_FENCE.pattern}|{_BOX.pattern}", re.MULTILINE)
# A prompt of a base model ends in such a mark where the answer is to begin behind it.
_LAST = re.compile(rf"(?:{_MARK.pattern})[\w+-]*\s*\Z", re.MULTILINE)


def opened_by(prompt: str, messages: Sequence[Mapping[str, str]]) -> str:
    """The end of a rendered prompt, from the first mark of the answer on, if one is still open there; else nothing.

    The answer begins behind the last message that is not the assistant's. In that message itself only a mark that ends the prompt
    counts: any other is part of the question.
    """
    asked = [message["content"].strip() for message in messages if message["role"] != "assistant"]
    at = prompt.rfind(asked[-1]) if asked else 0
    begun = prompt[at + len(asked[-1]) if asked else 0 :] if at >= 0 else ""
    if _is_open(begun):
        first = _MARK.search(begun)
        assert first is not None
        return begun[first.start() :]
    last = _LAST.search(prompt)
    if last is None or (_FENCE.match(last[0]) and not _has_open_fence(prompt)):
        return ""
    return last[0]


def _is_open(text: str) -> bool:
    tags = any(text.rfind(f"<{tag}>") > text.rfind(f"</{tag}>") for tag in _TAGS)
    return tags or _has_open_fence(text) or _has_open_box(text)


def _has_open_fence(text: str) -> bool:
    return len(_FENCE.findall(text)) % 2 == 1


def _has_open_box(text: str) -> bool:
    boxes = list(_BOX.finditer(text))
    last = text[boxes[-1].start() :] if boxes else ""
    return last.count("{") > last.count("}")
