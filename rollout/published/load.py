"""The problems of a published set, from a local file in its published shape or from the hub."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

from rewards.errors import UserError, first_line
from rollout.dataset_names import FILES
from rollout.dataset_rows import Rows, file_rows
from rollout.published.sets import SETS, PublishedSet
from rollout.records import Problem


class NotThere(UserError):
    """The set is neither in the folder of local files nor to be had from the hub."""


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """Problems of a set, and the file or the name on the hub that they were read from."""

    problems: list[Problem]
    source: str


def load_set(name: str, folder: Path | None, size: int | None) -> Loaded:
    """The first `size` problems of the set, or all. Their ids are the set's name and the row's number: gsm8k/17.

    folder: where a file named after the set, such as gsm8k.jsonl, is read instead of the hub. Raises NotThere.
    """
    published, file = SETS[name], local_file(name, folder)
    rows = hub_rows(published) if file is None else file_rows(file)
    source = published.source if file is None else str(file)
    problems = [_problem(name, published, row, number, source) for number, row in enumerate(rows[:size])]
    return Loaded(problems=problems, source=source)


def local_file(name: str, folder: Path | None) -> Path | None:
    """The file of the set in the folder, in any format that --dataset reads; None without one."""
    endings = ("".join(parts) for parts in product(FILES, ("", ".gz")))
    return folder and next((path for end in endings if (path := folder / f"{name}{end}").is_file()), None)


def hub_rows(published: PublishedSet) -> Rows:
    import datasets  # half a second, and only the hub needs it

    files = [f"hf://datasets/{published.hub}/{file}" for file in published.files]
    try:
        if files:
            loaded = datasets.load_dataset("json", data_files=files, split=published.split)
        else:
            loaded = datasets.load_dataset(published.hub, published.config, split=published.split)
    except Exception as error:  # noqa: BLE001  the library raises many kinds for what is not there
        raise NotThere(
            f"loading {published.source} from the hub failed ({type(error).__name__}: {first_line(error)})"
        ) from None
    return [dict(row) for row in loaded]


def _problem(name: str, published: PublishedSet, row: dict[str, object], number: int, source: str) -> Problem:
    missing: Sequence[str] = [column for column in published.columns if row.get(column) is None]
    if missing:
        raise UserError(
            f"suite: row {number + 1} of {source!r} has no {missing[0]!r}; it has {sorted(row)}, and {name} is published with "
            f"{', '.join(published.columns)}; give the set as it is published"
        )
    return replace(published.read(row), id=f"{name}/{number}")
