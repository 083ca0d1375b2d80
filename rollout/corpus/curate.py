"""Chooses a small training set out of many rows as s1K was chosen (arXiv 2501.19393, section 2.2).

    rows -> quality -> difficulty -> contamination -> duplicates -> diversity -> size rows

The files are read twice: once to see which rows pass, once to write those that are chosen. Between, a row that has passed takes 24 bytes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path

from rewards.errors import UserError
from rollout.contamination import NGramIndex
from rollout.corpus.curation_report import CurationReport
from rollout.corpus.curation_stages import Curation, Stages
from rollout.corpus.diversity import RANKS, Remaining, draw
from rollout.corpus.rows import Row, Skipped, files_of, read_rows
from rollout.corpus.solved import SolvedBy, asked
from rollout.records import SOLUTION
from rollout.row_problem import Columns
from rollout.whole_file import whole

DOMAIN_COLUMNS = ("domain", "subject", "topic", "category", "type")
NO_DOMAIN = "none"
LONGEST_NAME = 100  # characters of a domain
HEAD = 1_000  # rows, by which columns are found
EVERY = 20_000  # rows between two reports of progress


def curate(asked_for: Curation, progress: Callable[[str], None] = lambda text: None) -> CurationReport:
    """Writes the chosen rows to `out`, in the order of the files, and the report beside it.

    The choice depends on the seed and on the rows, not on the order of files or of rows in them, but for rows with equal questions and
    equally long worked solutions. Raises UserError, and writes nothing, if a stage leaves no row.
    """
    files = files_of(asked_for.rows, "rows")
    if asked_for.out.resolve() in {file.resolve() for file in files}:
        raise UserError(f"out is {str(asked_for.out)!r}: it is one of the files of rows; name another file or move it")
    report = CurationReport()
    remaining = _remaining(files, _stages(asked_for, files, report), progress)
    kept, example = remaining.without_duplicates()
    report.duplicates = len(remaining) - len(kept)
    places = draw(kept.by_domain(asked_for.size + RANKS), asked_for.size, asked_for.seed)
    report.choose(kept, places)
    _write(asked_for, files, {kept.numbers[place] for place in places}, example, report)
    report.write(asked_for.out, {name: getattr(asked_for, name) for name in vars(asked_for)})
    return report


def _stages(asked_for: Curation, files: Sequence[Path], report: CurationReport) -> Stages:
    head = [row for _, row in islice(read_rows(files, Skipped()), HEAD)]
    if not head:
        raise UserError(f"rows: no line of {len(files)} files is a JSON object with columns; give files of JSON lines")
    columns = dict.fromkeys(name for row in head for name in row)
    for option in ("domain_column", "trace_column"):
        name = getattr(asked_for, option)
        if name is not None and name not in columns:
            raise UserError(
                f"{option} is {name!r}: the first {len(head)} rows do not have it; they have {sorted(columns)}"
            )
    solved_by = [
        SolvedBy.read(path, asked_for.solved_above, asked_for.prompt_column, report.unread)
        for path in asked_for.solved_by
    ]
    return Stages(
        asked_for=asked_for,
        columns=Columns.found(
            [columns, *head],
            str(files[0]),
            prompt_column=asked_for.prompt_column,
            answer_column=asked_for.answer_column,
            system_column=None,
            needs_reference=False,
        ),
        solved_by=solved_by,
        tests=_index(asked_for),
        report=report,
    )


def _index(asked_for: Curation) -> NGramIndex:
    index = NGramIndex(asked_for.ngram)
    if not asked_for.test_sets:
        return index
    from rollout.problems import load_problems  # seconds, and only test sets need it

    for name in asked_for.test_sets:
        try:
            index.add(map(asked, load_problems(name, split="test", needs_reference=False)))
        except UserError as error:
            raise UserError(f"test_sets is {name!r}: {error}") from None
    return index


def _remaining(files: Sequence[Path], stages: Stages, progress: Callable[[str], None]) -> Remaining:
    """The rows that pass all stages that look at one row."""
    remaining, report = Remaining(), stages.report
    for number, where, row in _rows(files, stages.asked_for.trace_column, report.unread):
        domain = _domain(row, stages.asked_for.domain_column)
        report.domains[domain] += 1
        passed = stages.passed_by(row, where)
        if passed is not None:
            remaining.add(number, *passed, domain)
        if number % EVERY == EVERY - 1:
            progress(f"{number + 1:,} rows read, {len(remaining):,} left")
    report.require_some_left()
    for census in stages.solved_by:
        if not report.matched[str(census.path)]:
            raise UserError(
                f"solved_by is {str(census.path)!r}: none of the rows is among the {len(census.known.sorted):,} that it has pass rates of; "
                "give the census of these rows"
            )
    return remaining


def _rows(files: Sequence[Path], trace_column: str | None, unread: Skipped) -> Iterator[tuple[int, str, Row]]:
    """(number, file:line, row) of what can be read; the trace is the worked solution of the row, which training learns."""
    for number, (where, row) in enumerate(read_rows(files, unread)):
        yield number, where, row if trace_column is None else {**row, SOLUTION: row.get(trace_column)}


def _domain(row: Row, column: str | None) -> str:
    """The first of a list; "none" for a row without one."""
    names = DOMAIN_COLUMNS if column is None else (column,)
    cell = next((row[name] for name in names if row.get(name) not in (None, "", [])), None)
    cell = cell[0] if isinstance(cell, list) else cell
    is_name = isinstance(cell, str | int | float) and cell == cell
    return str(cell).strip()[:LONGEST_NAME] or NO_DOMAIN if is_name else NO_DOMAIN


def _write(
    asked_for: Curation,
    files: Sequence[Path],
    chosen: set[int],
    example: tuple[int, int] | None,
    report: CurationReport,
) -> None:
    """Writes the chosen rows. example: the numbers of two rows with the same question, whose places are reported."""
    shown, places, ids = example or (), dict[int, str](), set[str]()
    with whole(asked_for.out) as aside, aside.open("w", encoding="utf-8") as out:
        rows = _rows(files, asked_for.trace_column, Skipped())
        for number, where, row in islice(rows, max((*chosen, *shown)) + 1):
            if number in shown:
                places[number] = where
            if number in chosen:
                own = _with_own_id(row, number, ids)
                report.renamed += own is not row
                out.write(json.dumps(own) + "\n")
    report.duplicate = " has the question of ".join(places[number] for number in shown)


def _with_own_id(row: Row, number: int, ids: set[str]) -> Row:
    """The row, or a copy with another id where an earlier row has its id: in a data set they are unique (rollout/row_problem.py)."""
    name = str(next((row[key] for key in ("id", "task_id") if row.get(key) not in (None, "")), len(ids)))
    own = name if name not in ids else f"{name} of row {number}"
    ids.add(own)
    return row if own == name else {**row, "id": own}
