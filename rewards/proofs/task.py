"""What is to be proved: a reference as data, checked when it is read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rewards.verdict import BadReference

_SYSTEMS = ("metamath", "coq", "lean")


@dataclass(frozen=True, kw_only=True)
class MetamathTask:
    """A theorem of a database, proved anew, or a new one.

    database: path of the database; source: the database itself. One of the two.
    theorem: the label of a $p statement of the database. Its own proof is not looked at.
    statement: a new theorem as Metamath source ($v, $f, $d, $e, then one $p); `before`: the label that it stands before.
    without: labels that a proof may not use, beside all that stand after the theorem.
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

    imports: commands that stand at the top of every file: what is imported, and which scopes are open.
    definitions: what the statement speaks of, in a file of its own that the answer imports.
    statement: the theorem's type. axioms: full names of what a proof may assume.
    """

    system: str
    imports: str
    definitions: str
    statement: str
    axioms: tuple[str, ...]


def parse_task(reference: Any) -> MetamathTask | ProverTask:
    """Raises BadReference. A text is read as JSON."""
    if isinstance(reference, str):
        try:
            reference = json.loads(reference)
        except (ValueError, RecursionError):
            raise BadReference("the reference is neither a JSON object nor the text of one") from None
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
        raise BadReference("before goes with statement: a theorem of the database has its place")
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
            f"{unknown[0]!r} is no field of a {reference['system']} reference: there are {', '.join(fields)}"
        )


def _text(reference: Mapping[str, Any], field: str) -> str:
    value = reference.get(field, "")
    if not isinstance(value, str):
        raise BadReference(f"{field} must be text, not {type(value).__name__}")
    return value


def _texts(reference: Mapping[str, Any], field: str) -> tuple[str, ...]:
    value = reference.get(field, [])
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise BadReference(f"{field} must be a list of texts")
    return tuple(value)
