"""Values between processes, as JSON text. Only plain data arrives: nothing that was sent can act on who receives it.

Lists, text, numbers, booleans and None are themselves; any other plain type is {"type": ..., "value": ...}.
"""

from __future__ import annotations

import json
import math
from typing import Any

MAX_LENGTH = 1 << 20  # characters of a value as text
_MAX_NODES = 100_000
_MAX_DEPTH = 50
_MAX_BITS = 1 << 20
_SMALL_BITS = 4_000  # beyond, decimal digits are not what json reads
_COLLECTIONS = {"tuple": tuple, "set": set, "frozenset": frozenset}


class NotPlain(ValueError):
    """The value is not plain data, or too large."""


def to_json(value: Any) -> str:
    """Raises NotPlain. An object of a subclass (a Counter, a named tuple) goes as the plain data that it holds."""
    text = json.dumps(_Encoder().encode(value, 0), allow_nan=False)
    if len(text) > MAX_LENGTH:
        raise NotPlain(f"larger than {MAX_LENGTH} characters")
    return text


def from_json(text: str | bytes) -> Any:
    """Raises NotPlain, whatever the text is."""
    try:
        return _decode(json.loads(text), 0)
    except (ValueError, TypeError, KeyError, RecursionError, UnicodeError) as error:
        raise NotPlain(f"not a value: {type(error).__name__}") from None


class _Encoder:
    def __init__(self) -> None:
        self.num_nodes = 0

    def encode(self, value: Any, depth: int) -> Any:
        self.num_nodes += 1
        if self.num_nodes > _MAX_NODES or depth > _MAX_DEPTH:
            raise NotPlain("too large or too deep")
        if value is None or value is True or value is False:
            return value
        if isinstance(value, int):
            return self.integer(int.__index__(value))
        if isinstance(value, float):
            number = float.__float__(value)
            return number if math.isfinite(number) else {"type": "float", "value": repr(number)}
        if isinstance(value, str):
            return str.__str__(value)
        if isinstance(value, complex):
            return {"type": "complex", "value": [repr(value.real), repr(value.imag)]}
        if isinstance(value, bytes | bytearray):
            return {"type": "bytes", "value": bytes(value).hex()}
        if isinstance(value, list):
            return [self.encode(item, depth + 1) for item in list.__iter__(value)]
        if isinstance(value, dict):
            pairs = [[self.encode(k, depth + 1), self.encode(v, depth + 1)] for k, v in dict.items(value)]
            return {"type": "dict", "value": pairs}
        for name, kind in _COLLECTIONS.items():
            if isinstance(value, kind):
                return {"type": name, "value": [self.encode(item, depth + 1) for item in kind.__iter__(value)]}
        raise NotPlain(f"a {type(value).__name__}, which is not plain data")

    def integer(self, value: int) -> Any:
        if value.bit_length() > _MAX_BITS:
            raise NotPlain("an integer of more than a million bits")
        return value if value.bit_length() <= _SMALL_BITS else {"type": "int", "value": hex(value)}


def _decode(value: Any, depth: int) -> Any:
    if depth > 2 * _MAX_DEPTH:
        raise NotPlain("too deep")
    if isinstance(value, list):
        return [_decode(item, depth + 1) for item in value]
    if not isinstance(value, dict):
        return value
    kind, content = value["type"], value["value"]
    if kind in _COLLECTIONS:
        return _COLLECTIONS[kind](_decode(item, depth + 1) for item in content)
    if kind == "dict":
        return {_decode(k, depth + 1): _decode(v, depth + 1) for k, v in content}
    if kind == "int":
        return int(content, 16)
    if kind == "float":
        return float(content)
    if kind == "complex":
        return complex(float(content[0]), float(content[1]))
    if kind == "bytes":
        return bytes.fromhex(content)
    raise NotPlain("of no known type")
