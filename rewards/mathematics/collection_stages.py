"""Stages for lists, sets, tuples and matrices, compared element by element, and for numbers compared as written."""

from __future__ import annotations

import re
from dataclasses import replace

from rewards.mathematics.comparison import Comparison
from rewards.mathematics.expression import TooLarge, Unreadable
from rewards.mathematics.latex_parser import parse
from rewards.mathematics.normalise import NUMBER_WORDS, text_key
from rewards.mathematics.rational import literal_value
from rewards.mathematics.structure import Elements, elements, enclosed, factor_of_matrix, matrix, split
from rewards.verdict import Verdict, right, wrong

_BASE = re.compile(
    r"\(? ?(-?(?:\d[0-9A-Fa-f]*|[A-Fa-f]+\d[0-9A-Fa-f]*|[A-Fa-f]{2,})(?:\.[0-9A-Fa-f]+)?) ?\)?"
    r" ?(?:_ ?\{? ?\(?|\(? ?(?:in )?base )(?: ?base )? ?(\w+) ?\)? ?\}?"
)
_SUBSCRIPT = re.compile(r"_ ?(?:\{[^{}]*\}|\w)")
_LABEL = re.compile(r"(?:[^=\d]*=)+(?=[^=]*$)")
_TEXT = re.compile(r"\\text\{([^{}]*)\}")
_MAX_COMPARISONS = 10_000  # of two elements
_COLONS = re.compile(r"([\d.]+(?: ?: ?[\d.]+)+) ?([AaPp]\.? ?[Mm]\.?)?")


def compare_written(answer: str, reference: str, comparison: Comparison) -> Verdict | None:
    """Compares numbers in a base, clock times and ratios as they are written: the ratio 4:15 is not 8:30. An answer
    without a base is read in the base of the reference."""
    answer, reference = _without_text(answer), _without_text(reference)
    given, expected = _in_base(answer), _in_base(reference)
    if expected:
        digits = given[1] if given else answer
        same_base = given is None or _base(given[2]) == _base(expected[2])
        return (
            right("the same digits")
            if same_base and digits.upper() == expected[1].upper()
            else wrong("different digits or base")
        )
    if given:
        return wrong("the answer has a base and the reference has none")
    expected = _COLONS.fullmatch(_without_label(reference))
    given = _COLONS.fullmatch(_without_label(answer.replace(" to ", ":") if expected else answer))
    if not given and not expected:
        return None
    if not given or not expected or (given[2] and expected[2] and given[2][0].lower() != expected[2][0].lower()):
        return wrong("not the same time or ratio")
    same = re.sub(r"^0+(?=\d)|\s", "", given[1]) == re.sub(r"^0+(?=\d)|\s", "", expected[1])
    return right("the same time or ratio") if same else wrong("a different time or ratio")


def compare_matrices(answer: str, reference: str, comparison: Comparison) -> Verdict | None:
    """Compares matrices cell by cell. The kind of bracket does not matter, a column may be written as a tuple, and a
    factor may precede the matrix."""
    if "\\begin" not in answer + reference:
        return None
    (given, scaled), (expected, _) = _rows(answer), _rows(reference)
    if given is None or expected is None:
        return wrong("not a matrix") if expected is not None else None
    same = [len(row) for row in given] == [len(row) for row in expected] and all(
        comparison.compare(cell, other, unevaluated=scaled or None).is_correct
        for row, others in zip(given, expected)
        for cell, other in zip(row, others)
    )
    return right("the same matrix") if same else wrong("a different matrix")


def compare_elements(answer: str, reference: str, comparison: Comparison) -> Verdict | None:
    """Compares sets and lists without order, tuples in order and with their brackets. {5} equals 5, while 4, 5 does
    not. Between two sets repeated elements do not count."""
    given, expected = elements(answer) or _named_tuple(answer), elements(reference) or _named_tuple(reference)
    if given is None and expected is None:
        return None
    if comparison.policy.decimal_comma and expected is None and re.fullmatch(r"-?\d+,\d+", answer):
        return comparison.compare(answer.replace(",", "."), reference)
    given, expected = given or Elements("set", (answer,)), expected or Elements("set", (reference,))
    if given.kind == expected.kind == "set":
        comparison = replace(comparison, policy=replace(comparison.policy, count_repeats=False))
    if len(given.items) != len(expected.items) and comparison.policy.count_repeats:
        return wrong(f"{len(given.items)} values instead of {len(expected.items)}")
    if len(given.items) == len(expected.items) == 1:
        return comparison.compare(given.items[0], expected.items[0])
    return _compare_named(given, expected, comparison) or _compare_kinds(given, expected, comparison)


def _compare_named(given: Elements, expected: Elements, comparison: Comparison) -> Verdict | None:
    """Compares values with names, as in x = 1, y = 2: by name if both have names, in alphabetical order of the names if
    the other is a tuple."""
    given_by_name, expected_by_name = _assignments(given), _assignments(expected)
    if given_by_name and expected_by_name:
        same = given_by_name.keys() == expected_by_name.keys() and comparison.all_equal(
            [given_by_name[name] for name in sorted(given_by_name)],
            [expected_by_name[name] for name in sorted(given_by_name)],
        )
        return right("the same named values") if same else wrong("different named values")
    if given_by_name and expected.brackets == "()":
        same = comparison.all_equal([given_by_name[name] for name in sorted(given_by_name)], expected.items)
    elif expected_by_name and given.brackets == "()":
        same = comparison.all_equal(given.items, [expected_by_name[name] for name in sorted(expected_by_name)])
    else:
        return None
    return right("the same coordinates") if same else wrong("different coordinates")


def _named_tuple(text: str) -> Elements | None:
    """The list x = 1, y = 2 for (x, y) = (1, 2); None for any other text."""
    sides = [enclosed(side) for side in split(text, ("=",))[0]]
    if len(sides) != 2 or not all(side and side[0] == "(" for side in sides):
        return None
    names, values = (split(side[1], (",",))[0] for side in sides if side)
    if len(names) != len(values):
        return None
    return Elements("list", tuple(f"{name}={value}" for name, value in zip(names, values)))


def _assignments(collection: Elements) -> dict[str, str] | None:
    pairs = [re.fullmatch(r"([A-Za-z](?:_\{?\w\}?)?|\\[a-z]+)\s*=\s*([^=]+)", item) for item in collection.items]
    by_name = {pair[1]: pair[2] for pair in pairs if pair}
    return by_name if len(by_name) == len(collection.items) > 1 and collection.kind == "list" else None


def _compare_kinds(given: Elements, expected: Elements, comparison: Comparison) -> Verdict:
    kinds = {given.kind, expected.kind}
    if kinds == {"tuple", "list"} and comparison.policy.brackets_optional:
        return _verdict(comparison.all_equal(given.items, expected.items))
    if kinds == {"tuple"}:
        if given.brackets != expected.brackets:
            return wrong("different brackets")
        return _verdict(comparison.all_equal(given.items, expected.items))
    if "tuple" in kinds:
        return wrong("one of the two is ordered and the other is not")
    same = _contains(given.items, expected.items, comparison)
    if not comparison.policy.count_repeats:
        return _verdict(same and _contains(expected.items, given.items, comparison))
    return _verdict(same)


def _contains(given: tuple[str, ...], expected: tuple[str, ...], comparison: Comparison) -> bool:
    """Whether each given item equals an expected one, a different one each if repeats count. Items with equal text or
    value are matched first, so that only the rest needs comparing pairwise."""
    counts = comparison.policy.count_repeats
    remaining: dict[object, list[str]] = {}
    for other in expected:
        remaining.setdefault(_key(other), []).append(other)
    unlike = []
    for item in given:
        alike = remaining.get(_key(item))
        if not alike or not (comparison.trust_text or comparison.compare(item, alike[-1]).is_correct):
            unlike.append(item)
        elif counts:
            alike.pop()
    left = [other for others in remaining.values() for other in others]
    if len(unlike) * len(left) > _MAX_COMPARISONS:
        return False
    for item in unlike:
        found = next((index for index, other in enumerate(left) if comparison.compare(item, other).is_correct), None)
        if found is None:
            return False
        if counts:
            left.pop(found)
    return True


def _key(item: str) -> object:
    number = literal_value(item)
    return text_key(item) if number is None else number


def _rows(text: str) -> tuple[list[list[str]] | None, bool]:
    """The cells of a matrix, of a tuple as a column or of a list of lists; and whether they include a factor."""
    factor, without_factor = factor_of_matrix(text)
    rows = matrix(without_factor)
    if rows is not None and factor and not _is_expression(factor):  # words such as "not" or "maybe"
        return None, False
    if rows is not None:
        return (
            ([[f"({factor})({cell})" if cell != "0" else cell for cell in row] for row in rows], True)
            if factor
            else (rows, False)
        )
    collection = elements(text)
    if collection and collection.brackets == "()":
        return [[item] for item in collection.items], False
    if collection and collection.brackets == "[]":
        lists = [elements(item) for item in collection.items]
        if all(row and row.brackets == "[]" for row in lists):
            return [list(row.items) for row in lists if row], False
    return None, False


def _is_expression(text: str) -> bool:
    try:
        parse(text)
    except (Unreadable, TooLarge):
        return False
    return True


def _without_text(text: str) -> str:
    return " ".join(_TEXT.sub(r"\1", text).split())


def _in_base(text: str) -> re.Match[str] | None:
    """A numeral with its base, None for any other text. Letters are digits only in bases above ten: a_1 is a name."""
    match = _BASE.fullmatch(text)
    if match is None or not re.search("[A-Za-z]", match[1]):
        return match
    base = _base(match[2])
    return match if base.isdecimal() and (base == "16" or (int(base) > 10 and re.search(r"\d", match[1]))) else None


def _without_label(text: str) -> str:
    """The ratio in a labelled one: 7:32 for x:y = 7:32 and for S_1:S_2 = 7:32."""
    if ":" not in text or "=" not in text:
        return text
    label = _LABEL.match(_SUBSCRIPT.sub("", text))
    return text.rpartition("=")[2].strip() if label else text


def _base(text: str) -> str:
    return NUMBER_WORDS.get(text.lower(), text)


def _verdict(same: bool) -> Verdict:
    return right("the same elements") if same else wrong("different elements")
