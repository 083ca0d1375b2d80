"""Faults of form in a question or in its worked solution, after the first stage of s1 (arXiv 2501.19393, section 2.2).

The paper names ASCII art, references to images that are not there and inconsistent numbering of questions, and prints no rules; these
are ours. Whether the answer is right is not asked here: training grades it.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from rewards.extract import has_open_box

# What a wrong decoding leaves: U+FFFD, halves of surrogate pairs, control characters such as the form feed of a "\frac" in JSON.
_DECODING = re.compile("[\ufffd\ud800-\udfff\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_FENCE = re.compile(r"^[ \t]*(`{3,}+|~{3,}+)([^\n`]*)$", re.MULTILINE)
_IMAGE = re.compile(  # the set at the beginning makes the search three times as fast
    r"[!<\\\[](?:(?<=!)\[[^\]\n]{0,200}\]\(|(?<=<)img\b|(?<=\\)includegraphics\b"
    r"|(?<=[<\[])(?:image|img|figure|picture|diagram)[>\]])",
    re.I,
)
_FIGURE = r"(?:figure|diagram|picture|image|illustration)s?"
_POINTER = re.compile(
    rf"\b(?:in|see|from|to) (?:the|this) (?:following |adjacent |accompanying |attached )?{_FIGURE}\b"
    rf"|\b{_FIGURE} (?:is |are )?(?:shown |given |drawn )?(?:below|above|(?:at|to|on) (?:the )?(?:right|left))\b",
    re.I,
)
_IN_TEXT = re.compile(r"\[asy\]|\\begin\{(?:asy|tikzpicture|picture|array|tabular)\}|<svg\b")
_DRAWING = re.compile(r"[|/\\_\u2500-\u259f]|[-=+*~^<>#.]{2,}")
_STROKES = frozenset("|/\\_-=+*~^<>#") | frozenset(map(chr, range(0x2500, 0x25A0)))
_STROKE_FIRST = re.compile(r"\n[ \t]*[|/\\_=+*~^<>#\u2500-\u259f-]")  # two of three drawn lines are behind a line's end
_LABEL = re.compile(r"^[ \t]*\(?(?:(\d{1,2})|([a-h]))[.)][ \t]", re.MULTILINE)
DRAWN_LINES = 3


def fault(question: str, solution: str) -> str | None:
    """The first fault of the row, None if there is none. Takes time linear in the length of the texts."""
    return next((reason for reason, holds in FAULTS.items() if holds(question, solution)), None)


def has_open_fence(text: str) -> bool:
    """Whether a block of code is not closed: a fence is closed by one of its own mark, as long, with nothing behind it."""
    fence = ""
    for mark, language in _FENCE.findall(text):
        if fence and language.strip():
            return True
        if not fence:
            fence = mark
        elif mark.startswith(fence):
            fence = ""
    return bool(fence)


def has_drawing(text: str) -> bool:
    """Whether three lines in a row are drawn: they begin with a stroke, and more than half of what can be seen in each are strokes. Rows of
    Markdown tables are not."""
    if not _STROKE_FIRST.search(text):
        return False
    in_table, drawn = False, 0
    for line in text.split("\n"):
        seen = "".join(line.rstrip().removesuffix("\\\\").split())
        in_table = seen[:1] == seen[-1:] == "|" and (in_table or seen.strip("|:-") == "")
        is_drawn = not in_table and len(seen) > 1 and seen[0] in _STROKES
        strokes = sum(map(len, _DRAWING.findall(seen))) if is_drawn else 0
        drawn = drawn + 1 if 2 * strokes > len(seen) else 0
        if drawn == DRAWN_LINES:
            return True
    return False


def lacks_image(text: str) -> bool:
    """Whether it embeds an image, which no text model sees."""
    return _IMAGE.search(text) is not None


def points_to_image(question: str) -> bool:
    """Whether it points to a figure in words and has none, not even as text: Asymptote, TikZ, SVG, a table."""
    return _POINTER.search(question) is not None and not _IN_TEXT.search(question)


def is_misnumbered(question: str) -> bool:
    """Whether numbers or letters before its parts do not count up by one. Each list may begin anew at 1 or a; a lone number is none."""
    last: dict[bool, int] = {}
    for number, letter in _LABEL.findall(question):
        value = int(number) if number else ord(letter) - ord("a") + 1
        if value != 1 and value != last.get(bool(number), value - 1) + 1:
            return True
        last[bool(number)] = value
    return False


def _in_either(holds: Callable[[str], bool]) -> Callable[[str, str], bool]:
    return lambda question, solution: holds(question) or holds(solution)


FAULTS: dict[str, Callable[[str, str], bool]] = {
    "no question": lambda question, solution: not question.strip(),
    "no worked solution": lambda question, solution: not solution.strip(),
    "text that was decoded wrongly": _in_either(lambda text: _DECODING.search(text) is not None),
    "a block of code that is not closed": _in_either(has_open_fence),
    "a box that is not closed": _in_either(has_open_box),
    "an image": _in_either(lacks_image),
    "a figure that is not there": lambda question, solution: points_to_image(question),
    "a drawing in text": _in_either(has_drawing),
    "parts out of order": lambda question, solution: is_misnumbered(question),
}
