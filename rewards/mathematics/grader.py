r"""Grades a final answer against a reference in stages; the first stage that can decide does. Runs in a worker process
only.

The policy in one paragraph: the last box is the answer; there must be exactly one answer, and a hedge is wrong;
rationals are compared exactly, and a decimal is correct only if it is equal; a missing unit is accepted, a
contradicting one is wrong; sets are unordered, tuples are ordered, and the brackets of intervals matter; every side of
a chain of equations must be true; the answer must be evaluated; words are compared as text. MathPolicy holds the
questions on which people differ.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from rewards.extract import Reading, answer_by_form, reference_answer
from rewards.math_policy import MathPolicy
from rewards.mathematics.collection_stages import compare_elements, compare_matrices, compare_written
from rewards.mathematics.comparison import Comparison, Stage
from rewards.mathematics.compound import compare_compounds
from rewards.mathematics.copying import is_copied
from rewards.mathematics.equations import compare_equations, compare_inequalities, has_unknowns, is_bare_name
from rewards.mathematics.normalise import normalise, text_key
from rewards.mathematics.rational import plain_number
from rewards.mathematics.scalar_stage import compare_scalars
from rewards.mathematics.structure import elements, split
from rewards.mathematics.text_stages import compare_text, compare_words, reject_unanswered
from rewards.score import Outcome
from rewards.verdict import NOTHING_MARKED, BadReference, Verdict, bad_reference, grade_or_check, right, wrong

MAX_LENGTH = 2_000
MAX_CACHED = 8_192  # verdicts; the completions of a group often repeat an answer
# Placeholders of data sets for a missing answer, and headings above a solution.
_PLACEHOLDERS = "none, null, nan, n/a, na, notfound, not found, unknown, no answer, tbd, todo, see solution, omitted, proof, solution"
_NO_ANSWERS = frozenset([*_PLACEHOLDERS.split(", "), "answer", "final answer", "explanation"])
_STAGES: tuple[Stage, ...] = (
    compare_text,
    reject_unanswered,
    compare_written,
    compare_words,
    compare_equations,
    compare_matrices,
    compare_inequalities,
    compare_compounds,
    compare_elements,
    compare_scalars,
)


class MathGrader:
    """Grades answers under one policy. Caches verdicts by normalised answer and reference.

    strict: only boxed answers count, whatever the form. form: where an answer is looked for.
    """

    def __init__(self, *, strict: bool, policy: MathPolicy, form: Reading | None = None) -> None:
        self._form: Reading | None = "boxed" if strict else form
        self._policy = policy
        # One cache per grader, since a verdict depends on the policy.
        self._compare = lru_cache(MAX_CACHED)(self._compare_normalised)

    def grade(self, completion: str, reference: Any, prompt: str = "") -> Verdict:
        """The verdict on the final answer in `completion`. prompt: the question, to detect answers that copy it."""
        try:
            expected = _read(reference)
        except BadReference as error:
            return bad_reference(str(error))
        answer = answer_by_form(completion, self._form)
        if answer is None:
            return NOTHING_MARKED
        given_number, expected_number = plain_number(answer), plain_number(expected)
        if given_number is not None and expected_number is not None and not self._policy.relative_tolerance:
            # Most answers are decided here, at a tenth of the cost of the stages.
            return right("equal numbers") if given_number == expected_number else wrong("a different number")
        if len(answer) > MAX_LENGTH or len(expected) > MAX_LENGTH:
            equal = "".join(answer.split()) == "".join(expected.split())
            return Verdict(Outcome.CORRECT if equal else Outcome.WRONG, "too long to read, compared as text")
        given, reference = normalise(answer), normalise(expected)
        verdict = self._compare(given, reference)
        if not verdict.is_correct and "," in reference:  # the reference is a list, so 81,256 was meant as one
            given = normalise(answer, commas_group_digits=False)
            verdict = self._compare(given, reference)
        may_be_copied = verdict.is_correct and prompt and not self._policy.copied_expressions
        if may_be_copied and given != reference and is_copied(given, reference, prompt):
            return wrong("copies an expression of the question without working it out")
        return verdict

    def check_reference(self, reference: Any) -> Verdict:
        """CORRECT if the reference equals itself when compared by value, not as text; else BAD_REFERENCE."""
        try:
            expected = _read(reference)
        except BadReference as error:
            return bad_reference(str(error))
        if len(expected) > MAX_LENGTH:
            return bad_reference(f"the reference is longer than {MAX_LENGTH} characters")
        text = normalise(expected)
        comparison = Comparison(self._policy, _STAGES, trust_text=False)
        verdict = min(
            (comparison.compare(side, side, unevaluated=True) for side in _roundings(text)),
            key=lambda verdict: verdict.is_correct,
        )
        return verdict if verdict.is_correct else bad_reference(f"cannot be read: {verdict.reason}")

    def _compare_normalised(self, answer: str, reference: str) -> Verdict:
        comparison = Comparison(self._policy, _STAGES)
        sides = _roundings(reference)
        if sides == [reference]:
            return comparison.compare(answer, reference)
        best = [
            max((comparison.compare(given, side) for side in sides), key=lambda verdict: verdict.is_correct)
            for given in _roundings(answer)
        ]
        return min(best, key=lambda verdict: verdict.is_correct)


def _read(reference: Any) -> str:
    """The answer inside a reference, which is text or a number. Raises BadReference if there is none."""
    if isinstance(reference, int | float) and not isinstance(reference, bool):
        reference = str(reference)
    if not isinstance(reference, str):
        raise BadReference(f"a math reference is text or a number, not {type(reference).__name__}")
    answer = reference_answer(reference)
    if len(answer) < MAX_LENGTH and not text_key(normalise(answer)):
        raise BadReference("the reference is empty")
    if answer.strip(" .:*").lower() in _NO_ANSWERS:
        raise BadReference(f"the reference is {answer!r}, a placeholder for a missing answer")
    return answer


def _roundings(reference: str) -> list[str]:
    r"""The alternatives that a reference accepts when it states its own rounding, as in x = 2/3 \approx 0.67.

    Every side of \approx is accepted, except a bare name and, if another side has no unknowns, a side that has some, as
    in 2x \approx 3. For a list: the list of all first sides and the list of all last sides.
    """
    if r"\approx" not in reference:
        return [reference]
    found = elements(reference)
    if found is not None and found.kind == "list":
        items = [_roundings(item) for item in found.items]
        return [", ".join(item[0] for item in items), ", ".join(item[-1] for item in items)]
    sides = [side for side in split(reference, (r"\approx",))[0] if side and not is_bare_name(side)]
    return [side for side in sides if not has_unknowns(side)] or sides or [reference]


def load(*, form: Reading | None, policy: dict[str, float | int | bool]) -> Callable[..., Verdict]:
    """Builds the grading function. A worker calls this once."""
    # The import takes 0.6 s, which must not count towards the deadline of the first answer that needs it.
    importlib.import_module("rewards.mathematics.symbolic")
    grader = MathGrader(strict=False, policy=MathPolicy(**policy), form=form)  # type: ignore[arg-type]
    return grade_or_check(grader.grade, grader.check_reference)
