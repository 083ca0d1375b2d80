"""Questions that models already solve, by the pass rates that `plumbline census` writes."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from rewards.errors import UserError
from rollout.corpus.rows import Row, Skipped, files_of, read_rows
from rollout.problem_memory import PASS_RATE
from rollout.records import Problem
from rollout.row_problem import PROMPT_COLUMNS, Columns, read_row


def hashed(text: str) -> int:
    """64 bits of the text without regard to white space and case. Among a million texts two share them with probability 3e-8."""
    normal = " ".join(text.split()).lower().encode("utf-8", "surrogatepass")
    return int.from_bytes(blake2b(normal, digest_size=8).digest(), "little")


def asked(problem: Problem) -> str:
    """All that the problem says but its system message, which many problems share."""
    return "\n".join(message["content"] for message in problem.messages if message["role"] != "system")


class Hashes:
    """A set of hashes, in 8 bytes each."""

    def __init__(self, hashes: Iterable[int]) -> None:
        self.sorted = array("Q", sorted(hashes))

    def __contains__(self, value: int) -> bool:
        place = bisect_left(self.sorted, value)
        return place < len(self.sorted) and self.sorted[place] == value


@dataclass(frozen=True, kw_only=True)
class SolvedBy:
    """What one census says: the questions, or the ids where it has no questions, and those of them that its model solves."""

    path: Path
    known: Hashes
    solved: Hashes

    @staticmethod
    def read(path: Path, above: float, prompt_column: str | None, skipped: Skipped) -> SolvedBy:
        """above: a pass rate above this is solved. Rows without a pass rate, of which nothing could be graded, say nothing.

        Raises UserError if no row has a pass rate.
        """
        known, solved = array("Q"), array("Q")
        prompts = PROMPT_COLUMNS if prompt_column is None else (prompt_column, *PROMPT_COLUMNS)
        for where, row in read_rows(files_of([path], "solved_by"), skipped):
            try:
                key, rate = _key(row, prompts), _rate(row)
            except UserError as error:
                skipped.add("neither a question nor an id with a pass rate in [0, 1]", f"{where} ({error})")
                continue
            if rate is not None:
                known.append(key)
                if rate > above:
                    solved.append(key)
        if not known:
            raise UserError(
                f"solved_by is {str(path)!r}: no row of it has a {PASS_RATE}; write it with plumbline census --out"
                + "".join(f"; {line}" for line in skipped.lines())
            )
        return SolvedBy(path=path, known=Hashes(known), solved=Hashes(solved))


def keys_of(problem: Problem) -> tuple[int, int]:
    """What a census may know the problem by: its question, and its id."""
    return hashed(asked(problem)), _hashed_id(problem.id)


def _key(row: Row, prompts: Sequence[str]) -> int:
    prompt = next((name for name in prompts if row.get(name) not in (None, "")), None)
    if prompt is not None:
        return hashed(asked(read_row(row, 1, Columns(prompt=prompt, answer=None, system=None), "its row")))
    if row.get("id") in (None, ""):
        raise UserError("it has no question and no id")
    return _hashed_id(str(row["id"]))


def _hashed_id(name: str) -> int:
    return hashed(f"id\0{name}")


def _rate(row: Row) -> float | None:
    given = row.get(PASS_RATE)
    if given in (None, ""):
        return None
    if not isinstance(given, int | float) or not 0 <= given <= 1:
        raise UserError(f"its {PASS_RATE} is {ascii(given)[:40]}")
    return given
