"""The statement to prove as validated data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rewards.verdict import BadReference

_SYSTEMS = ("metamath", "coq", "lean")


@dataclass(frozen=True, kw_only=True)
class MetamathTask:
    """A theorem of a Metamath database, or a new theorem. Empty strings stand for absent fields.

    database or source: the path of the database, or its text.
    theorem or statement: the label of a $p statement of the database, whose proof is ignored; or a new theorem as
    Metamath
        source ($v, $f, $d, $e, then one $p).
    before: the label of the statement before which a new theorem is inserted; by default it is added at the end.
    without: labels that a proof may not use, besides those of all later statements.
    """

    system: str
    database: str
    source: str
    theorem: str
    statement: str
    before: str
    without: frozenset[str]


@dataclass(frozen=True, kw_only=True)
class ProverTask:
    """A theorem for Coq or Lean.

    imports: commands at the top of every file, such as imports and opened scopes.
    definitions: definitions that the statement uses, in a separate file that the answer imports.
    statement: the type of the theorem. axioms: full names of the axioms that a proof may assume.
    """

    system: str
    imports: str
    definitions: str
    statement: str
    axioms: tuple[str, ...]


def parse_task(reference: Any) -> MetamathTask | ProverTask:
    """The validated task; a text is parsed as JSON first. Raises BadReference."""
    if isinstance(reference, str):
        try:
            reference = json.loads(reference)
        except (ValueError, RecursionError):
            raise BadReference("the reference is neither a JSON object nor the text of a JSON object") from None
    if not isinstance(reference, Mapping) or reference.get("system") not in _SYSTEMS:
        raise BadReference(f'the reference must be a JSON object with "system": one of {", ".join(_SYSTEMS)}')
    return _metamath_task(reference) if reference["system"] == "metamath" else _prover_task(reference)


def _metamath_task(reference: Mapping[str, Any]) -> MetamathTask:
    fields = ("database", "source", "theorem", "statement", "before")
    _only(reference, *fields, "without")
    texts = {field: _text(reference, field) for field in fields}
    for one, other in (("database", "source"), ("theorem", "statement")):
        if bool(texts[one]) == bool(texts[other]):
            raise BadReference(f"exactly one of {one} and {other} must be given")
    if texts["before"] and not texts["statement"]:
        raise BadReference("before is given without statement: the position of a theorem of the database is fixed")
    return MetamathTask(system="metamath", without=frozenset(_texts(reference, "without")), **texts)


def _prover_task(reference: Mapping[str, Any]) -> ProverTask:
    fields = ("imports", "definitions", "statement")
    _only(reference, *fields, "axioms")
    texts = {field: _text(reference, field) for field in fields}
    if not texts["statement"].strip():
        raise BadReference("statement is empty: it must be the type of the theorem")
    return ProverTask(system=reference["system"], axioms=_texts(reference, "axioms"), **texts)


def _only(reference: Mapping[str, Any], *fields: str) -> None:
    unknown = sorted(map(str, set(reference) - {"system", *fields}))
    if unknown:
        raise BadReference(
            f"{unknown[0]!r} is not a field of a {reference['system']} reference: its fields are {', '.join(fields)}"
        )


def _text(reference: Mapping[str, Any], field: str) -> str:
    value = reference.get(field, "")
    if not isinstance(value, str):
        raise BadReference(f"{field} must be text, not {type(value).__name__}")
    return value


def _texts(reference: Mapping[str, Any], field: str) -> tuple[str, ...]:
    value = reference.get(field, [])
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise BadReference(f"{field} must be a list of strings")
    return tuple(value)
