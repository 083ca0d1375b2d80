"""Plain data is passed unchanged, and no data that is sent can do harm."""

from __future__ import annotations

import collections
import contextlib
import datetime
import json
import math
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.sandbox.values import NotPlain, TooLarge, decode, encode


def _fixed(moment: datetime.datetime) -> datetime.datetime:
    """The value with an offset instead of the name of a time zone."""
    offset = moment.utcoffset()
    return moment if offset is None else moment.replace(tzinfo=datetime.timezone(offset))


HASHABLE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary() | st.complex_numbers(allow_nan=False)
    | st.decimals(allow_nan=False) | st.fractions() | st.dates() | st.times() | st.datetimes(timezones=st.timezones() | st.none()).map(_fixed),
    lambda inner: st.lists(inner, max_size=3).map(tuple) | st.frozensets(inner, max_size=3),
    max_leaves=5,
)  # fmt: skip
VALUES = st.recursive(
    HASHABLE | st.sets(HASHABLE, max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(HASHABLE, inner, max_size=3),
    max_leaves=10,
)
JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3)
    | st.fixed_dictionaries({"type": st.sampled_from(["tuple", "set", "dict", "int", "float", "complex", "bytes", "Decimal", "Fraction", "date", "datetime", "time", "kept"]) | inner, "value": inner})
    | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=8,
)  # fmt: skip


def _same(a: Any, b: Any) -> bool:
    """Whether both are equal and of the same types throughout, which repr shows for plain data, except for order."""
    if isinstance(a, set | frozenset):
        return type(a) is type(b) and {(type(x), x) for x in a} == {(type(x), x) for x in b}
    if isinstance(a, dict):
        return type(b) is dict and all(_same(x, y) for x, y in zip(a.items(), b.items(), strict=True))
    if isinstance(a, list | tuple):
        return type(a) is type(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    return type(a) is type(b) and (a == b)


@given(VALUES)
def test_a_value_keeps_its_types(value: Any) -> None:
    assert _same(value, decode(json.loads(json.dumps(encode(value), allow_nan=False))))


def test_a_fraction_is_decoded_in_bounded_time() -> None:
    large = {"type": "int", "value": hex(3**400_000)}
    with pytest.raises(NotPlain, match="TooLarge"):
        decode({"type": "Fraction", "value": [large, large]})


@given(JUNK)
def test_junk_is_a_value_or_not_plain(data: Any) -> None:
    with contextlib.suppress(NotPlain):
        decode(data)


@pytest.mark.parametrize(
    "data",
    [
        {}, {"type": "set"}, {"type": [], "value": []}, {"type": "list", "value": []}, {"type": "kept", "value": 0},
        {"type": "set", "value": [[]]}, {"type": "set", "value": 1}, {"type": "tuple", "value": None}, {"type": "dict", "value": [1]},
        {"type": "dict", "value": [[1, 2, 3]]}, {"type": "dict", "value": [[[], 1]]}, {"type": "int", "value": "xyz"}, {"type": "int", "value": 1},
        {"type": "float", "value": 10**400}, {"type": "float", "value": "x"}, {"type": "float", "value": []},
        {"type": "complex", "value": []}, {"type": "complex", "value": "ab"}, {"type": "bytes", "value": "abc"}, {"type": "bytes", "value": 3},
        json.loads("[" * 200 + "]" * 200), json.loads('{"type": "tuple", "value": [' * 200 + "]}" * 200),
    ],
    ids=lambda data: str(data)[:40],
)  # fmt: skip
def test_forged_data_is_not_plain(data: Any) -> None:
    with pytest.raises(NotPlain):
        decode(data)


def test_numbers_that_json_cannot_represent_are_passed_too() -> None:
    big = 7**5000
    assert decode(json.loads(json.dumps(encode([big, -big, math.inf, -math.inf])))) == [big, -big, math.inf, -math.inf]
    assert math.isnan(decode(encode(math.nan)))


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (collections.Counter("aab"), {"a": 2, "b": 1}),
        (collections.namedtuple("P", "x y")(1, 2), (1, 2)),
        (type("L", (list,), {"__iter__": lambda self: iter([9]), "__len__": lambda self: 9})([1]), [1]),
        (type("D", (dict,), {"items": lambda self: [(9, 9)]})({1: 2}), {1: 2}),
        (type("S", (str,), {"__str__": lambda self: "9", "__len__": lambda self: -1})("a"), "a"),
        (type("I", (int,), {"__index__": lambda self: 9, "__int__": lambda self: 9})(1), 1),
        (type("F", (float,), {"__float__": lambda self: 9.0})(1.5), 1.5),
        (type("T", (set,), {"__iter__": lambda self: iter([9])})([1]), {1}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_object_of_a_subclass_becomes_its_plain_data(value: Any, plain: Any) -> None:
    assert _same(decode(encode(value)), plain)


SELF: list[Any] = []
SELF += [SELF, SELF]


@pytest.mark.parametrize(
    "value", [SELF, ["x" * 1_100_000], [0] * 1_100_000, 1 << 5_000_000, bytes(600_000)], ids=["itself", "text", "list", "int", "bytes"]
)  # fmt: skip
def test_large_values_are_rejected_at_once(value: Any) -> None:
    start = time.monotonic()
    with pytest.raises(TooLarge):
        encode(value)
    assert time.monotonic() - start < 5.0  # of itself there are 2^50 before the depth is too great


@pytest.mark.parametrize(
    "value", [object(), print, iter([]), range(3), type, ...], ids=lambda value: type(value).__name__
)
def test_an_object_is_rejected_or_kept(value: Any) -> None:
    with pytest.raises(NotPlain):
        encode([value])
    assert decode(encode([value], lambda v: 7 if v is value else 8), lambda name: ("kept", name)) == [("kept", 7)]


@pytest.mark.parametrize("kind", ["set", "frozenset", "dict"])
def test_colliding_keys_are_rejected_at_once(kind: str) -> None:
    """Multiples of 2^61 - 1 have the hash 0: a set of 100,000 would take 5 * 10^9 comparisons."""
    keys = [(2**61 - 1) * i for i in range(1, 100_000)]
    data = {"type": kind, "value": [[key, 0] for key in keys] if kind == "dict" else keys}
    start = time.monotonic()
    with pytest.raises(NotPlain):
        decode(data)
    assert time.monotonic() - start < 5.0
