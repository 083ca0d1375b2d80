"""Streams of rows: what cannot be read is counted, and the rest is."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import pytest

from rewards.errors import UserError
from rollout.contamination import NGramIndex
from rollout.corpus import rows
from rollout.corpus.rows import Skipped, files_of, read_rows

GOOD = json.dumps({"text": "a"}).encode()


def test_broken_lines_are_counted_by_reason_and_the_others_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "LONGEST", 64)
    long = json.dumps({"text": "b" * 300}).encode()
    lines = [GOOD, long, b"\xff\xfe", b"[1]", b"{", b"", b"[" * 60, b'{"n": ' + b"9" * 50 + b"}", GOOD]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    skipped = Skipped()
    found = list(read_rows(files_of([tmp_path], "data"), skipped))
    assert [where for where, _ in found] == ["a.jsonl:1", "a.jsonl:8", "a.jsonl:9"]
    assert skipped.counts == {
        "line longer than 0 MiB": 1,
        "not UTF-8": 1,
        "not an object with columns": 1,
        "not JSON": 2,
    }
    assert skipped.first["not JSON"] == "a.jsonl:5"


def test_a_cut_archive_gives_what_is_whole_and_the_next_file_is_read(tmp_path: Path) -> None:
    draw = random.Random(0)
    packed = gzip.compress(b"\n".join(json.dumps({"number": draw.random()}).encode() for _ in range(20_000)))
    (tmp_path / "a.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    (tmp_path / "b.jsonl").write_bytes(GOOD)
    skipped = Skipped()
    found = [where for where, _ in read_rows(files_of([tmp_path], "data"), skipped)]
    assert 100 < len(found) < 20_000 and found[-1] == "b.jsonl:1"
    assert list(skipped.counts) == ["rest of a damaged file"]


@pytest.mark.parametrize("name", ["absent.jsonl", "table.csv", "empty"])
def test_a_file_that_is_not_there_or_of_another_format_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "table.csv").write_text("a")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=rf"data is .*{name}.*; (give a file|convert it)"):
        files_of([tmp_path / name], "data")


def test_an_index_holds_n_grams_of_long_texts_and_short_ones_whole() -> None:
    index = NGramIndex(5)
    index.add(["Janet has 3 ducks and 7 geese.", "What is 2+2?", "Hello there"])
    assert index.found_in("We know: janet HAS 3, ducks and cats") == "janet has 3 ducks and"
    assert index.found_in("Janet has 3 ducks") is None
    assert index.found_in("So what is 2 + 2, then?") == "what is 2 2"
    assert index.found_in("hello there") is None  # two words may stand anywhere


def test_an_index_does_not_hold_the_words_of_a_template() -> None:
    index = NGramIndex(4)
    index.add([f"Give the answer as a number: x{n} + y{n} = z{n}" for n in range(20)])
    assert index.found_in("Give the answer as a number: 7") is None
    assert index.found_in("the number x7 y7 z7") == "number x7 y7 z7"
