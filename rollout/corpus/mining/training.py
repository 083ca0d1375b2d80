"""The examples of a round: pages of the seed and of domains that joined it, against random pages of the collection."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import numpy as np

from rewards.errors import UserError
from rollout.corpus.mining.collection import Collection, hash_of
from rollout.corpus.mining.domains import Domain
from rollout.corpus.mining.settings import Mining, write_json
from rollout.corpus.mining.workers import Workers
from rollout.corpus.pages import Page, PageReader, require_pages
from rollout.corpus.rows import Skipped
from rollout.whole_file import whole

NEGATIVES, JOINED = "negatives.jsonl", "joined.jsonl"
SEED = "seed.json"
Takes = dict[str, Domain] | None  # by host; None takes every page


def prepare(mining: Mining, pages: Collection, workers: Workers) -> int:
    """The number of pages of the seed. Copies random pages of the collection as negatives for all rounds, unless that is done.

    Pages of the seed, by URL, are no negatives. Raises UserError if no others are left, or the seed is empty.
    """
    counted = mining.out / SEED
    if not counted.exists():
        skipped = Skipped()
        seed = np.array([hash_of(page.url) for page in _pages_of_seed(mining, skipped)], np.uint64)
        require_pages(len(seed), skipped, "seed_pages")
        others = np.flatnonzero(~np.isin(pages.urls, seed))
        if not len(others):
            raise UserError(
                "pages has only pages of seed_pages: there is nothing to tell them from; give random pages of the web"
            )
        drawn = np.random.default_rng(mining.seed).choice(others, min(mining.train_pages, len(others)), replace=False)
        copy_pages(mining, pages, mask_of(drawn, len(pages)), mining.out / NEGATIVES, workers)
        write_json(counted, {"pages": len(seed), "skipped": dict(skipped.counts.most_common())})
    return json.loads(counted.read_text(encoding="utf-8"))["pages"]


def mask_of(chosen: np.ndarray, size: int) -> np.ndarray:
    mask = np.zeros(size, bool)
    mask[chosen] = True
    return mask


def _pages_of_seed(mining: Mining, skipped: Skipped) -> Iterator[Page]:
    return chain.from_iterable(mining.seed_reader.pages(file, skipped) for file in mining.seed_files)


def copy_pages(
    mining: Mining, pages: Collection, chosen: np.ndarray, target: Path, workers: Workers, takes: Takes = None
) -> np.ndarray:
    """Writes [index, text] of the chosen pages that are taken. Returns which ones these are."""
    tasks = []
    for file, indices in pages.by_file(chosen):
        part = target.with_name(f"{target.name}.{file:05}")
        tasks.append((mining.reader, mining.files[file], pages.numbers[indices], indices, part, takes))
    parts = [task[4] for task in tasks]
    taken = list(workers.map(f"copying {target.stem}", _copy_of_file, tasks)) if tasks else []
    concatenate(parts, target)
    return mask_of(np.concatenate([np.array([], int), *taken]), len(pages))


def _copy_of_file(
    reader: PageReader, file: Path, numbers: np.ndarray, indices: np.ndarray, part: Path, takes: Takes
) -> np.ndarray:
    taken = []
    with part.open("w", encoding="utf-8") as out:
        for index, page in zip(indices, selected(reader, file, numbers), strict=True):
            if takes is None or takes[page.host].takes(page.url):
                out.write(json.dumps([int(index), page.text]) + "\n")
                taken.append(index)
    return np.array(taken, int)


def selected(reader: PageReader, file: Path, numbers: np.ndarray) -> Iterator[Page]:
    """The pages of the file with these record numbers."""
    return reader.pages(file, Skipped(), mask_of(numbers, int(numbers[-1]) + 1))


def concatenate(parts: list[Path], target: Path) -> None:
    with whole(target) as aside, aside.open("wb") as out:
        for part in parts:
            with part.open("rb") as lines:
                while block := lines.read(1 << 20):
                    out.write(block)
    for part in parts:
        part.unlink()


def write_examples(mining: Mining, number: int, seed_size: int, joined: np.ndarray, target: Path) -> tuple[int, int]:
    """Writes lines of [1, text of a positive] and [0, text of a negative]; returns how many of each.

    Positives are drawn from the seed and what joined it; there are at most as many negatives. What joined the seed is no negative.
    """
    draw = np.random.default_rng([mining.seed, number])
    size = seed_size + int(joined.sum())
    positives = mask_of(draw.choice(size, min(mining.train_pages, size), replace=False), size)
    indices = np.fromiter((index for index, _ in _copied(mining.out / NEGATIVES)), np.int64)
    possible = np.flatnonzero(~joined[indices])
    drawn = draw.choice(possible, min(int(positives.sum()), len(possible)), replace=False)
    negatives = mask_of(drawn, len(indices))
    with target.open("w", encoding="utf-8") as out:
        for label, mask, texts in (
            (1, positives, _positives(mining, number)),
            (0, negatives, (text for _, text in _copied(mining.out / NEGATIVES))),
        ):
            out.writelines(json.dumps([label, text]) + "\n" for use, text in zip(mask, texts, strict=True) if use)
    return int(positives.sum()), len(drawn)


def _positives(mining: Mining, number: int) -> Iterator[str]:
    yield from (page.text for page in _pages_of_seed(mining, Skipped()))
    for earlier in range(1, number + 1):
        yield from (text for _, text in _copied(mining.round_folder(earlier) / JOINED))


def _copied(file: Path) -> Iterator[tuple[int, str]]:
    with file.open(encoding="utf-8") as lines:
        yield from map(json.loads, lines)
