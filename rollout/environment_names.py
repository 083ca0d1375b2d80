"""Names of environments as the option `environment` has them: CLASS, or NAME=CLASS. Nothing is loaded here."""

from __future__ import annotations

from rewards.errors import UserError

_OF_CLASSES = set("/:")  # characters of CLASS alone: an "=" behind one of them belongs to a path


def read_name(given: str) -> tuple[str | None, str]:
    """(NAME, CLASS), or (None, CLASS) where none has a name. Raises UserError for an empty name."""
    name, equals, of = given.partition("=")
    if not equals or _OF_CLASSES & {*name}:
        return None, given
    if not name.strip():
        raise UserError(
            f"environment is {given!r}: nothing stands before its =; write NAME=file.py:Class, or file.py:Class"
        )
    return name, of


def with_name(name: object, of: str) -> str:
    """NAME=CLASS. Raises UserError for a name that could not be read back."""
    if not isinstance(name, str) or not name.strip() or {"=", *_OF_CLASSES} & {*name}:
        raise UserError(
            f"environment has the name {name!r}: it must be text without =, / and :, as the column environment of rows has it; change both"
        )
    return f"{name}={of}"
