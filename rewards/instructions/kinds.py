"""Kinds of instructions by the names that IFEval publishes. Each is a function (response, its published arguments) -> bool.

The rules are those of the published checks, with two differences: sentences are counted by our own rule instead of that
of a library, and "in English" of the two kinds of letter case is not checked. Kinds that need a language detector or a
tokenizer of words (language:response_language, change_case:capital_word_frequency) are left out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence

_RELATIONS: Mapping[str, Callable[[int, int], bool]] = {
    "at least": lambda count, bound: count >= bound,
    "less than": lambda count, bound: count < bound,
}
_SENTENCE_END = re.compile(r"[.!?]+[\"'”’)\]]*(?=\s|$)")
_ABBREVIATION = re.compile(r"\b(?:[A-HJ-Z]|Mr|Mrs|Ms|Dr|Prof|St|Jr|Sr|vs|e\.g|i\.e|approx|Fig)$")
_CHOICES = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
_POSTSCRIPTS = {"P.P.S": r"p\.\s?p\.\s?s", "P.S.": r"p\.\s?s\."}


def related(relation: str, count: int, bound: int) -> bool:
    """Whether a count is "at least" or "less than" its bound. Raises ValueError for another relation."""
    if relation not in _RELATIONS:
        raise ValueError(f"relation is {relation!r}: it must be one of {', '.join(_RELATIONS)}")
    return _RELATIONS[relation](count, bound)


def _occurrences(word: str, text: str) -> int:
    """How often the word stands in the text, inside other words too, whatever its case."""
    return len(re.findall(re.escape(word), text, re.IGNORECASE))


def _has_word(word: str, text: str) -> bool:
    return re.search(rf"\b{re.escape(word)}\b", text, re.IGNORECASE) is not None


def count_sentences(text: str) -> int:
    """Sentences end with ., ! or ? before white space, unless an abbreviation or an initial ends there; what follows the
    last end is one more."""
    ends = [
        match.end()
        for match in _SENTENCE_END.finditer(text)
        if not (match[0] == "." and _ABBREVIATION.search(text[max(0, match.start() - 8) : match.start()]))
    ]
    return len(ends) + bool(text[ends[-1] if ends else 0 :].strip())


def _paragraphs_by_stars(text: str, num_paragraphs: int) -> bool:
    """Paragraphs stand between lines of ***; the first and the last may be empty."""
    first, *middle = re.split(r"\s?\*\*\*\s?", text)
    *inner, last = middle or [""]
    return all(map(str.strip, inner)) and len([p for p in (first, *inner, last) if p.strip()]) == num_paragraphs


def _paragraph_begins(text: str, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    """There are so many paragraphs, with empty lines between them, and the nth begins with the word."""
    paragraphs = text.split("\n\n")
    within = 0 < nth_paragraph <= min(len(paragraphs), num_paragraphs)
    if not within or not (nth := paragraphs[nth_paragraph - 1].strip()):
        return False
    word = re.split(r"[.,?!'\"]", nth.split()[0].lstrip("'").lstrip('"'))[0]
    return sum(bool(p.strip()) for p in paragraphs) == num_paragraphs and word.lower() == first_word.lower()


def _bullets(text: str, num_bullets: int) -> bool:
    stars, dashes = (re.findall(pattern, text, re.MULTILINE) for pattern in (r"^[^\S\n]*\*[^\*]", r"^[^\S\n]*-"))
    return len(stars) + len(dashes) == num_bullets


def _highlights(text: str, num_highlights: int) -> bool:
    """*single* and **double** stars around text."""
    single = [found.strip("*") for found in re.findall(r"\*[^\n\*]*\*", text)]
    double = [found.removeprefix("**").removesuffix("**") for found in re.findall(r"\*\*[^\n\*]*\*\*", text)]
    return sum(bool(found.strip()) for found in (*single, *double)) >= num_highlights


def _sections(text: str, section_spliter: str, num_sections: int) -> bool:
    return len(re.findall(rf"\s?{re.escape(section_spliter)}\s?\d+\s?", text)) >= num_sections


def _is_json(text: str) -> bool:
    for fence in ("```json", "```Json", "```JSON", "```"):
        text = text.strip().removeprefix(fence)
    try:
        json.loads(text.removesuffix("```").strip())
    except (ValueError, RecursionError):
        return False
    return True


def _has_title(text: str) -> bool:
    return any(found.lstrip("<").rstrip(">").strip() for found in re.findall(r"<<[^\n]+>>", text))


def _two_responses(text: str) -> bool:
    """Two different responses with six stars between them, which may also stand at the ends."""
    first, *rest = text.split("******")
    *inner, last = rest or [""]
    found = [part.strip() for part in (first, *inner, last) if part.strip()]
    return all(map(str.strip, inner)) and len(found) == 2 and found[0] != found[1]


def _has_postscript(text: str, postscript_marker: str) -> bool:
    marker = _POSTSCRIPTS.get(postscript_marker, re.escape(postscript_marker.lower()))
    return re.search(marker, text.lower()) is not None


def _existing(text: str, keywords: Sequence[str]) -> bool:
    return all(_occurrences(word, text) for word in keywords)


def _forbidden(text: str, forbidden_words: Sequence[str]) -> bool:
    return not any(_has_word(word, text) for word in forbidden_words)


def _word_frequency(text: str, keyword: str, frequency: int, relation: str) -> bool:
    return related(relation, _occurrences(keyword, text), frequency)


def _letter_frequency(text: str, letter: str, let_frequency: int, let_relation: str) -> bool:
    return related(let_relation, text.lower().count(letter.lower()), let_frequency)


def _words(text: str, num_words: int, relation: str) -> bool:
    return related(relation, len(re.findall(r"\w+", text)), num_words)


def _sentences(text: str, num_sentences: int, relation: str) -> bool:
    return related(relation, count_sentences(text), num_sentences)


def _ends(text: str, end_phrase: str) -> bool:
    return text.strip().strip('"').lower().endswith(end_phrase.strip().lower())


def _repeats(text: str, prompt_to_repeat: str) -> bool:
    return text.strip().lower().startswith(prompt_to_repeat.strip().lower())


def _placeholders(text: str, num_placeholders: int) -> bool:
    return len(re.findall(r"\[.*?\]", text)) >= num_placeholders


def _is_quoted(text: str) -> bool:
    return len(text.strip()) > 1 and text.strip()[0] == text.strip()[-1] == '"'


KINDS: Mapping[str, Callable[..., bool]] = {
    "keywords:existence": _existing,
    "keywords:forbidden_words": _forbidden,
    "keywords:frequency": _word_frequency,
    "keywords:letter_frequency": _letter_frequency,
    "length_constraints:number_words": _words,
    "length_constraints:number_sentences": _sentences,
    "length_constraints:number_paragraphs": _paragraphs_by_stars,
    "length_constraints:nth_paragraph_first_word": _paragraph_begins,
    "detectable_content:number_placeholders": _placeholders,
    "detectable_content:postscript": _has_postscript,
    "detectable_format:constrained_response": lambda text: any(choice in text for choice in _CHOICES),
    "detectable_format:json_format": _is_json,
    "detectable_format:multiple_sections": _sections,
    "detectable_format:number_bullet_lists": _bullets,
    "detectable_format:number_highlighted_sections": _highlights,
    "detectable_format:title": _has_title,
    "combination:repeat_prompt": _repeats,
    "combination:two_responses": _two_responses,
    "startend:end_checker": _ends,
    "startend:quotation": _is_quoted,
    "change_case:english_capital": str.isupper,
    "change_case:english_lowercase": str.islower,
    "punctuation:no_comma": lambda text: "," not in text,
}
