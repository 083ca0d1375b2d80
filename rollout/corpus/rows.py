"""Streams of rows from JSON-lines files of any size. A line that cannot be read is counted, and reading goes on."""

from __future__ import annotations

import gzip
import json
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from io import BufferedIOBase
from pathlib import Path
from typing import Any

from rewards.errors import UserError

LONGEST = 8 << 20  # bytes of a line
DAMAGED = "rest of a damaged file"
ENDINGS = (".jsonl", ".jsonl.gz")
Row = dict[str, Any]


@dataclass
class Skipped:
    """What could not be read: how much of it for each reason, and where the first of it is."""

    counts: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)

    def add(self, reason: str, where: str) -> None:
        self.counts[reason] += 1
        self.first.setdefault(reason, where)

    def lines(self) -> list[str]:
        """A line for each reason, the most frequent first."""
        return [
            f"{count:,} skipped: {reason}, first {self.first[reason]}" for reason, count in self.counts.most_common()
        ]


def files_of(paths: Sequence[Path], option: str, endings: tuple[str, ...] = ENDINGS) -> list[Path]:
    """The files, and those with one of the endings in each folder, sorted. Raises UserError if there are none."""
    found: list[Path] = []
    for path in paths:
        inside = sorted(p for p in path.rglob("*") if p.name.endswith(endings)) if path.is_dir() else [path]
        if not inside or not inside[0].is_file():
            what = f"no file in it ends in {' or '.join(endings)}" if path.is_dir() else "there is no such file"
            raise UserError(f"{option} is {str(path)!r}: {what}; give a file, or a folder of them")
        if not inside[0].name.endswith(endings):
            raise UserError(f"{option} is {str(path)!r}: it must end in {' or '.join(endings)}; convert it")
        found += inside
    return found


def read_rows(files: Sequence[Path], skipped: Skipped) -> Iterator[tuple[str, Row]]:
    """(file:line, row) of each line that holds a JSON object."""
    for file in files:
        for number, line in enumerate(_lines(file, skipped), 1):
            where = f"{file.name}:{number}"
            row = _row(line, where, skipped) if line.strip() else None
            if row is not None:
                yield where, row


def _row(line: bytes, where: str, skipped: Skipped) -> Row | None:
    reason = f"line longer than {LONGEST >> 20} MiB"
    if len(line) <= LONGEST:
        try:
            row = json.loads(line.decode("utf-8-sig"))
        except UnicodeDecodeError:
            reason = "not UTF-8"
        except (ValueError, RecursionError):  # also of an integer that is too long for Python
            reason = "not JSON"
        else:
            if isinstance(row, dict):
                return row
            reason = "not an object with columns"
    skipped.add(reason, where)
    return None


def _lines(file: Path, skipped: Skipped) -> Iterator[bytes]:
    """The lines; of one that is too long only as much as shows it."""
    opened: BufferedIOBase
    with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as opened:
        number = 0
        try:
            while line := opened.readline(LONGEST + 1):
                number += 1
                yield line
                while len(line) > LONGEST and not line.endswith(b"\n"):
                    line = opened.readline(LONGEST + 1)
        except (OSError, EOFError, zlib.error):  # of gzip: cut, or damaged
            skipped.add(DAMAGED, f"{file.name}:{number + 1}")
