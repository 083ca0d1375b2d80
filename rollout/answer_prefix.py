"""The beginning of the model's answer in its prompt: a template or a final assistant message may open a tag, a fence or a box."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

_TAGS = ("think", "answer")
_FENCE = re.compile(r"^[ \t]*(?:```|~~~)", re.MULTILINE)
_BOX = re.compile(r"\\boxed\s*\{")
_MARK = re.compile(rf"<(?:{'|'.join(_TAGS)})>|{_FENCE.pattern}|{_BOX.pattern}", re.MULTILINE)
# The prompt of a base model may end in such a mark, behind which the answer is to begin.
_LAST = re.compile(rf"(?:{_MARK.pattern})[\w+-]*\s*\Z", re.MULTILINE)


def find_answer_prefix(prompt: str, messages: Sequence[Mapping[str, str]]) -> str:
    """The end of a rendered prompt, from the first mark that opens the answer and is still open there; "" if there is none.

    The answer begins behind the last message that is not the assistant's. In that message itself only a mark that ends the prompt
    counts: any other is part of the question.
    """
    questions = [message["content"].strip() for message in messages if message["role"] != "assistant"]
    at = prompt.rfind(questions[-1]) if questions else 0
    answer = prompt[at + len(questions[-1]) if questions else 0 :] if at >= 0 else ""
    if _is_open(answer):
        first = _MARK.search(answer)
        assert first is not None
        return answer[first.start() :]
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
