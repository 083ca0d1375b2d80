"""Files in every format give the same rows, and one that is missing or broken is named as such and not looked up on the hub."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from rewards.errors import UserError
from rollout.dataset_rows import file_rows
from rollout.problems import load_problems

ROWS = [
    {"question": "Zoë pays 5€, 007?", "answer": "007", "note": 'a "quoted", cell\nof two lines'},
    {"question": "none?", "answer": "NA", "note": ""},
]


def write_csv(path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(ROWS[0]))
        writer.writeheader()
        writer.writerows(ROWS)


WRITERS: dict[str, Callable[[Path], object]] = {
    "data.csv": write_csv,
    "data.jsonl": lambda path: path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), "utf-8"),
    "data.json": lambda path: path.write_text(json.dumps(ROWS), "utf-8"),
    "data.parquet": lambda path: pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path),
}


@pytest.fixture(autouse=True)
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*_: object, **__: object) -> None:
        raise AssertionError("a file is not looked up on the hub")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)


@pytest.mark.parametrize("name", WRITERS)
def test_rows_are_the_same_from_every_format(name: str, tmp_path: Path) -> None:
    """CSV cells stay text: 007 is not 7, and NA is not a missing value."""
    WRITERS[name](tmp_path / name)
    assert file_rows(tmp_path / name) == ROWS
    packed = tmp_path / f"{name}.gz"
    packed.write_bytes(gzip.compress((tmp_path / name).read_bytes()))
    assert file_rows(packed) == ROWS
    assert [p.reference for p in load_problems(str(packed))] == ["007", "NA"]


def test_nested_cells_of_parquet_are_messages(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "so #### 2"}]
    path = tmp_path / "chat.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"messages": messages, "verifier": None}]), path)
    (problem,) = load_problems(str(path))
    assert (problem.prompt, problem.reference) == ((messages[0],), "2")


def test_two_configurations_of_one_data_set_are_refused() -> None:
    with pytest.raises(UserError, match=r"dataset_config is 'main': 'x/y:other' names its own; leave one of them out"):
        load_problems("x/y:other", config="main")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("absent.csv", None, r"it cannot be read \(No such file or directory\); give an existing file"),
        ("absent.parquet", None, r"it cannot be read \(No such file"),
        ("short.csv", b"question,answer\n1+1?,2\n2+2?\n", r"the row that ends in line 3 has more or fewer cells than the header"),
        ("long.csv", b"question,answer\n1,000+1?,1001\n", r"the row that ends in line 2 has more or fewer .*with quotes around"),
        ("open.csv", b'question,answer\n"1+1?,2\n', r"it is not CSV behind line 1 \(unexpected end of data\); fix it"),
        ("latin.csv", "question,answer\né,1\n".encode("latin-1"), r"it is not UTF-8 text \(byte 16\)"),
        ("header.csv", b"question,answer\n", r"it has no rows; give one"),
        ("broken.parquet", b"PAR1 and nothing else", r"it cannot be read as Parquet \(.*\); write it again"),
        ("broken.jsonl.gz", b"no gzip", r"it cannot be read \(Not a gzipped file"),
        ("notes.txt", b"question", r"a data set is read from a .jsonl, .json, .csv or .parquet file"),
        ("absent.txt", None, r"there is no such file or folder; give an existing one"),
    ],
)  # fmt: skip
def test_a_missing_or_broken_file_is_told_as_such(
    name: str, content: bytes | None, message: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"dataset is '.*{name}': {message}"):
        load_problems(str(tmp_path / name))
