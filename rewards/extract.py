"""Where in a completion is the final answer? Linear in the length of the text, whatever the text is."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from typing import NamedTuple

# Tokens with which chat templates end a turn or pad it.
_END_TOKEN = (
    r"<\|(?:im_end|endoftext|eot_id|eom_id|eot|end_of_turn|end_of_text|END_OF_TURN_TOKEN|return|eos|pad|padding)\|>"
    r"|<end_of_turn>|<turn\|>|</s>|<eos>|<pad>|\[PAD\]|\[EOS\]|<｜end▁of▁sentence｜>|<｜▁pad▁｜>"
)
# Where somebody else's turn begins, the model's has ended.
_OTHER_SPEAKER = (
    r"<\|im_start\|>(?=user|system|tool)|<\|start_header_id\|>(?=user|system|tool|ipython)|<start_of_turn>(?=user)"
    r"|<\|(?:user|system)\|>|<｜User｜>"
)
# With <|end|> some models end a turn, and some a part of it before the next part of their own.
_END_OF_TURN = re.compile(rf"{_END_TOKEN}|<\|end\|>(?!<\|start\|>assistant)|{_OTHER_SPEAKER}")
_BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])\s*(?:(?P<open>\{)|(?P<bare>-?\d[\d,.]*|[A-Za-z]))")
_BRACE = re.compile(r"\\[\s\S]|[{}]")
_UNSEEN_KINDS = frozenset(["Zs", "Zl", "Zp", "Cc", "Cf"])
# The blank of Braille, the fillers of Hangul, the joiner of graphemes; variation selectors.
_UNSEEN = frozenset("\u2800\u3164\u115f\u1160\uffa0\u034f") | frozenset(map(chr, range(0xFE00, 0xFE10)))
# A box that is raised to a power is a part of an expression and not the answer; a degree sign or a footnote may follow it.
_POWER = re.compile(r"\s*\^(?!\s*\{?\s*(?:\\circ|\\degree|\\?\*|\\dag))")
# What may stand between two boxes that together state a list of answers; also as the items of a written list.
_JOINT = re.compile(
    r"(?:[ $.,;:&()\[\]*•~/|-]|\d{1,2}[.)]|\\[,;:!()\[\]\\ ]|\\q?quad|and|or|either|\\text\{ ?,? ?(?:and|or) ?\})*",
    re.IGNORECASE,
)


def final_answer(text: str, *, strict: bool) -> str | None:
    r"""The text of the final answer, or None where nothing is marked as one.

    Rule: the last complete ``\boxed{}`` or ``\fbox{}`` after the last ``</think>``; where there is none, and unless
    `strict`, the last ``<answer>...</answer>``, else what follows the last ``####`` on its line. Reasoning that was
    never closed holds no answer. Boxes side by side, with at most punctuation, "and" or "or" between, are one list, so
    that two guesses are never one answer; otherwise the last box wins.
    """
    text = after_reasoning(text)
    answer = _last_box(text)
    if answer is None and not strict:
        answer = _last_tag(text)
        if answer is None:
            answer = _last_hashes(text)
    return None if answer is None or is_blank(answer) else answer.strip()


def reference_answer(reference: str) -> str:
    """The answer inside a reference: data sets store either the answer itself or a worked solution that ends in it.

    What follows the last ``####`` is the answer where it ends the text, as in GSM8K; elsewhere that is a heading of Markdown, and
    the last box wins.
    """
    hashes, box = _last_hashes(reference), _last_box(reference)
    ends_the_text = "\n" not in reference[reference.rfind("####") :].strip()
    if hashes is not None and (box is None or ends_the_text):
        return (_last_box(hashes) or hashes).strip()
    return (reference if box is None else box).strip()


def is_blank(text: str) -> bool:
    """Whether nothing of it can be seen: white space, zero-width marks, fillers."""
    return all(c in _UNSEEN or unicodedata.category(c) in _UNSEEN_KINDS for c in text)


def own_turn(text: str) -> str:
    """The text up to where the model's turn ended; a base model may run on after it."""
    return text[: next(turn_ends(text), len(text))]


def turn_ends(text: str) -> Iterator[int]:
    """Where the model's turn may have ended, the first place first."""
    return (match.start() for match in _END_OF_TURN.finditer(text))


def is_end_of_turn(token: str) -> bool:
    """Whether chat templates end a turn, or pad it, with this token."""
    return re.fullmatch(_END_TOKEN, token) is not None


def after_reasoning(text: str) -> str:
    """What the model's turn says after its reasoning; nothing where that was never closed."""
    text = own_turn(text).rpartition("</think>")[2]
    return "" if "<think>" in text else text


class Box(NamedTuple):
    start: int
    end: int
    content: str


def boxes(text: str) -> list[Box]:
    """Every complete box that is in no other and is an answer by itself."""
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


def _last_box(text: str) -> str | None:
    found = boxes(text)
    if not found:
        return None
    contents = {found[-1].content.strip(): None}  # a dict, since it is an ordered set
    for previous, following in zip(reversed(found[:-1]), reversed(found)):
        if not _JOINT.fullmatch(" ".join(text[previous.end : following.start].split())):
            break
        contents.setdefault(previous.content.strip())
    return ", ".join(_BOX.sub(_unboxed, content) for content in reversed(contents))


def _unboxed(match: re.Match[str]) -> str:
    return "{" if match["open"] else match["bare"]


def _closing_braces(text: str) -> dict[int, int]:
    """Position of every matched opening brace -> its closing brace, in one pass: boxes in boxes must not be rescanned."""
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
