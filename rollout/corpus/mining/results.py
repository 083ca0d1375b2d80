"""What mining leaves: the mined pages without those that hold text of test sets, the domains, and a report."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from rewards.errors import UserError
from rollout.contamination import NGramIndex
from rollout.corpus.mining.collection import Collection
from rollout.corpus.mining.one_round import State
from rollout.corpus.mining.settings import Mining
from rollout.corpus.mining.training import concatenate, selected
from rollout.corpus.mining.workers import Workers
from rollout.corpus.pages import PageReader
from rollout.corpus.rows import Skipped, files_of, read_rows

TEST_COLUMNS = ("question", "problem", "prompt", "text", "answer", "solution", "reference")
NGRAM = 10  # words (DeepSeekMath, section 2.1)


@lru_cache(maxsize=1)
def ngrams_of_tests(files: tuple[Path, ...]) -> NGramIndex:
    """The n-grams of the questions and answers of test sets, each file a set. Raises UserError for a file without any."""
    index = NGramIndex(NGRAM)
    for file in files:
        skipped = Skipped()
        texts = [
            row[name]
            for _, row in read_rows([file], skipped)
            for name in TEST_COLUMNS
            if isinstance(row.get(name), str)
        ]
        if not texts:
            found = "".join(f"; {line}" for line in skipped.lines())
            raise UserError(
                f"test_sets has {str(file)!r}: no row has a text in the columns {', '.join(TEST_COLUMNS)}{found}; rename its columns"
            )
        index.add(texts)
    return index


def files_of_tests(mining: Mining) -> tuple[Path, ...]:
    files = tuple(files_of(mining.test_sets, "test_sets"))
    ngrams_of_tests(files)
    return files


def write_pages(
    mining: Mining, pages: Collection, state: State, tests: tuple[Path, ...], workers: Workers
) -> list[Any]:
    """Writes pages.jsonl, and contaminated.jsonl with what was left out and why; returns the latter's rows."""
    tasks, parts = [], []
    for file, indices in pages.by_file(state.collected):
        parts.append(mining.out / f"pages.jsonl.{file:05}")
        values = pages.numbers[indices], state.scores[indices], state.first_round[indices]
        tasks.append((mining.reader, mining.files[file], *values, tests, parts[-1]))
    found = [row for rows in workers.map("writing", _write_pages_of_file, tasks) for row in rows]
    concatenate(parts, mining.out / "pages.jsonl")
    (mining.out / "contaminated.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")
    return found


def _write_pages_of_file(
    reader: PageReader,
    file: Path,
    numbers: np.ndarray,
    scores: np.ndarray,
    rounds: np.ndarray,
    tests: tuple[Path, ...],
    part: Path,
) -> list[dict[str, str]]:
    contaminated, index = [], ngrams_of_tests(tests)
    with part.open("w", encoding="utf-8") as out:
        for page, score, first in zip(selected(reader, file, numbers), scores, rounds, strict=True):
            if ngram := index.found_in(page.text):
                contaminated.append({"url": page.url, "ngram": ngram})
                continue
            row = {"url": page.url, "text": page.text, "score": round(float(score), 4), "round": int(first)}
            out.write(json.dumps(row) + "\n")
    return contaminated
