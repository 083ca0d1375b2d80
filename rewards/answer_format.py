r"""Format rules: whether a completion has the requested format, independently of whether it is correct (see
combine.py).

Each rule maps a text to a value in [0, 1] and, below 1, a description of the problem. The rules read model text in the
trainer's own process, so each is one pass of string searches, linear in the length of the text.

    think-answer   one <think>...</think>, then one <answer>...</answer>, nothing else
    boxed          one \boxed{...}, at the end
    no-repetition  the share of distinct sequences among all sequences of eight words
    words:N        1 up to N words, from there decreasing linearly to 0 at 2 N words
    script:NAME    the share of letters that are of a script, such as latin or han; several are joined by +, as han+kana
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from rewards.errors import UserError
from rewards.extract import boxes, final_answer, is_blank

_TAGS = ("<think>", "</think>", "<answer>", "</answer>")
_BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])")
_AFTER_BOX = re.compile(r"(?:[\s$.,!*}\u200b]|\\?[\])]|\\end\{[a-z]{1,12}\*?\})*")
# How the names of a script's letters begin in Unicode.
_SCRIPTS = {
    "latin": ("LATIN",),
    "cyrillic": ("CYRILLIC",),
    "greek": ("GREEK",),
    "arabic": ("ARABIC",),
    "hebrew": ("HEBREW",),
    "devanagari": ("DEVANAGARI",),
    "thai": ("THAI",),
    "hangul": ("HANGUL",),
    "han": ("CJK",),
    "kana": ("HIRAGANA", "KATAKANA"),
}
_COMMAND = re.compile(r"\\[A-Za-z]+|</?(?:think|answer)>")  # of LaTeX, and the tags: in no language
_SYMBOL = re.compile(r"(?<![^\W\d_])[A-Za-z\u0370-\u03ff](?![^\W\d_])")  # a Latin or Greek letter alone
_NGRAM = 8  # words; shorter sequences repeat in ordinary derivations too


class FormatScore(NamedTuple):
    """The result of a format rule. value: in [0, 1]. problem: the reason if it is below 1, else empty."""

    value: float
    problem: str


FormatRule = Callable[[str], FormatScore]
_PASSED = FormatScore(1.0, "")


def think_answer(text: str) -> FormatScore:
    """1 if every tag occurs once and in order, no section is empty and there is no text outside the tags, else 0.

    The regular expressions with MULTILINE that are in common use also accept text after the answer, two answers and
    empty sections.
    """
    for tag in _TAGS:
        if text.count(tag) != 1:
            return FormatScore(0.0, f"{tag} occurs {text.count(tag)} times")
    places = [text.index(tag) for tag in _TAGS]
    if places != sorted(places):
        return FormatScore(0.0, "the tags are out of order")
    before, thought, between, answer, after = re.split("|".join(_TAGS), text)
    if not is_blank(before + between + after):
        return FormatScore(0.0, "text outside of the tags")
    if is_blank(thought) or is_blank(answer):
        return FormatScore(0.0, "an empty section")
    return _PASSED


def boxed(text: str) -> FormatScore:
    """1 if there is one box and it ends the text, except for punctuation and closing math delimiters, else 0."""
    if len(_BOX.findall(text)) != 1:
        return FormatScore(0.0, f"{len(_BOX.findall(text))} boxes")
    if final_answer(text, strict=True) is None:
        return FormatScore(0.0, "the box is empty, not closed, or inside the reasoning")
    if not _AFTER_BOX.fullmatch(text, boxes(text)[-1].end):
        return FormatScore(0.0, "text after the box")
    return _PASSED


def no_repetition(text: str) -> FormatScore:
    """distinct / all sequences of eight words, similar to the n-gram penalty of arXiv 2502.03373, section 4.3."""
    words = text.split()
    ngrams = list(zip(*(words[i:] for i in range(_NGRAM))))
    if len(set(ngrams)) == len(ngrams):
        return _PASSED
    return FormatScore(len(set(ngrams)) / len(ngrams), "it repeats sequences of words")


def at_most_words(text: str, limit: int) -> FormatScore:
    """1 up to `limit` words, then 2 - words / limit, at least 0."""
    count = len(text.split())
    return _PASSED if count <= limit else FormatScore(max(0.0, 2 - count / limit), f"{count} words")


def in_scripts(text: str, names: tuple[str, ...]) -> FormatScore:
    """Letters of the named scripts / all letters, 1 without letters, as the language consistency reward of arXiv 2501.12948, section
    2.3.2, which counts words of the target language. Commands of LaTeX, tags and single letters such as x and \u03b1 do not count."""
    beginnings = tuple(beginning for name in names for beginning in _SCRIPTS[name])
    letters = Counter(filter(str.isalpha, _SYMBOL.sub("", _COMMAND.sub(" ", text))))
    inside = sum(n for letter, n in letters.items() if unicodedata.name(letter, "").startswith(beginnings))
    if inside == letters.total():
        return _PASSED
    share = inside / letters.total()
    return FormatScore(share, f"{1 - share:.0%} of the letters are not {' or '.join(names)}")


def format_rule(name: str) -> FormatRule:
    """The rule with this name. Raises UserError for an unknown name."""
    rules: dict[str, FormatRule] = {"think-answer": think_answer, "boxed": boxed, "no-repetition": no_repetition}
    if name in rules:
        return rules[name]
    scripts = tuple(name.removeprefix("script:").split("+"))
    if name.startswith("script:") and set(scripts) <= set(_SCRIPTS):
        return partial(in_scripts, names=scripts)
    limit = re.fullmatch(r"words:([1-9]\d{0,6})", name)
    if limit is None:
        raise UserError(
            f"format is {name!r}: it must be one of {', '.join(rules)}, words:N for at most N words, or script:NAME with a name of "
            f"{', '.join(_SCRIPTS)}, or several joined by +"
        )
    return partial(at_most_words, limit=int(limit[1]))
