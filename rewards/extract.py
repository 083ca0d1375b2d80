"""Finds the final answer in a completion, in time linear in the length of any text."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from typing import Literal, NamedTuple

AnswerForm = Literal["boxed", "tags", "hashes", "last-number", "text"]  # in which a completion states its final answer
# Evaluation also reads flexibly. Training does not: a policy would learn to end with numbers that it has not worked out.
Reading = Literal[AnswerForm, "flexible"]

# Tokens that end or pad a turn in chat templates.
_END_TOKEN = (
    r"<\|(?:im_end|endoftext|eot_id|eom_id|eot|end_of_turn|end_of_text|END_OF_TURN_TOKEN|return|eos|pad|padding)\|>"
    r"|<end_of_turn>|<turn\|>|</s>|<eos>|<pad>|\[PAD\]|\[EOS\]|<｜end▁of▁sentence｜>|<｜▁pad▁｜>"
)
# Tokens that begin another speaker's turn and so end the model's.
_OTHER_SPEAKER = (
    r"<\|im_start\|>(?=user|system|tool)|<\|start_header_id\|>(?=user|system|tool|ipython)|<start_of_turn>(?=user)"
    r"|<\|(?:user|system)\|>|<｜User｜>"
)
# Some models end a turn with <|end|>, others only a part of it, before their next part.
_END_OF_TURN = re.compile(rf"{_END_TOKEN}|<\|end\|>(?!<\|start\|>assistant)|{_OTHER_SPEAKER}")
_BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])\s*(?:(?P<open>\{)|(?P<bare>-?\d[\d,.]*|[A-Za-z]))")
_BRACE = re.compile(r"\\[\s\S]|[{}]")
_UNSEEN_KINDS = frozenset(["Zs", "Zl", "Zp", "Cc", "Cf"])
# Braille blank, Hangul fillers, combining grapheme joiner, variation selectors.
_UNSEEN = frozenset("\u2800\u3164\u115f\u1160\uffa0\u034f") | frozenset(map(chr, range(0xFE00, 0xFE10)))
# A box raised to a power is part of an expression, not the answer; a degree sign or a footnote mark may follow one.
_POWER = re.compile(r"\s*\^(?!\s*\{?\s*(?:\\circ|\\degree|\\?\*|\\dag))")
# Text between two boxes that together state a list of answers, which may be the items of a bulleted or numbered list.
_JOINT = re.compile(
    r"(?:[ $.,;:&()\[\]*•~/|-]|\d{1,2}[.)]|\\[,;:!()\[\]\\ ]|\\q?quad|and|or|either|\\text\{ ?,? ?(?:and|or) ?\})*",
    re.IGNORECASE,
)

_NUMBER = re.compile(r"(?:(?<![\w.,)\]}])[-−])?(?<![\w.])(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+|/\d+)?")
# The rest of a sentence that states the answer in words.
_STATED = re.compile(r"\banswer[\s*]*(?:is|:|=)[\s:*]*([^\n]*?)(?:\.(?!\d)|\n|$)", re.IGNORECASE)


def final_answer(text: str, *, strict: bool) -> str | None:
    r"""The text of the final answer, or None if nothing is marked as one.

    Rule: the last complete ``\boxed{}`` or ``\fbox{}`` after the last ``</think>``; if there is none, and unless
    `strict`, the last ``<answer>...</answer>``, else the rest of the line after the last ``####``. Reasoning that is
    never closed has no answer. Adjacent boxes with only punctuation, "and" or "or" between them form one list, so that
    two guesses do not pass as one answer; otherwise the last box counts.
    """
    return _found(_last_box if strict else _marked, text)


def answer_by_form(text: str, form: Reading | None) -> str | None:
    """The text of the final answer in a completion that states it in this form, or None if it has none; a blank one is none.

    boxed: the last box. tags: the last <answer>...</answer>. hashes: the rest of the line after the last ####. In either, a
    box stands for its content. last-number: the last number, with its sign, thousands and decimals, or a fraction of
    integers. text: all of the text. None: as `final_answer` without `strict`. flexible: the same, else the rest of the last
    sentence with "the answer is", else the last number. Only text after the reasoning counts.
    """
    return _found(_marked if form is None else _READINGS[form], text)


def _found(reading: Callable[[str], str | None], text: str) -> str | None:
    answer = reading(after_reasoning(text))
    return None if answer is None or is_blank(answer) else answer.strip()


def _marked(text: str) -> str | None:
    for reading in (_last_box, _last_tag, _last_hashes):
        if (answer := reading(text)) is not None:
            return answer
    return None


def reference_answer(reference: str) -> str:
    """The answer inside a reference: data sets store either the answer itself or a solution that ends with it.

    The text after the last ``####`` is the answer if it ends the reference, as in GSM8K, or if there is no box.
    Otherwise ``####`` is a Markdown heading, and the last box is the answer. A reference with neither is the answer.
    """
    hashes, box = _last_hashes(reference), _last_box(reference)
    ends_the_text = "\n" not in reference[reference.rfind("####") :].strip()
    if hashes is not None and (box is None or ends_the_text):
        return (_last_box(hashes) or hashes).strip()
    return (reference if box is None else box).strip()


def is_blank(text: str) -> bool:
    """Whether all characters are invisible: white space, zero-width marks, fillers."""
    return all(c in _UNSEEN or unicodedata.category(c) in _UNSEEN_KINDS for c in text)


def own_turn(text: str) -> str:
    """The text up to the end of the model's turn; a base model may continue after it."""
    return text[: next(turn_ends(text), len(text))]


def turn_ends(text: str) -> Iterator[int]:
    """The offsets at which the model's turn may end, in ascending order."""
    return (match.start() for match in _END_OF_TURN.finditer(text))


def is_end_of_turn(token: str) -> bool:
    """Whether the token ends or pads a turn in a chat template."""
    return re.fullmatch(_END_TOKEN, token) is not None


def after_reasoning(text: str) -> str:
    """The model's turn after its reasoning; "" if the reasoning is never closed."""
    text = own_turn(text).rpartition("</think>")[2]
    return "" if "<think>" in text else text


class Box(NamedTuple):
    start: int
    end: int
    content: str


def boxes(text: str) -> list[Box]:
    """All complete boxes that are not inside another box and not raised to a power."""
    if "\\boxed" not in text and "\\fbox" not in text:
        return []
    closing = _closing_braces(text)
    found: list[Box] = []
    for match in _BOX.finditer(text):
        if found and match.start() < found[-1].end:
            continue
        if match["open"] is None:
            found.append(Box(match.start(), match.end(), match["bare"]))
        elif (end := closing.get(match.end() - 1)) is not None:
            found.append(Box(match.start(), end + 1, text[match.end() : end]))
    return [box for box in found if not _POWER.match(text, box.end)]


def has_open_box(text: str) -> bool:
    """Whether the brace of a box is never closed, as where a text was cut."""
    opened = [match.end() - 1 for match in _BOX.finditer(text) if match["open"]] if "box" in text else []
    return bool(opened) and not _closing_braces(text).keys() >= set(opened)


def _last_box(text: str) -> str | None:
    found = boxes(text)
    if not found:
        return None
    contents = {found[-1].content.strip(): None}  # a dict as an ordered set
    for previous, following in zip(reversed(found[:-1]), reversed(found)):
        if not _JOINT.fullmatch(" ".join(text[previous.end : following.start].split())):
            break
        contents.setdefault(previous.content.strip())
    return ", ".join(_BOX.sub(_unboxed, content) for content in reversed(contents))


def _unboxed(match: re.Match[str]) -> str:
    return "{" if match["open"] else match["bare"]


def _closing_braces(text: str) -> dict[int, int]:
    """Position of each matched opening brace -> its closing brace, in one pass, so that nested boxes cost no rescan."""
    opened: list[int] = []
    closing: dict[int, int] = {}
    for match in _BRACE.finditer(text):
        if match[0] == "{":
            opened.append(match.start())
        elif match[0] == "}" and opened:
            closing[opened.pop()] = match.start()
    return closing


def _last_tag(text: str) -> str | None:
    end = text.rfind("</answer>")
    start = text.rfind("<answer>", 0, end) if end >= 0 else -1
    return text[start + len("<answer>") : end] if start >= 0 else None


def _last_hashes(text: str) -> str | None:
    start = text.rfind("####")
    return text[start + 4 :].lstrip("# \t").split("\n", 1)[0].strip("* \t\r") if start >= 0 else None


def _inner(answer: str | None) -> str | None:
    """The content of a box in a marked answer, or the answer itself."""
    return answer and (_last_box(answer) or answer)


def _stated(text: str) -> str | None:
    found = [stated.strip(" *,;!") for stated in _STATED.findall(text)]
    return next(filter(None, reversed(found)), None)


def _last_number(text: str) -> str | None:
    found = _NUMBER.findall(text)
    return found[-1] if found else None


def _flexible(text: str) -> str | None:
    answers = (reading(text) for reading in (_marked, _stated, _last_number))
    return next((answer for answer in answers if answer is not None and not is_blank(answer)), None)


_READINGS: Mapping[Reading, Callable[[str], str | None]] = {
    "boxed": _last_box,
    "tags": lambda text: _inner(_last_tag(text)),
    "hashes": lambda text: _inner(_last_hashes(text)),
    "last-number": _last_number,
    "text": str,
    "flexible": _flexible,
}
