"""Answers in words: names, choice letters, orderings; and what no answer may contain."""

from __future__ import annotations

import re

from rewards.mathematics.comparison import Comparison
from rewards.mathematics.normalise import NUMBER_WORDS, text_key
from rewards.verdict import Verdict, right, wrong

# What asks a question instead of answering it.
_QUESTION = re.compile(
    r"\\(int|iint|iiint|oint|sum|prod|lim|det|gcd|lcm|max|min|sup|inf|bmod|mod|pmod|nabla|partial)(?![A-Za-z])"
    r"|\\begin\{[vV](matrix)\}|(?<!\d)(?<!\d )\\text\{\s*(gcd|lcm|det|max|min|lim|mod)\s*\}|\\frac\s*\{\s*d\s*\}\s*\{\s*d(\w)|(?<![\\A-Za-z])(gcd|lcm|det)(?![A-Za-z])"
)
_HEDGE = re.compile(r"\?|\\approx|\\sim|\\ldots|\.\.\.")
_CHOICE = re.compile(r"[(\[]? ?(?:(?:[Oo]ption|[Cc]hoice) )?\(? ?([A-Za-z]) ?\)? ?[.:]? ?[)\]]?")
_CHOICE_WITH_TEXT = re.compile(r"(?:\( ?([A-Z]) ?\)|([A-Z]) ?[.:)])[ :.)]*(.+)")
# The text of an option takes nothing back and names no other: a letter that stands alone, unless it is the article.
_OTHER_CHOICE = re.compile(
    r".*\( ?[A-Z] ?\)|(?:or|and|is|not|maybe|if|also)(?![A-Za-z])|[A-Z][ .:)]*$|[a-h]$|,"
    r"|(?:.*[^A-Za-z\\_^'])?[A-H](?![A-Za-z'_^])(?: ?[.:),;]|$| (?:or|and|is)(?![A-Za-z]))"
    r"|.*(?:,|;|or|and|also|not) [A-H](?![A-Za-z'_^])(?! [a-z]{2})"
)
_SEVERAL_CHOICES = re.compile(r"[A-H](?: ?(?:,|;|,? ?and)? ?[A-H])+")
_TEXT = re.compile(r"\\text\s*\{([^{}]*)\}")
_WORDS = re.compile(r"[^\W\d_](?:[^\W\d_]|[' ,.\-])*")
_NO_SOLUTION = re.compile("(?:there(?:is|are))?no(?:real)?solutions?(?:exists?)?|(?:the)?emptyset")
_ALL_REALS = re.compile("allreal(?:number)?s")
_ARTICLE = re.compile(r"^(?:an?|the) (?=[a-z]{3})", re.IGNORECASE)
_SHORT_WORD = re.compile(r"(?=[a-z]*[aeiou])[a-z]{3}")
_EMPTY = frozenset([r"\emptyset", r"\{\}"])


def compare_text(answer: str, reference: str, comparison: Comparison) -> Verdict | None:
    """The same text is the same answer, however large the number it names."""
    if comparison.trust_text and text_key(answer) == text_key(reference):
        return right("equal as text")
    return None


def reject_unanswered(answer: str, reference: str, comparison: Comparison) -> Verdict | None:
    """Hedges, and integrals, sums or determinants that the reference does not have: the question is not its answer."""
    if not answer:
        return wrong("empty")
    if _HEDGE.search(answer) and not _HEDGE.search(reference):
        return wrong("not one definite answer")
    asked = {match[0] for match in _QUESTION.finditer(answer)}
    if asked - {match[0] for match in _QUESTION.finditer(reference)}:
        return wrong(f"not evaluated: {min(asked)[:20]}")
    return None


def words(answer: str, reference: str, comparison: Comparison) -> Verdict | None:
    """A reference in words is compared as text: without case, spacing and punctuation, letters in their order."""
    letter = _choice(reference)
    if letter and (letter.isupper() or "\\text" in reference):
        return _compare_choice(answer, letter, comparison)
    chosen = _choices(answer), _choices(reference)
    if all(chosen):
        return right("the same choices") if chosen[0] == chosen[1] else wrong("other choices")
    said, expected = _as_words(answer), _as_words(reference)
    if _is_empty_set(answer, said) and _is_empty_set(reference, expected):
        return right("no solution")
    if any(word and _ALL_REALS.fullmatch(word) for word in (said, expected)) and said != expected:
        return None  # a set, in words
    if said in NUMBER_WORDS or expected in NUMBER_WORDS:
        return (
            comparison.compare(_in_digits(answer, said), _in_digits(reference, expected))
            if said != expected
            else right("equal words")
        )
    if expected is None:
        return wrong("words for a value") if said is not None and not _choice(answer) else None
    if said is None and _SHORT_WORD.fullmatch(reference):
        return None  # abe may be a word or a product
    return right("equal words") if said == expected else wrong("other words")


def _is_empty_set(text: str, said: str | None) -> bool:
    return bool(said and _NO_SOLUTION.fullmatch(said)) or text.replace(" ", "") in _EMPTY


def _in_digits(text: str, word: str | None) -> str:
    return NUMBER_WORDS.get(word or "", text)


def _as_words(text: str) -> str | None:
    r"""The bare letters of a phrase, None for mathematics. BCA and \text{abc} are words; xy is a product."""
    plain = _TEXT.sub(r" \1 ", text)
    bare = _ARTICLE.sub("", plain.strip())
    if not _WORDS.fullmatch(bare):
        return _words_with_numbers(text)
    marked = "\\text" in text and not re.search(r"[A-Za-z]", _TEXT.sub("", text))
    runs = re.findall(r"[^\W\d_]+", bare)
    if not bare.isascii():
        return "".join(runs).casefold()
    longest = max(map(len, runs))
    if "," in bare and not marked:
        return None  # a list of variables
    if (
        marked
        or longest >= 4
        or (bare.isupper() and longest >= 2)
        or bare.lower() == "no"
        or _SHORT_WORD.fullmatch(bare.lower())
    ):
        return "".join(runs).lower()
    return None


def _words_with_numbers(text: str) -> str | None:
    r"""October 30, all in one \text{}: more words than a unit after a number."""
    match = re.fullmatch(r"\\text\s*\{([A-Za-z][^{}\\=<>]*)\}", text)
    return re.sub(r"[^A-Za-z0-9]", "", match[1]).lower() if match else None


def _choice(text: str) -> str | None:
    match = _CHOICE.fullmatch(_without_text(text))
    return match[1] if match else None


def _choices(text: str) -> str | None:
    """AC of several choices, which may also be written A, C. In another order than the alphabet's letters are no choices."""
    match = _SEVERAL_CHOICES.fullmatch(_without_text(text))
    letters = "".join(re.findall("[A-H]", match[0])) if match else ""
    return letters if letters and list(letters) == sorted(set(letters)) else None


def _without_text(text: str) -> str:
    return " ".join(_TEXT.sub(r" \1 ", text).split())


def _compare_choice(answer: str, letter: str, comparison: Comparison) -> Verdict | None:
    given = _choice(answer)
    if given is None:
        with_text = _CHOICE_WITH_TEXT.fullmatch(_without_text(answer))
        if not with_text or _OTHER_CHOICE.match(with_text[3]):
            return None if re.search(r"[=+*^_\\]", answer) and "\\text" not in answer else wrong("no choice letter")
        given = with_text[1] or with_text[2]
    if comparison.policy.ignore_letter_case:
        given, letter = given.upper(), letter.upper()
    return right("choice letter") if given == letter else wrong("other letter")
