"""The verifier of instructions about the form of a response, such as "no comma" or "at least 300 words" (IFEval)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from inspect import signature
from typing import Any

from rewards.extract import after_reasoning
from rewards.instructions.kinds import KINDS
from rewards.pool import WorkerPool
from rewards.pooled_verifier import PooledVerifier
from rewards.score import Outcome
from rewards.verdict import BadReference, Verdict, bad_reference, grade_or_check, right, wrong

Check = Callable[[str], bool]


class InstructionVerifier(PooledVerifier):
    """Checks that responses follow every one of their instructions; a `rewards.score.Verifier`.

    A reference has the columns that IFEval publishes:
        {"instruction_id_list": ["punctuation:no_comma", "length_constraints:number_words"],
         "kwargs": [{}, {"relation": "at least", "num_words": 300}]}
    An instruction of an unknown kind, or with other arguments than its kind's, makes the reference a bad one. The response
    is what the model writes behind its reasoning.

    num_workers, deadline, memory_limit: as for rewards.math_answer.MathVerifier.
    """

    def __init__(self, *, num_workers: int = 2, deadline: float = 2.0, memory_limit: int = 1 << 30) -> None:
        pool = WorkerPool(
            "rewards.instruction_answer:load", {}, num_workers=num_workers, deadline=deadline, memory_limit=memory_limit
        )
        super().__init__("instructions", pool)


def read_checks(reference: Any) -> list[tuple[str, Check]]:
    """The published name and the check of each instruction. Raises BadReference."""
    if not isinstance(reference, Mapping):
        raise BadReference(f"instructions are a JSON object, not {type(reference).__name__}")
    names, arguments = reference.get("instruction_id_list"), reference.get("kwargs")
    if not isinstance(names, list) or not names or not isinstance(arguments, list) or len(arguments) != len(names):
        raise BadReference(
            "instruction_id_list and kwargs must be lists of the same length, of at least one instruction"
        )
    return [(name, _check(name, given)) for name, given in zip(names, arguments)]


def _check(name: Any, given: Any) -> Check:
    """The check of one instruction; arguments that are None are not its own, as in a table that has a column for each."""
    if not isinstance(name, str) or name not in KINDS:
        raise BadReference(f"there is no check of the instruction {str(name)[:60]!r}")
    if not isinstance(given, Mapping):
        raise BadReference(f"the kwargs of {name} are {str(given)[:60]!r}: they must be an object")
    check, used = KINDS[name], {key: value for key, value in given.items() if value is not None}
    try:
        signature(check).bind("", **used)
        check("A response.", **used)
    except (TypeError, ValueError, AttributeError) as error:
        raise BadReference(f"the kwargs of {name} are {str(used)[:60]}: {error}") from None
    return partial(check, **used)


def grade(completion: str, reference: Any) -> Verdict:
    """CORRECT if the response follows all instructions."""
    try:
        checks = read_checks(reference)
    except BadReference as error:
        return bad_reference(str(error))
    response = after_reasoning(completion)
    if not response.strip():
        return Verdict(Outcome.NO_ANSWER, "no response")
    broken = [name for name, follows in checks if not follows(response)]
    if broken:
        return wrong(f"{len(checks) - len(broken)} of {len(checks)} instructions are followed, not {', '.join(broken)}")
    return right(f"all {len(checks)} instructions are followed")


def check_reference(reference: Any) -> Verdict:
    """CORRECT if every instruction has a check."""
    try:
        return right(f"{len(read_checks(reference))} instructions")
    except BadReference as error:
        return bad_reference(str(error))


def load() -> Callable[..., Verdict]:
    """Builds the grading function. A worker calls this once."""
    return grade_or_check(grade, check_reference)
