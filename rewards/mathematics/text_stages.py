"""Stages for answers in words (names, choice letters, orderings), and one that rejects hedges and unevaluated
answers."""

from __future__ import annotations

import re

from rewards.mathematics.comparison import Comparison
from rewards.mathematics.normalise import NUMBER_WORDS, text_key
from rewards.verdict import Verdict, right, wrong

# Operators that restate a question instead of answering it.
_QUESTION = re.compile(
    r"\\(int|iint|iiint|oint|sum|prod|lim|det|gcd|lcm|max|min|sup|inf|bmod|mod|pmod|nabla|partial)(?![A-Za-z])"
    r"|\\begin\{[vV](matrix)\}|(?<!\d)(?<!\d )\\text\{\s*(gcd|lcm|det|max|min|lim|mod)\s*\}|\\frac\s*\{\s*d\s*\}\s*\{\s*d(\w)|(?<![\\A-Za-z])(gcd|lcm|det)(?![A-Za-z])"
)
_HEDGE = re.compile(r"\?|\\approx|\\sim|\\ldots|\.\.\.")
_CHOICE = re.compile(r"[(\[]? ?(?:(?:[Oo]ption|[Cc]hoice) )?\(? ?([A-Za-z]) ?\)? ?[.:]? ?[)\]]?")
_CHOICE_WITH_TEXT = re.compile(r"(?:\( ?([A-Z]) ?\)|([A-Z]) ?[.:)])[ :.)]*(.+)")
# Text after a choice letter that retracts it or names another choice, by a single letter that is not an article.
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
    """Accepts equal texts without evaluating them, however large the numbers in them are."""
    if comparison.trust_text and text_key(answer) == text_key(reference):
        return right("equal as text")
    return None


def reject_unanswered(answer: str, reference: str, comparison: Comparison) -> Verdict | None:
    """Rejects empty answers, hedges, and integrals, sums or determinants that the reference does not have."""
    if not answer:
        return wrong("the answer is empty")
    if _HEDGE.search(answer) and not _HEDGE.search(reference):
        return wrong("not one definite answer")
    asked = {match[0] for match in _QUESTION.finditer(answer)}
    if asked - {match[0] for match in _QUESTION.finditer(reference)}:
        return wrong(f"not evaluated: {min(asked)[:20]}")
    return None


def compare_words(answer: str, reference: str, comparison: Comparison) -> Verdict | None:
    """Compares a reference in words as text, ignoring case, spacing and punctuation; the order of letters matters."""
    letter = _choice(reference)
    if letter and (letter.isupper() or "\\text" in reference):
        return _compare_choice(answer, letter, comparison)
    chosen = _choices(answer), _choices(reference)
    if all(chosen):
        return right("the same choices") if chosen[0] == chosen[1] else wrong("different choices")
    given, expected = _as_words(answer), _as_words(reference)
    if _is_empty_set(answer, given) and _is_empty_set(reference, expected):
        return right("no solution")
    if any(word and _ALL_REALS.fullmatch(word) for word in (given, expected)) and given != expected:
        return None  # a set of numbers in words, for compare_inequalities
    if given in NUMBER_WORDS or expected in NUMBER_WORDS:
        return (
            comparison.compare(_in_digits(answer, given), _in_digits(reference, expected))
            if given != expected
            else right("equal words")
        )
    if expected is None:
        return wrong("words instead of a value") if given is not None and not _choice(answer) else None
    if given is None and _SHORT_WORD.fullmatch(reference):
        return None  # such a reference may be a word or a product, as abe
    return right("equal words") if given == expected else wrong("different words")


def _is_empty_set(text: str, given: str | None) -> bool:
    return bool(given and _NO_SOLUTION.fullmatch(given)) or text.replace(" ", "") in _EMPTY


def _in_digits(text: str, word: str | None) -> str:
    return NUMBER_WORDS.get(word or "", text)


def _as_words(text: str) -> str | None:
    r"""The letters of a phrase, None if the text is mathematics. BCA and \text{abc} are words; xy is a product."""
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
    r"""The letters and digits of a phrase inside one \text{}, such as \text{October 30}; None for any other text."""
    match = re.fullmatch(r"\\text\s*\{([A-Za-z][^{}\\=<>]*)\}", text)
    return re.sub(r"[^A-Za-z0-9]", "", match[1]).lower() if match else None


def _choice(text: str) -> str | None:
    match = _CHOICE.fullmatch(_without_text(text))
    return match[1] if match else None


def _choices(text: str) -> str | None:
    """The letters of several choices, as in AC or A, C; None for any other text. Letters out of alphabetical order are
    not choices."""
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
            return None if re.search(r"[=+*^_\\]", answer) and "\\text" not in answer else wrong("not a choice letter")
        given = with_text[1] or with_text[2]
    if comparison.policy.ignore_letter_case:
        given, letter = given.upper(), letter.upper()
    return right("the same choice letter") if given == letter else wrong("a different choice letter")
