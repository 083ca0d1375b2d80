"""Values of tool calls that are written as text, without quotes, by the JSON schema of their argument."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

# Chat templates write these as Python does.
_WORDS: Mapping[str, Any] = {"true": True, "false": False, "none": None, "null": None}
_KINDS: Mapping[str, type | tuple[type, ...]] = {
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "array": list,
    "object": dict,
    "null": type(None),
}


class Unread(ValueError):
    """The text is no value of the types that the schema names."""


def read_value(text: str, schema: Mapping[str, Any]) -> Any:
    """The value; text where the schema permits it and no other of its types fits, or where it names no type and the text is no JSON.

    Raises Unread if the text is of none of the types.
    """
    types = _types(schema)
    if types == {"string"}:
        return text
    value = _literal(text)
    if any(_is_a(value, kind) for kind in types - {"string"}) or (not types and value is not _NOTHING):
        return value
    if not types or "string" in types:
        return text
    raise Unread(f"it must be of type {' or '.join(sorted(types))}")


_NOTHING = object()


def _types(schema: Mapping[str, Any]) -> set[str]:
    """Names of the types that the schema permits; none if it permits all, or says it in a way that is not read here."""
    named = schema.get("type", [])
    types = {named} if isinstance(named, str) else set(named)
    for option in schema.get("anyOf", ()):
        types |= _types(option)
    if types and schema.get("nullable"):
        types.add("null")
    return types if types <= set(_KINDS) else set()


def _literal(text: str) -> Any:
    """The value that the text is in JSON or, for true, false and null, in Python; _NOTHING if it is none."""
    word = text.strip().lower()
    if word in _WORDS:
        return _WORDS[word]
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return _NOTHING


def _is_a(value: Any, kind: str) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    if kind == "integer" and isinstance(value, float):
        return False
    return isinstance(value, _KINDS[kind])
