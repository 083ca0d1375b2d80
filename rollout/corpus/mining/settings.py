"""What mining is asked for, and the folder that belongs to it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from rewards.errors import UserError
from rollout.corpus.pages import PageReader
from rollout.whole_file import whole

# What may differ when the same folder goes on: it changes no file that is already there.
FREE = ("out", "workers", "rounds", "stop_at", "reviewed", "test_sets")


@dataclass(frozen=True, kw_only=True)
class Mining:
    """The options of `plumbline mine`; rl/settings/mining.py says what each means."""

    pages: tuple[Path, ...]
    seed_pages: tuple[Path, ...]
    out: Path
    test_sets: tuple[Path, ...]
    keep: float
    accept_above: float
    reviewed: Path | None
    rounds: int
    stop_at: float
    train_pages: int
    url_column: str | None
    text_column: str | None
    workers: int
    seed: int

    @property
    def reader(self) -> PageReader:
        return PageReader(url_column=self.url_column, text_column=self.text_column)

    @property
    def seed_reader(self) -> PageReader:
        return PageReader(url_column=self.url_column, text_column=self.text_column, needs_url=False)

    @cached_property
    def files(self) -> list[Path]:
        return self.reader.files(self.pages, "pages")

    @cached_property
    def seed_files(self) -> list[Path]:
        return self.reader.files(self.seed_pages, "seed_pages")

    def round_folder(self, number: int) -> Path:
        return self.out / f"round-{number}"

    def claim(self) -> None:
        """Makes the folder, or goes on in it. Raises UserError if it is one of other settings."""
        mine = {name: value for name, value in asdict(self).items() if name not in FREE}
        mine |= {"pages": _contents(self.files), "seed_pages": _contents(self.seed_files)}
        path = self.out / "settings.json"
        if not path.exists():
            if self.out.exists() and (not self.out.is_dir() or any(self.out.iterdir())):
                raise UserError(f"out is {str(self.out)!r}: it holds something else; name a new folder")
            self.out.mkdir(parents=True, exist_ok=True)
            write_json(path, mine)
        theirs = json.loads(path.read_text(encoding="utf-8"))
        other = [name for name, value in mine.items() if theirs.get(name) != value]
        if other:
            name = other[0]
            values = f"{theirs.get(name)!r} there and {mine[name]!r} here"
            change = "other files, or of other sizes," if name in ("pages", "seed_pages") else values
            raise UserError(
                f"out is {str(self.out)!r}: it was begun with other settings: {name} is {change}; repeat them, or name a new folder"
            )


def _contents(files: Sequence[Path]) -> list[list[Any]]:
    return [[file.name, file.stat().st_size] for file in files]


def write_json(path: Path, value: Any) -> None:
    with whole(path) as aside:
        aside.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
