"""What is asked of `plumbline curate`, and the stages that look at one row at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rewards.errors import UserError
from rollout.contamination import NGramIndex
from rollout.corpus.curation_report import CurationReport
from rollout.corpus.quality import fault
from rollout.corpus.rows import Row
from rollout.corpus.solved import SolvedBy, asked, hashed, keys_of
from rollout.records import SOLUTION, Problem
from rollout.row_problem import Columns, read_row
from rollout.worked import worked_text


@dataclass(frozen=True, kw_only=True)
class Curation:
    """What is asked for; rl/settings/curate_options.py describes each field."""

    rows: Sequence[Path]
    out: Path
    size: int
    test_sets: Sequence[str]
    ngram: int
    solved_by: Sequence[Path]
    solved_above: float
    min_words: int
    max_words: int | None
    prompt_column: str | None
    answer_column: str | None
    trace_column: str | None
    domain_column: str | None
    seed: int


@dataclass(frozen=True, kw_only=True)
class Stages:
    """What a row must pass, one by one."""

    asked_for: Curation
    columns: Columns
    solved_by: Sequence[SolvedBy]
    tests: NGramIndex
    report: CurationReport

    def passed_by(self, row: Row, where: str) -> tuple[int, int] | None:
        """(hash of its question, words of its worked solution) of a row that passes; else counts it where it fell."""
        report = self.report
        row = {name: cell for name, cell in row.items() if cell == cell}  # NaN is an empty cell of pandas
        try:
            problem, question, solution = self._read(row)
        except UserError as error:
            is_empty = row.get(self.columns.prompt or "") in (None, "")
            return report.fell("quality", "no question" if is_empty else "not a problem", where, str(error))
        words = len(solution.split())
        if (reason := fault(question, solution) or self._of_length(words)) is not None:
            return report.fell("quality", reason, where, question)
        report.words_before.append(words)
        if (reason := self._solved(problem)) is not None:
            return report.fell("difficulty", reason, where, question)
        if (shared := self.tests.found_in(question)) is not None:
            report.show_contaminated(where, question, shared)
            return report.fell("contamination", "shares words with a test set", where, question)
        return hashed(question), words

    def _read(self, row: Row) -> tuple[Problem, str, str]:
        """(the problem, its question, its worked solution) as training reads them."""
        problem = read_row(row, 0, self.columns, "row")  # without an id of its own it is -1, which no census has
        return problem, asked(problem), worked_text(problem) if problem.metadata.get(SOLUTION) else ""

    def _of_length(self, words: int) -> str | None:
        least, most = self.asked_for.min_words, self.asked_for.max_words
        if words < least:
            return f"worked solution of fewer than {least} words"
        is_long = most is not None and words > most
        return f"worked solution of more than {most} words" if is_long else None

    def _solved(self, problem: Problem) -> str | None:
        """Counts in which files the problem is found, and names the first whose model solves it."""
        if not self.solved_by:
            return None
        question, name = keys_of(problem)
        is_known, reason = False, None
        for census in self.solved_by:
            if question in census.known or name in census.known:
                is_known = True
                self.report.matched[str(census.path)] += 1
                if reason is None and (question in census.solved or name in census.solved):
                    reason = f"solved in {census.path.name}"
        self.report.without_rate += not is_known
        return reason
