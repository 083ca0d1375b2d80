"""Splits a value from its unit, currency, degree or percent sign, and reads units."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, replace
from fractions import Fraction

from rewards.mathematics.vocabulary import NO_LAST_WORDS, NUMBER_WORDS, OPERATION_WORDS, SENTENCE_WORDS

# dimension: names = size in the first unit of the dimension
_UNITS = """
length: m meter metre =1; km kilometer kilometre =1000; dm decimeter =1/10; cm centimeter centimetre =1/100;
 mm millimeter millimetre =1/1000; in inch inche =254/10000; ft foot feet =3048/10000; yd yard =9144/10000;
 mi mile =1609344/1000
time: s sec second =1; ms millisecond =1/1000; min minute =60; h hr hour =3600; day =86400; week wk =604800
calendar: month =1; year yr =12
mass: g gram =1; kg kilogram =1000; mg milligram =1/1000; lb pound =45359237/100000; oz ounce =45359237/1600000
volume: l liter litre =1; ml milliliter millilitre =1/1000
us volume: cup =1; pint pt =2; quart qt =4; gallon gal =16
money: dollar usd buck =1; cent =1/100
euro: euro eur =1
sterling: sterling gbp =1
yen: yen jpy =1
rupee: rupee inr =1
angle: degree deg =1
radian: radian rad =1
celsius: celsius =1
fahrenheit: fahrenheit =1
"""
_SYMBOLS = {
    **{"\\$": "dollar", "$": "dollar", "US\\$": "dollar", "US$": "dollar", "USD": "dollar", "¢": "cent"},
    **{
        "€": "euro",
        "EUR": "euro",
        "£": "sterling",
        "GBP": "sterling",
        "¥": "yen",
        "₹": "rupee",
        "₽": "ruble",
        "₩": "won",
    },
}
_SCALES = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_SCALES |= {"百万": 10**6, "千万": 10**7, "百": 10**2, "千": 10**3, "万": 10**4, "亿": 10**8}
SCALE = re.compile(rf"\s*({'|'.join(_SCALES)})(?![A-Za-z])", re.IGNORECASE)
_SHORTHAND = {"mph": "mile per hour", "kph": "km per hour", "kmh": "km per hour", "sq": "square", "cu": "cubic"}
_APOSTROPHE = re.compile(r"(?<=[A-Za-z])'(?=[A-Za-z])")
_POWER_WORDS = {"square": 2, "squared": 2, "cubic": 3, "cubed": 3}
_PERCENT = re.compile(
    r"\s?(?:\\?%|(?:\\text\{\s?)?(?:percent(?:age)?(?: points?)?|per cent|pct\.?|\\?%)(?:\s?\})?)$", re.IGNORECASE
)
_TEMPERATURE = re.compile(r"\^\s*(?:\{\s*\\circ\s*\}|\\circ)\s*(?:\\text\{\s*)?([CF])(?:\s*\})?$")
_CIRCLE = re.compile(r"\^\s*(?:\{\s*\\circ\s*\}|\\circ)$")
# A unit phrase. Its parts are always separated, because a repeated group that can match a text in two ways takes
# exponential time. Normalised text has single spaces.
_EXPONENT = r"(?:\s?\^\s?(?:\{\s?-?\d\s?\}|-?\d))?"
_MARKED = rf"\\text\{{[^{{}}]*(?:\{{[^{{}}]*\}}[^{{}}]*)?\}}{_EXPONENT}"
_TEXT_UNIT = re.compile(rf"\s?(?:(?:/|\\cdot)\s?)?{_MARKED}(?:\s?(?:(?:/|\\cdot)\s?)?{_MARKED}){{0,5}}\s?$")
_BARE = rf"[A-Za-z]+\.?{_EXPONENT}"
_BARE_UNIT = re.compile(rf"(?<=[\d}})\s])(?:(?:/|\\cdot)\s?)?{_BARE}(?:(?:\s?(?:/|\\cdot)\s?|\s){_BARE}){{0,5}}$")
_LETTERS_OR_UNIT = frozenset(["hr", "mg", "ms", "ml", "lb", "mi", "pt"])
_PLAIN_VALUE = re.compile(r"-? ?(?:[\d.,]+|\d* ?\\frac ?\{?\d+\}? ?\{?\d+\}?|\d+/\d+) ?")
_SMALL_WORDS = frozenset(["of", "a", "an", "in", "per", "the"])
_NOUN = re.compile(r"(?=[a-z]*[aeiou])[a-z]{3,}", re.IGNORECASE)  # apples, and not xyz
_WORD = re.compile(r"([^\W\d_]+)\.?|(/)|\^\s*\{?\s*(-?\d)\s*\}?|(-|\s|\\cdot|\*|\\ )")


@dataclass(frozen=True)
class Unit:
    size: Fraction
    dimensions: frozenset[tuple[str, int]]
    known: bool
    numbers: frozenset[str] = frozenset()  # number words in the phrase, such as dozen or tenths


@dataclass(frozen=True)
class Quantity:
    value: str
    unit: Unit | None = None
    percent: bool = False
    scale: int = 1  # factor of the value: 10^6 in 5 million


def _read_table() -> dict[str, tuple[str, Fraction]]:
    table = {}
    for line in _UNITS.replace("\n ", " ").strip().splitlines():
        dimension, _, entries = line.partition(":")
        for entry in entries.split(";"):
            names, _, size = entry.partition("=")
            table.update({name: (dimension, Fraction(size)) for name in names.split()})
    return table


_TABLE = _read_table()


def quantity(text: str, *, bare_letters: bool = False) -> Quantity:
    r"""`text` split into value, unit, percent sign and scale.

    A word outside \text{} is a unit if it is a known unit of more than one letter (5 cm, but not 5m, which may be a
    product), or a noun after a space (5 apples). bare_letters: the other side has a unit, so single letters count too.
    """
    sign, rest = ("-", text[1:].lstrip()) if text[:1] == "-" else ("", text)
    for symbol, name in _SYMBOLS.items():
        if rest.startswith(symbol) and len(rest) > len(symbol):
            rest = rest.removeprefix(symbol).strip()
        elif rest.endswith(symbol) and len(rest) > len(symbol):
            rest = rest.removesuffix(symbol).strip()
        else:
            continue
        inner = _without_currency(sign + rest, bare_letters)
        return replace(inner, unit=inner.unit or read_unit(name))
    return _without_currency(text, bare_letters)


def _without_currency(text: str, bare_letters: bool) -> Quantity:
    percent = _PERCENT.search(text)
    if percent and percent.start() > 0:
        return Quantity(text[: percent.start()].strip(), percent=True)
    for pattern in (_TEMPERATURE, _CIRCLE):
        match = pattern.search(text)
        if (
            match
            and match.start() > 0
            and "\\" not in text[: match.start()].replace("\\frac", "").replace("\\sqrt", "")
        ):
            name = {"C": "celsius", "F": "fahrenheit"}[match[1]] if pattern is _TEMPERATURE else "degree"
            return Quantity(text[: match.start()].strip(), read_unit(name))
    return _trailing_unit(text, bare_letters)


def _trailing_unit(text: str, bare_letters: bool) -> Quantity:
    match = _TEXT_UNIT.search(text)
    bare = match is None
    match = match or _BARE_UNIT.search(text)
    if not match or match.start() == 0:
        return Quantity(text)
    words = re.sub(r"\\text\{([^{}]*(?:\{[^{}]*\}[^{}]*)?)\}", r" \1 ", match[0])
    scale = SCALE.match(words)
    words = words[scale.end() :] if scale else words
    unit, value = read_unit(words), text[: match.start()]
    if unit is None or (bare and not (scale or _is_bare_unit(match[0], unit, bare_letters, value))):
        return Quantity(text)
    return Quantity(
        value.strip(),
        unit if unit.dimensions else None,
        scale=_SCALES[scale[1].lower()] if scale else 1,
    )


def _is_bare_unit(words: str, unit: Unit, bare_letters: bool, value: str) -> bool:
    r"""Whether words outside of \text{} are a unit. Letters that could be variables, as in m g h, 1/s or 2mg, are one
    only after a number and a space, as in 5 mg or 9.8 m/s, or if the other side has a unit (`bare_letters`)."""
    names = re.findall(r"(?<![\\A-Za-z])[A-Za-z]+", words)
    if not unit.known:
        return re.search(r"[\d.})] $", value) is not None and all(
            _NOUN.fullmatch(name) or name in _SMALL_WORDS for name in names
        )
    starts_with_operator = re.match(r"\s*(?:/|\\cdot|\*)", words) is not None
    if not all(len(name) == 1 or name in _LETTERS_OR_UNIT for name in names):
        return True
    if starts_with_operator or not _PLAIN_VALUE.fullmatch(value):
        return False
    return bare_letters or (value.endswith(" ") and (len(names[0]) > 1 or "/" in words))


def read_unit(text: str) -> Unit | None:
    """The unit that a phrase names, None if it names none. An unknown noun is a unit with a dimension of its own."""
    text = _APOSTROPHE.sub("", text.strip().rstrip("."))  # o'clock
    for short, long in _SHORTHAND.items():
        text = re.sub(rf"\b{short}\b\.?", long, text)
    size, dimensions, known, numbers, word = Fraction(1), Counter[str](), True, set[str](), ""
    side, pending, last, pos = 1, 1, None, 0
    while pos < len(text):
        match = _WORD.match(text, pos)
        if not match:
            return None
        pos = match.end()
        word = (match[1] or "").lower()
        singular = word.removesuffix("s")
        if word in SENTENCE_WORDS or word in OPERATION_WORDS or singular in _SCALES:
            return None
        numbers.update({word, singular} & NUMBER_WORDS)
        if match[2] or word == "per":
            side = -1
        elif match[3] and last:
            extra = int(match[3]) - 1
            dimensions[last[0]] += side * extra
            size *= last[1] ** (side * extra)
        elif word in _POWER_WORDS and not word.endswith("ed"):
            pending = _POWER_WORDS[word]
        elif word in _POWER_WORDS and last is None:
            return None  # "5 squared" squares the number itself
        elif word in _POWER_WORDS and last:
            dimensions[last[0]] += side * (_POWER_WORDS[word] - 1)
            size *= last[1] ** (side * (_POWER_WORDS[word] - 1))
        elif word:
            last = _lookup(word)
            known &= last[0] != word and not last[0].startswith("?")
            dimensions[last[0]] += side * pending
            size *= last[1] ** (side * pending)
            pending = 1
    if word in NO_LAST_WORDS or pending != 1:
        return None
    # The word "units" has no dimension, so it contradicts no other unit.
    named = frozenset((d, n) for d, n in dimensions.items() if n and d != "?unit")
    return Unit(size, named, known, frozenset(numbers))


def _lookup(word: str) -> tuple[str, Fraction]:
    singular = word[:-1] if word.endswith("s") and len(word) > 2 else word
    return _TABLE.get(word) or _TABLE.get(singular) or ("?" + singular, Fraction(1))


def compatible(answer: Unit | None, reference: Unit | None) -> bool:
    """Whether the answer's unit is compatible with the reference's. A missing unit is; phrases of unknown nouns are if
    they share a word (red marbles and marbles); a unit with a number word that the reference lacks (dozen) is not."""
    if answer is not None and not answer.numbers <= (frozenset() if reference is None else reference.numbers):
        return False
    if answer is None or reference is None:
        return True
    if answer.known and reference.known:
        return answer.dimensions == reference.dimensions
    return bool({name for name, _ in answer.dimensions} & {name for name, _ in reference.dimensions})
