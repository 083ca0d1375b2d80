"""Rows of data sets, from files and from the hub: dicts by column, before rollout/problems.py reads them as problems."""

from __future__ import annotations

import csv
import gzip
import io
import json
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rewards.errors import UserError, first_line
from rollout.dataset_names import FILES, HubName

Rows = list[dict[str, Any]]
HUB_NAMES = {"gsm8k": ("openai/gsm8k", "main"), "math": ("DigitalLearningGmbH/MATH-lighteval", "default")}
ENDINGS = f"{', '.join(FILES[:-1])} or {FILES[-1]}"
_MAX_DIGITS = 4_300  # of an integer, sys.get_int_max_str_digits()


def file_rows(path: Path) -> Rows:
    """The rows of a file, in the format of its ending, unpacked if it ends in .gz."""
    what = f"dataset is {str(path)!r}"
    try:
        data = path.read_bytes()
        data = gzip.decompress(data) if path.suffix == ".gz" else data
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{what}: it cannot be read ({reason}); give an existing file") from None
    return _READERS[Path(path.name.removesuffix(".gz")).suffix](data, what)


def _text(data: bytes, what: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{what}: it is not UTF-8 text (byte {error.start}); convert it") from None


def _json_lines(data: bytes, what: str) -> Rows:
    lines = [(n, line) for n, line in enumerate(_text(data, what).split("\n"), 1) if line.strip()]
    return _objects([_json(line, f"{what}: line {n}") for n, line in lines], what)


def _json_list(data: bytes, what: str) -> Rows:
    rows = _json(_text(data, what), what)
    if not isinstance(rows, list):
        raise UserError(f"{what}: a .json file must hold one list of objects")
    return _objects(rows, what)


def _objects(rows: list[Any], what: str) -> Rows:
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise UserError(f"{what}: row {number} is {type(row).__name__}, not an object with columns")
    return rows


def _json(text: str, what: str) -> Any:
    """Parses JSON; integers that are too long for Python to parse stay text."""
    try:
        return json.loads(text, parse_int=lambda digits: int(digits) if len(digits) <= _MAX_DIGITS else digits)
    except json.JSONDecodeError as error:
        raise UserError(f"{what} is not JSON: {error}; fix it") from None
    except RecursionError:
        raise UserError(f"{what} is nested too deeply to be read; fix it") from None


def _csv(data: bytes, what: str) -> Rows:
    """Cells are text as it is written: 007 stays 007, and NA is no missing value."""
    csv.field_size_limit(sys.maxsize)
    reader = csv.DictReader(io.StringIO(_text(data, what), newline=""), strict=True)
    rows: Rows = []
    try:
        for row in reader:
            if None in row or None in row.values():
                raise UserError(
                    f"{what}: the row that ends in line {reader.line_num} has more or fewer cells than the header, {reader.fieldnames}; "
                    "fix it, with quotes around a cell that has a comma"
                )
            rows.append(row)
    except csv.Error as error:
        raise UserError(f"{what}: it is not CSV behind line {reader.line_num} ({error}); fix it") from None
    return rows


def _parquet(data: bytes, what: str) -> Rows:
    import pyarrow  # a tenth of a second, and only this format needs it
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_table(pyarrow.BufferReader(data)).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{what}: it cannot be read as Parquet ({first_line(error)}); write it again") from None


_READERS: dict[str, Callable[[bytes, str], Rows]] = {
    ".jsonl": _json_lines,
    ".json": _json_list,
    ".csv": _csv,
    ".parquet": _parquet,
}


def hub_rows(dataset: str, config: str | None, split: str, built_in: str) -> Rows:
    """The rows of a data set of the hub or of a folder in its format. split: where its name has none.

    built_in: what else the name may be, for the message of a name that leads nowhere.
    """
    hub = HubName.read(dataset)
    _require_no_path(hub.name)
    if hub.config and config and hub.config != config:
        raise UserError(f"dataset_config is {config!r}: {dataset!r} names its own; leave one of them out")
    import datasets  # half a second, and only hub names need it

    name, usual = HUB_NAMES.get(hub.name, (hub.name, None))
    try:
        loaded = datasets.load_dataset(name, hub.config or config or usual, split=hub.split or split)
    except Exception as error:  # noqa: BLE001  the library raises many kinds for a name that is not there
        raise UserError(
            f"dataset is {dataset!r}: it is neither built in ({built_in}) nor an existing {ENDINGS} file, and loading {name!r} "
            f"from the hub failed ({type(error).__name__}: {first_line(error)}). Without a network give a file; a configuration and a "
            "split are named in the name, as in name:config/split, or with --dataset-config and --dataset-split, of held-out problems "
            "with --eval-config and --eval-split"
        ) from None
    return [dict(row) for row in loaded]


def _require_no_path(name: str) -> None:
    """Raises UserError for a name that can only be meant as a file, so that it is not looked up on the hub, where names have one slash."""
    path = Path(name)
    if path.is_file():
        raise UserError(
            f"dataset is {name!r}: a data set is read from a {ENDINGS} file, each also with .gz; convert it or rename it"
        )
    if not path.is_dir() and (name.startswith((".", "/", "~")) or name.count("/") > 1):
        raise UserError(f"dataset is {name!r}: there is no such file or folder; give an existing one")
