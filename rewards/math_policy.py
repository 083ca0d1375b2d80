"""The questions of math grading on which reasonable people differ, each a named option with one default."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class MathPolicy:
    """How equality of two final answers is judged.

    relative_tolerance: accept an answer this close to the reference, relative to the reference. 0 compares exactly.
    rounding_digits: a reference without a finite decimal (1/3, pi) accepts a decimal of at least this many significant
        digits that is right in all of them; a reference that can be written exactly must be.
    percent_sign_optional: the reference 25 accepts 25 %. (A reference 25 % always accepts 25 and 0.25; a reference
        without the sign never accepts a factor of 100 otherwise.) Not for references up to 1, where 0.25 % is a slip.
    convert_units: the reference 5 m accepts 500 cm. A missing unit is always fine, a contradicting one always wrong.
    unevaluated_arithmetic: the reference 420 accepts 12 x 35. Off, since that rewards copying the question.
    copied_expressions: an expression of the question is an answer, though the reference is written in another way: "Simplify
        \\sqrt{242}" accepts \\sqrt{242} for 11\\sqrt{2}. Off, since that too rewards copying the question.
    brackets_optional: the reference (1, 2) accepts 1, 2 and the reverse.
    count_repeats: the list 1, 1, 2 is not the list 1, 2.
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
            raise ValueError(
                f"relative_tolerance={self.relative_tolerance!r} must be in [0, 1): 0 compares exactly, 1e-4 accepts four digits"
            )
        if self.rounding_digits < 3:
            raise ValueError(
                f"rounding_digits={self.rounding_digits!r} must be at least 3; for fewer digits set relative_tolerance instead"
            )
