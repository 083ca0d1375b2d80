"""MathPolicy: options for the questions of math grading on which reasonable people differ."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields

from rewards.errors import UserError


@dataclass(frozen=True, kw_only=True)
class MathPolicy:
    """Options of the comparison of final answers.

    relative_tolerance: accept an answer within this distance of the reference, relative to the reference. 0 compares
    exactly.
    rounding_digits: a reference without a finite decimal (1/3, pi) accepts a decimal with at least this many
    significant
        digits, all of them correct; a reference with a finite decimal accepts only equal answers.
    percent_sign_optional: the reference 25 accepts 25 %. (A reference 25 % always accepts 25 and 0.25; a reference
    without
        the sign never accepts a factor of 100 otherwise.) Not for references up to 1, for which 0.25 % is a mistake.
    convert_units: the reference 5 m accepts 500 cm. A missing unit is always accepted, a contradicting one always
    wrong.
    unevaluated_arithmetic: the reference 420 accepts 12 x 35. Off by default, because it rewards copying the question.
    copied_expressions: accept an expression of the question although the reference has another form: "Simplify
    \\sqrt{242}"
        accepts \\sqrt{242} for 11\\sqrt{2}. Off by default, because it rewards copying the question.
    brackets_optional: the reference (1, 2) accepts 1, 2 and the reverse.
    count_repeats: the list 1, 1, 2 differs from the list 1, 2.
    ignore_letter_case: the choice B accepts b. (Words are always compared without case.)
    decimal_comma: an answer 3,14 is the number 3.14.
    """

    relative_tolerance: float = 0.0
    rounding_digits: int = 12
    percent_sign_optional: bool = True
    convert_units: bool = True
    unevaluated_arithmetic: bool = False
    copied_expressions: bool = False
    brackets_optional: bool = False
    count_repeats: bool = True
    ignore_letter_case: bool = False
    decimal_comma: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.relative_tolerance < 1:
            raise UserError(
                f"relative_tolerance={self.relative_tolerance!r} must be in [0, 1): 0 compares exactly, 1e-4 accepts four digits"
            )
        if self.rounding_digits < 3:
            raise UserError(
                f"rounding_digits={self.rounding_digits!r} must be at least 3; for fewer digits set relative_tolerance instead"
            )

    @staticmethod
    def parse(texts: Iterable[str]) -> MathPolicy:
        """The policy in which each text "option=value" replaces a default, as the command line's --grading gives them.

        Raises UserError for an option or a value that does not exist.
        """
        kinds = {field.name: type(field.default) for field in fields(MathPolicy)}
        given: dict[str, bool | int | float] = {}
        for text in texts:
            name, _, value = text.partition("=")
            name = name.strip().replace("-", "_")
            if name not in kinds:
                raise UserError(f"grading is {text!r}: it must be option=value with an option among {', '.join(kinds)}")
            given[name] = _parsed(text, value.strip(), kinds[name])
        return MathPolicy(**given)  # type: ignore[arg-type]


_BOOLEANS = {"true": True, "false": False}
_NAMES = {bool: "true or false", int: "a whole number", float: "a number"}


def _parsed(text: str, value: str, kind: type) -> bool | int | float:
    try:
        return _BOOLEANS[value.lower()] if kind is bool else kind(value)
    except (KeyError, ValueError):
        raise UserError(f"grading is {text!r}: the value must be {_NAMES[kind]}") from None
