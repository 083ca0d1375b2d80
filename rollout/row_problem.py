"""Reads a row of a data set as a problem: which of its columns is the question, the answer and the system message, and what grades it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rewards.errors import UserError
from rewards.extract import reference_answer
from rewards.score import Reference
from rewards.verifiers import VERIFIERS
from rollout.messages import messages_in, read_messages, require_encodable
from rollout.program_tasks import asks_for_program, program_task
from rollout.records import SOLUTION, Message, Problem

Row = Mapping[str, Any]
PROMPT_COLUMNS = ("question", "problem", "prompt", "messages")
ANSWER_COLUMNS = ("answer", "solution", "reference")
SYSTEM_COLUMNS = ("system", "system_prompt")
CONVERSATION = (
    "messages"  # a column of whole conversations: where the assistant has the last word, that is the worked solution
)
_EMPTY = (None, "")  # cells without a value, as a table has them where a row lacks a column


@dataclass(frozen=True, kw_only=True)
class Columns:
    """The columns that are read. prompt: None where rows have no question, which an environment then asks. answer: None where no row has
    one. system: None where no row has a system message of its own."""

    prompt: str | None
    answer: str | None
    system: str | None

    @staticmethod
    def found(
        rows: Sequence[Row],
        dataset: str,
        *,
        prompt_column: str | None,
        answer_column: str | None,
        system_column: str | None,
        needs_reference: bool,
        needs_prompt: bool = True,
    ) -> Columns:
        """The named columns, the others by their usual names. needs_prompt: not in an environment.

        Raises UserError for a named column that is not there, for rows without a question, and for math problems without an answer
        unless a conversation ends with it or there is no need of a reference.
        """
        prompt = None
        if needs_prompt or prompt_column is not None or _has_any(PROMPT_COLUMNS, rows[:1]):
            prompt = _column("prompt_column", prompt_column, PROMPT_COLUMNS, rows[:1], dataset)
        math = next(filter(_is_math, rows), None)
        answer, system = answer_column, system_column
        is_needed = needs_reference and prompt != CONVERSATION
        if math is not None and (is_needed or answer_column is not None or _has_any(ANSWER_COLUMNS, rows)):
            advice = (
                ""
                if needs_prompt
                else ", or, if the environment has no get_reward, add one or name a reward with --reward"
            )
            looked_in = [math] if is_needed else rows
            answer = _column("answer_column", answer_column, ANSWER_COLUMNS, looked_in, dataset, advice)
        if system_column is not None or _has_any(SYSTEM_COLUMNS, rows):
            system = _column("system_column", system_column, SYSTEM_COLUMNS, rows, dataset)
        return Columns(prompt=prompt, answer=answer, system=system)


def _has_any(names: Iterable[str], rows: Sequence[Row]) -> bool:
    return any(name in row for name in names for row in rows)


def _column(
    option: str, named: str | None, usual: Iterable[str], rows: Sequence[Row], dataset: str, advice: str = ""
) -> str:
    """The first of the names that any of the rows has. advice: what else can be done where they have none."""
    found = next((c for c in ([named] if named is not None else usual) if _has_any([c], rows)), None)
    if found is None:
        looked_for = repr(named) if named is not None else " or ".join(map(repr, usual))
        raise UserError(
            f"{option}: dataset {dataset!r} has no column {looked_for}; it has {sorted(rows[0])}: name one with --{option.replace('_', '-')}{advice}"
        )
    return found


def read_row(row: Row, number: int, columns: Columns, what: str) -> Problem:
    """The problem of a row, with all its columns as metadata. number: the row's, from 1. what: the row's name in errors."""
    prompt = "" if columns.prompt is None else row.get(columns.prompt)
    if prompt in _EMPTY and columns.prompt is not None:
        raise UserError(f"{what} has no {columns.prompt!r}: fill it or drop the row")
    if isinstance(prompt, str):
        prompt = messages_in(prompt) or prompt
    messages, worked = read_messages(prompt, what), None
    if columns.prompt == CONVERSATION:
        messages, worked = _without_last_answer(messages, what)
    cell = worked if columns.answer is None else row.get(columns.answer)
    verifier, reference = _grading(row, cell, what)
    solution = row.get(SOLUTION, worked or cell)
    names = (row.get(name) for name in ("id", "task_id"))
    return Problem(
        id=str(next((name for name in names if name not in _EMPTY), number - 1)),
        prompt=_with_own_system(messages, row.get(columns.system or ""), what),
        reference=reference,
        verifier=verifier,
        metadata={**row} if solution is None or SOLUTION in row else {**row, SOLUTION: str(solution)},
    )


def _without_last_answer(messages: tuple[Message, ...], what: str) -> tuple[tuple[Message, ...], str | None]:
    """(the messages before the assistant's last word, that word); (all messages, None) where another role has the last word."""
    *before, last = messages
    if last["role"] != "assistant":
        return messages, None
    if not before:
        raise UserError(f"{what}: its messages have no question before the assistant's answer; add it or drop the row")
    return tuple(before), last["content"]


def _with_own_system(messages: tuple[Message, ...], system: Any, what: str) -> tuple[Message, ...]:
    """The messages behind the row's own system message, unless they begin with one."""
    if system in _EMPTY or messages[0]["role"] == "system":
        return messages
    if not isinstance(system, str):
        raise UserError(
            f"{what}: its system message is {ascii(system)[:80]}: it must be text; change it or name another --system-column"
        )
    return {"role": "system", "content": require_encodable(system, what)}, *messages


def _is_math(row: Row) -> bool:
    return row.get("verifier") in _EMPTY and not asks_for_program(row)


def _grading(row: Row, answer: Any, what: str) -> tuple[str, Reference]:
    """The name of a row's verifier, and the reference for it. answer: the cell that has the answer of a math problem."""
    verifier = row.get("verifier")
    if verifier not in _EMPTY:
        if not isinstance(verifier, str) or verifier not in VERIFIERS:
            raise UserError(
                f"{what}: verifier is {verifier!r}: it must be one of {', '.join(sorted(VERIFIERS))}; rename a column that means something else"
            )
        reference = row.get("reference", "")
        return verifier, _answer(reference, what) if verifier in ("math", "program-answer") else reference
    if asks_for_program(row):
        return "program", program_task(row)
    return "math", _answer(answer, what)


def _answer(value: Any, what: str) -> Reference:
    """The reference in a cell: a list of one item counts as the item, a missing value as empty. Other lists and objects stay as they
    are: the verifier refuses them, and the problem is dropped and reported."""
    if isinstance(value, list) and len(value) == 1:
        (value,) = value
    if value is None or value != value:  # NaN is how a table of pandas has it
        return ""
    if isinstance(value, list | dict):
        return value or ""  # pyright: ignore[reportReturnType]
    return reference_answer(require_encodable(str(value), what))
