"""`plumbline curate`: rows a second and memory, and what a model learns from the rows that it chooses.

    python -m benchmarks.curation
    python -m benchmarks.curation --learning

Without --learning, generated rows are curated by one process for each size, with a test set and a census: CPU seconds, as other programs
may run, and the peak of resident memory. With it, the tiny model's base is trained on 1,000 rows of an uneven and noisy pool in four
ways of choosing them: see benchmarks/curation_learning.py.

Writes benchmarks/results/curation.json or curation_learning.json.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import tyro

from benchmarks.machine import describe_machine, write_result
from benchmarks.update_memory import resident
from rl.settings.curate_options import CurateOptions
from rollout.corpus.curate import curate
from rollout.corpus.curation_stages import Curation

DOMAINS, WORDS, SENTENCES = 50, 20_000, 20_000


@dataclass(frozen=True, kw_only=True)
class Options:
    sizes: tuple[int, ...] = (100_000, 1_000_000)
    """Rows of each measurement."""
    learning: bool = False
    """Measure what is learnt instead."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds with learning."""


def sentences(rng: random.Random, count: int) -> list[str]:
    words = ["".join(rng.choices("abcdefghijklmnoprstuvw", k=rng.randint(2, 9))) for _ in range(WORDS)]
    return [" ".join(rng.choices(words, k=10)).capitalize() + "." for _ in range(count)]


def rows(count: int) -> Iterator[dict[str, Any]]:
    """Questions of about 30 words and solutions of 20 to 400. Of a hundred rows two have a block of code that is not closed, two repeat a
    question, one has a sentence of the test set, and half are solved. Domain k of 50 is drawn in proportion to 1 / k."""
    rng = random.Random(0)
    told, tested = sentences(rng, SENTENCES), sentences(rng, 1_000)
    shares = [1 / k for k in range(1, DOMAINS + 1)]
    for number in range(count):
        asked = rng.randrange(number) if number and rng.random() < 0.02 else number
        question = [f"Exercise {asked} of {asked % 97}?", *random.Random(asked).choices(told, k=3)]
        question += rng.choices(tested, k=1) if rng.random() < 0.01 else []
        solution = "\n".join(rng.choices(told, k=rng.randint(2, 40))) + "\n```" * (rng.random() < 0.02)
        (domain,) = rng.choices(range(DOMAINS), shares)
        yield {
            "id": number,
            "question": " ".join(question),
            "answer": f"{solution}\n\\boxed{{{number}}}",
            "domain": f"domain {domain}",
        }


def write_pool(folder: Path, count: int) -> None:
    rng = random.Random(0)
    with (folder / "rows.jsonl").open("w") as pool, (folder / "census.jsonl").open("w") as census:
        for row in rows(count):
            pool.write(json.dumps(row) + "\n")
            rated = {"prompt": row["question"], "pass_rate": rng.choice((0.0, 0.25))}
            census.write(json.dumps(rated) + "\n")
    rng = random.Random(0)
    sentences(rng, SENTENCES)
    lines = (json.dumps({"question": one, "answer": "1"}) + "\n" for one in sentences(rng, 1_000))
    (folder / "test.jsonl").write_text("".join(lines))


def measure(folder: Path) -> dict[str, Any]:
    options = CurateOptions(
        rows=(folder / "rows.jsonl",),
        out=folder / "out.jsonl",
        test_sets=(str(folder / "test.jsonl"),),
        solved_by=(folder / "census.jsonl",),
    )
    before, started, wall = resident("VmRSS") >> 20, time.process_time(), time.monotonic()
    report = curate(Curation(**vars(options)))
    seconds = time.process_time() - started
    return {
        "rows": report.left["rows read"],
        "left after": report.left,
        "bytes of the file": (folder / "rows.jsonl").stat().st_size,
        "cpu_seconds": round(seconds, 1),
        "wall_seconds": round(time.monotonic() - wall, 1),
        "rows_per_cpu_second": round(report.left["rows read"] / seconds),
        "resident_before_mb": before,
        "peak_mb": resident("VmHWM") >> 20,
    }


def main(options: Options) -> None:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    if options.learning:
        from benchmarks.curation_learning import learn

        write_result("curation_learning", learn.__doc__ or "", {**describe_machine(), **learn(options.seeds)})
        return
    found = []
    for count in options.sizes:
        with TemporaryDirectory() as folder, multiprocessing.get_context("spawn").Pool(1) as worker:
            write_pool(Path(folder), count)
            found.append(worker.apply(measure, (Path(folder),)))
            print(found[-1])
    write_result("curation", __doc__ or "", {**describe_machine(), "sizes": found})


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
