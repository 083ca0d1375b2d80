"""Rows that a program has in memory, as a file that a run can read, and read again when it is resumed."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rewards.errors import UserError
from rl.run.warm_start import cache_folder
from rl.view.metrics import write_whole


def written_rows(dataset: Any) -> Any:
    """The file of the rows; names of data sets as they are. Raises UserError for rows that are not dicts of JSON values."""
    if isinstance(dataset, str | Path):
        return str(dataset)
    if not isinstance(dataset, Iterable) or isinstance(dataset, Mapping):
        raise UserError(
            f"dataset is a {type(dataset).__name__}: it must be a name, a file, a list of dicts, a datasets.Dataset or a "
            "pandas DataFrame"
        )
    pandas = sys.modules.get("pandas")  # who has a DataFrame has imported it
    is_frame = pandas is not None and isinstance(dataset, pandas.DataFrame)
    rows: list[Any] = dataset.to_dict("records") if is_frame else list(dataset)  # pyright: ignore[reportAttributeAccessIssue]
    if not rows:
        raise UserError("dataset has no rows; give at least two problems")
    if all(isinstance(row, str | Path) for row in rows):
        return tuple(map(str, rows))
    text = "".join(_line(row, number) for number, row in enumerate(rows, 1))
    name = hashlib.sha256(text.encode()).hexdigest()[:12]
    path = cache_folder() / f"rows-{name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, text)
    return str(path)


def _line(row: Any, number: int) -> str:
    if not isinstance(row, Mapping):
        raise UserError(
            f"dataset: row {number} is a {type(row).__name__}: each row must be a dict such as "
            '{"prompt": "What is 2 + 3?", "answer": "5"}'
        )
    for column, value in row.items():
        try:
            json.dumps({column: value})
        except (TypeError, ValueError, RecursionError) as error:
            raise UserError(
                f"dataset: row {number} cannot be written as JSON ({error}); convert its column {column!r}"
            ) from None
    return json.dumps(dict(row)) + "\n"
