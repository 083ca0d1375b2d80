"""Converts values to JSON and back, to pass them between processes. Only plain data arrives, so nothing that an
untrusted process sends can execute code in the receiver.

Lists, text, numbers, booleans and None are encoded as themselves, other plain types as {"type": ..., "value": ...}.
Other objects can be passed as a key that both ends agree on (type "kept").
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable, Iterable
from decimal import Decimal
from fractions import Fraction
from typing import Any

MAX_SIZE = 1 << 20  # of a value: the number of its parts plus their characters
_MAX_DEPTH = 50
_SMALL_BITS = 4_000  # larger integers go as hexadecimal: json limits the number of decimal digits
_MAX_SAME_HASH = 1_000  # keys; each is compared with all the others
_COLLECTIONS = {"tuple": tuple, "set": set, "frozenset": frozenset}
_MAX_FRACTION_BITS = 4_000  # creating a fraction takes time quadratic in its bits
_TIMES = {"datetime": datetime.datetime, "date": datetime.date, "time": datetime.time}  # a datetime is a date


class NotPlain(ValueError):
    """The value is not plain data."""


class TooLarge(NotPlain):
    """The value is plain data, but too large."""


def encode(value: Any, keep: Callable[[Any], Any] | None = None) -> Any:
    """The value as JSON data. An object of a subclass (a Counter, a named tuple) becomes the plain data that it holds.

    keep: returns the key for an object that is not plain data; without it such an object raises NotPlain.
    """
    return _Encoder(keep or _refuse).encode(value, 0)


def decode(data: Any, kept: Callable[[Any], Any] | None = None) -> Any:
    """The value of JSON data. Raises NotPlain for any malformed data. kept: returns the object of a key."""
    try:
        return _decode(data, kept or _refuse, 0)
    except (ValueError, TypeError, LookupError, ArithmeticError) as error:
        raise NotPlain(f"not an encoded value: {type(error).__name__}") from None


def _refuse(value: Any) -> Any:
    raise NotPlain(f"a {type(value).__name__}, which is not plain data")


class _Encoder:
    def __init__(self, keep: Callable[[Any], Any]) -> None:
        self._keep, self._left = keep, MAX_SIZE

    def encode(self, value: Any, depth: int) -> Any:
        self._count(1)
        if depth > _MAX_DEPTH:
            raise TooLarge("nested too deep")
        if value is None or value is True or value is False:
            return value
        if isinstance(value, int):
            return self._integer(int.__index__(value))
        if isinstance(value, float):
            number = float.__float__(value)
            return number if math.isfinite(number) else {"type": "float", "value": repr(number)}
        if isinstance(value, str):
            self._count(str.__len__(value))
            return str.__str__(value)
        if isinstance(value, complex):
            return {"type": "complex", "value": [repr(value.real), repr(value.imag)]}
        if isinstance(value, Decimal):
            return self._written("Decimal", Decimal.__str__(value))
        if isinstance(value, Fraction):
            parts = [int.__index__(value.numerator), int.__index__(value.denominator)]
            return {"type": "Fraction", "value": [self._integer(part) for part in parts]}
        for name, kind in _TIMES.items():
            if isinstance(value, kind):
                return self._written(name, kind.isoformat(value))
        if isinstance(value, bytes | bytearray):
            self._count(2 * len(value))
            return {"type": "bytes", "value": bytes(value).hex()}
        if isinstance(value, list):
            return [self.encode(item, depth + 1) for item in list.__iter__(value)]
        if isinstance(value, dict):
            pairs = [[self.encode(k, depth + 1), self.encode(v, depth + 1)] for k, v in dict.items(value)]
            return {"type": "dict", "value": pairs}
        for name, kind in _COLLECTIONS.items():
            if isinstance(value, kind):
                return {"type": name, "value": [self.encode(item, depth + 1) for item in kind.__iter__(value)]}
        if hasattr(type(value), "tolist"):  # an array
            return self.encode(value.tolist(), depth + 1)
        return {"type": "kept", "value": self._keep(value)}

    def _written(self, name: str, text: str) -> Any:
        self._count(len(text))
        return {"type": name, "value": text}

    def _integer(self, value: int) -> Any:
        self._count(value.bit_length() // 4)
        return value if value.bit_length() <= _SMALL_BITS else {"type": "int", "value": hex(value)}

    def _count(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise TooLarge("too large")


def _decode(data: Any, kept: Callable[[Any], Any], depth: int) -> Any:
    if depth > 2 * _MAX_DEPTH:
        raise TooLarge("nested too deep")
    if isinstance(data, list):
        return [_decode(item, kept, depth + 1) for item in data]
    if not isinstance(data, dict):
        return data
    kind, content = data["type"], data["value"]
    if kind == "kept":
        return kept(content)
    if kind == "tuple":
        return tuple(_decode(item, kept, depth + 1) for item in content)
    if kind in _COLLECTIONS:
        return _COLLECTIONS[kind](_hashable(_decode(item, kept, depth + 1) for item in content))
    if kind == "dict":
        keys = _hashable(_decode(key, kept, depth + 1) for key, _ in content)
        return dict(zip(keys, (_decode(value, kept, depth + 1) for _, value in content), strict=True))
    if kind == "int":
        return int(content, 16)
    if kind == "float":
        return float(content)
    if kind == "complex":
        return complex(float(content[0]), float(content[1]))
    if kind == "bytes":
        return bytes.fromhex(content)
    if kind == "Decimal":
        return Decimal(content)
    if kind == "Fraction":
        return _fraction(*(_decode(part, kept, depth + 1) for part in content))
    if kind in _TIMES:
        return _TIMES[kind].fromisoformat(content)
    raise NotPlain("of an unknown type")


def _fraction(numerator: Any, denominator: Any) -> Fraction:
    if not isinstance(numerator, int) or not isinstance(denominator, int):
        raise NotPlain("not a fraction of integers")
    if max(numerator.bit_length(), denominator.bit_length()) > _MAX_FRACTION_BITS:
        raise TooLarge("a fraction with too many digits")
    return Fraction(numerator, denominator)


def _hashable(keys: Iterable[Any]) -> list[Any]:
    """The keys as a list. Raises TooLarge if too many share a hash: a set of n keys with one hash takes n^2
    comparisons, and all multiples of 2^61 - 1 have the hash 0."""
    found = list(keys)
    if len(found) > _MAX_SAME_HASH + len(set(map(hash, found))):
        raise TooLarge("too many keys of the same hash")
    return found
