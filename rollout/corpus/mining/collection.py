"""The pages that take part: all that could be read, without duplicates. What is known of each is its place, host and length."""

from __future__ import annotations

import json
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import tee
from pathlib import Path
from typing import Any

import numpy as np

from rollout.contamination import words_of
from rollout.corpus.mining.settings import Mining, write_json
from rollout.corpus.mining.workers import Workers
from rollout.corpus.near_duplicates import Signatures, near_duplicates, signatures
from rollout.corpus.pages import PageReader, require_pages
from rollout.corpus.rows import Skipped
from rollout.whole_file import whole


@dataclass(frozen=True, kw_only=True)
class Collection:
    """Arrays over the pages, in the order of the files. starts: of each file's pages, and the end. numbers: of the records in their
    files. urls: 64-bit hashes."""

    starts: np.ndarray
    numbers: np.ndarray
    urls: np.ndarray
    hosts: np.ndarray
    words: np.ndarray
    names: list[str]  # of the hosts

    def __len__(self) -> int:
        return len(self.numbers)

    def by_file(self, chosen: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """(number of a file, which of the collection's pages are chosen in it) for each file that has any."""
        pages = np.flatnonzero(chosen)
        bounds = np.searchsorted(pages, self.starts)
        for file in range(len(self.starts) - 1):
            if bounds[file] < bounds[file + 1]:
                yield file, pages[bounds[file] : bounds[file + 1]]


def hash_of(url: str) -> int:
    return int.from_bytes(blake2b(url.strip().encode("utf-8", "replace"), digest_size=8).digest(), "little")


def collect(mining: Mining, workers: Workers) -> tuple[Collection, dict[str, Any]]:
    """The collection, and the counts of what was left out of it. Made once; then read from the folder."""
    folder = mining.out / "index"
    if not (folder / "counts.json").exists():
        folder.mkdir(exist_ok=True)
        parts = [folder / f"{number:05}.npz" for number in range(len(mining.files))]
        tasks = [(mining.reader, file, part) for file, part in zip(mining.files, parts, strict=True)]
        for _ in workers.map("reading", _index_file, tasks):
            pass
        workers.report("looking for duplicates")
        _join(folder, parts)
    with np.load(folder / "pages.npz") as saved:
        arrays = {name: saved[name] for name in saved.files}
    names = str(arrays.pop("names")).split("\n")
    return Collection(names=names, **arrays), json.loads((folder / "counts.json").read_text(encoding="utf-8"))


def _index_file(reader: PageReader, file: Path, part: Path) -> None:
    if part.exists():
        return
    skipped, hosts = Skipped(), dict[str, int]()
    columns = {"numbers": array("I"), "urls": array("Q"), "hosts": array("I"), "words": array("I")}
    first, second = tee(reader.pages(file, skipped))
    with whole(part.with_suffix(".signatures")) as aside, aside.open("wb") as out:
        for page, signature in zip(first, signatures(page.text for page in second)):
            values = page.number, hash_of(page.url), hosts.setdefault(page.host, len(hosts)), len(words_of(page.text))
            for column, value in zip(columns.values(), values, strict=True):
                column.append(value)
            out.write(signature.tobytes())
    with whole(part) as aside, aside.open("wb") as out:
        arrays: dict[str, Any] = {name: np.array(column) for name, column in columns.items()}
        np.savez(out, **arrays, names="\n".join(hosts), skipped=json.dumps(vars(skipped)))


def _join(folder: Path, parts: Sequence[Path]) -> None:
    """Writes the pages without duplicates, and what was left out; removes the parts."""
    columns, starts, hosts, skipped = _joined_parts(parts)
    require_pages(starts[-1], skipped, "pages")
    _, first = np.unique(columns["urls"], return_index=True)
    kept = np.zeros(starts[-1], bool)
    kept[first] = True
    alike = near_duplicates(Signatures([part.with_suffix(".signatures") for part in parts]), kept)
    counts = {
        "read": int(starts[-1]),
        "skipped": dict(skipped.counts.most_common()),
        "first_skipped": skipped.first,
        "duplicate_urls": int((~kept).sum()),
        "near_duplicates": int(alike.sum()),
    }
    kept &= ~alike
    arrays: dict[str, Any] = {name: column[kept] for name, column in columns.items()}
    starts = np.concatenate([[0], np.cumsum(kept)])[starts]
    with whole(folder / "pages.npz") as aside, aside.open("wb") as out:
        np.savez(out, **arrays, starts=starts, names="\n".join(hosts))
    write_json(folder / "counts.json", counts)
    for part in parts:
        part.unlink()
        part.with_suffix(".signatures").unlink()


def _joined_parts(parts: Sequence[Path]) -> tuple[dict[str, np.ndarray], np.ndarray, dict[str, int], Skipped]:
    """The columns of all parts, with one numbering of the hosts; the starts of the parts; the hosts; what was skipped."""
    pieces: dict[str, list[np.ndarray]] = {"numbers": [], "urls": [], "hosts": [], "words": []}
    hosts, skipped = dict[str, int](), Skipped()
    for part in parts:
        with np.load(part) as saved:
            names = str(saved["names"]).split("\n")
            numbering = np.array([hosts.setdefault(name, len(hosts)) for name in names if name], np.uint32)
            for column, found in pieces.items():
                found.append(numbering[saved[column]] if column == "hosts" else saved[column])
            lost = json.loads(str(saved["skipped"]))
        skipped.counts += Counter(lost["counts"])
        skipped.first = lost["first"] | skipped.first
    starts = np.cumsum([0, *(len(piece) for piece in pieces["numbers"])])
    return {name: np.concatenate(found) for name, found in pieces.items()}, starts, hosts, skipped
