"""The options of `plumbline curate`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from rewards.errors import UserError
from rl.settings.declare import SHARE, at_least, require_possible
from rl.settings.options import require_writable


@dataclass(frozen=True, kw_only=True)
class CurateOptions:
    """Options of `plumbline curate`."""

    rows: tyro.conf.Positional[tuple[Path, ...]]
    """Files of rows that end in .jsonl or .jsonl.gz, or folders of them."""
    out: Path
    """.jsonl file to write the chosen rows to, a data set for --dataset; the report is written beside it."""
    size: Annotated[int, at_least(1)] = 1000
    """Rows to choose."""
    test_sets: tuple[str, ...] = ()
    """Data sets, named as in training, whose questions no row may share words with."""
    ngram: Annotated[int, at_least(1)] = 8
    """Consecutive words that a row must share to be removed: 8 as for s1; 10 for DeepSeekMath's rule."""
    solved_by: tuple[Path, ...] = ()
    """Files that plumbline census has written, each of one model on these rows. A row that any of the models solves is removed."""
    solved_above: Annotated[float, SHARE] = 0.0
    """A pass rate above this is solved."""
    min_words: Annotated[int, at_least(1)] = 1
    """Fewest words of a worked solution."""
    max_words: Annotated[int | None, at_least(1)] = None
    """Most words of a worked solution. Default: no limit."""
    prompt_column: str | None = None
    """Column of the question. If not given, it is found by its usual names."""
    answer_column: str | None = None
    """Column of the reference answer. If not given, it is found by its usual names."""
    trace_column: str | None = None
    """Column of the worked solution, which is also written as "worked", where training reads it. If not given, it is "worked", the
    assistant's last message, or the answer's column, as in training."""
    domain_column: str | None = None
    """Column of the domain. If not given, it is "domain", "subject", "topic", "category" or "type"."""
    seed: int = 0
    """Random seed of the draw."""

    def __post_init__(self) -> None:
        require_possible(self, declared_in=CurateOptions)
        require_writable("out", self.out)
        if not self.rows:
            raise UserError("rows is missing: name a .jsonl file or a folder of them")
        if self.out.suffix != ".jsonl":
            raise UserError(f"out is {str(self.out)!r}: it must end in .jsonl, to be read as a data set; rename it")
        if self.max_words is not None and self.max_words < self.min_words:
            raise UserError(f"max_words is {self.max_words}: it must be at least min_words, {self.min_words}")
