"""Does mining find the mathematics of a made web whose truth is known, and in bounded memory?

    python -m benchmarks.mining                  200,000 pages, and 20,000 for the memory and for what else --keep makes
    python -m benchmarks.mining --sizes 4000 20000

Runs `plumbline mine` on the web of tests/rollout/corpus/made_web.py with domains accepted by their share of recalled pages, and with
domains that a person looked through after round 1, which the truth plays here. Writes benchmarks/results/mining.json.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tyro

from benchmarks.machine import describe_machine, write_result
from tests.rollout.corpus.made_web import MATHEMATICS, MadePage, write_web

PAGES_PER_FILE = 2500
MATH_DOMAIN = 0.1  # share of mathematics from which the person accepts a domain
Truth = Mapping[str, MadePage]


@dataclass(frozen=True, kw_only=True)
class Options:
    sizes: tuple[int, int] = (20_000, 200_000)
    """Pages of the smaller and the larger web."""
    keeps: tuple[float, float] = (0.04, 0.06)
    """Values of --keep; the second in the smaller web only."""
    seed_pages: int = 2000
    """Pages of the seed, and --train-pages."""
    rounds: int = 4


def mine(web: Path, out: Path, keep: float, options: Options, rounds: int, *more: str) -> dict[str, float]:
    """Runs the command; the seconds of the CPU that it takes, and the peak of its memory in MiB."""
    command = [sys.executable, "-c", "from rl.cli import main; main()", "mine", "--pages", str(web / "pages")]
    command += ["--seed-pages", str(web / "seed.jsonl"), "--test-sets", str(web / "tests.jsonl"), "--out", str(out)]
    command += ["--keep", str(keep), "--train-pages", str(options.seed_pages), "--rounds", str(rounds), *more]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"mining ended with status {os.waitstatus_to_exitcode(status)}")
    return {"cpu_seconds": usage.ru_utime + usage.ru_stime, "peak_mib": usage.ru_maxrss / 1024}


def review(out: Path, truth: Truth) -> Path:
    """The domains of round 1 as a person decides: those with mathematics, and of them the pages under /mathematics/."""
    pages, mathematics = Counter[str](), Counter[str]()
    for url, page in truth.items():
        host = url.split("/")[2]
        pages[host] += 1
        mathematics[host] += page.is_math
    target = out.with_name(f"{out.name}-reviewed.jsonl")
    with target.open("w", encoding="utf-8") as reviewed:
        for line in (out / "domains.jsonl").read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            accepted = mathematics[row["domain"]] > MATH_DOMAIN * pages[row["domain"]]
            reviewed.write(json.dumps(row | {"accepted": accepted, "paths": ["/mathematics/"]}) + "\n")
    return target


def judge(out: Path, truth: Truth) -> dict[str, Any]:
    """Recall and precision after each round against the truth, without copies and pages with text of the test set, and the rest."""
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    first = {row["url"]: row["round"] for row in rows(out / "pages.jsonl")}
    wanted = {url for url, page in truth.items() if page.is_math and not page.copy_of and not page.planted}
    by_round = []
    for one in report["rounds"]:
        mined = {url for url, number in first.items() if number <= one["number"]}
        styles: dict[str, list[bool]] = defaultdict(list)
        for url in wanted:
            styles[truth[url].style].append(url in mined)
        by_round.append({
            "recall": len(mined & wanted) / len(wanted),
            "precision": sum(truth[url].is_math for url in mined) / len(mined),
            "recall_by_style": {style: sum(styles[style]) / len(styles[style]) for style in MATHEMATICS},
            **{name: one[name] for name in ("seed", "joined", "accepted_domains", "recalled", "known_share", "collected")},
        })  # fmt: skip
    copies = {url for url, page in truth.items() if page.copy_of}
    removed = {row["url"] for row in rows(out / "contaminated.jsonl")}
    return {
        "share_of_mathematics": len(wanted) / len(truth),
        "rounds": by_round,
        "planted": {
            "in_web": sum(bool(page.planted) for page in truth.values()),
            "collected": sum(bool(truth[url].planted) for url in removed | set(first)),
            "left": sum(bool(truth[url].planted) for url in first),
            "removed_without": sum(not truth[url].planted for url in removed),
        },
        "near_duplicates": {"made": len(copies), "removed": report["pages"]["near_duplicates"]},
    }


def rows(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def measure(size: int, keeps: Sequence[float], options: Options) -> list[dict[str, Any]]:
    """Of each share to keep: with domains accepted by their share, and looked through by a person."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        web = Path(folder) / "web"
        truth = write_web(web, size, options.seed_pages, files=max(1, size // PAGES_PER_FILE))
        for keep in keeps:
            out = Path(folder) / str(keep)
            first = mine(web, out, keep, options, 1)
            person = Path(shutil.copytree(out, f"{out}-person"))
            for folder_, how, more in ((out, "by share", ()), (person, "reviewed", ("--reviewed", review(out, truth)))):
                rest = mine(web, folder_, keep, options, options.rounds, *map(str, more))
                taken = {
                    "cpu_seconds": first["cpu_seconds"] + rest["cpu_seconds"],
                    "peak_mib": max(first["peak_mib"], rest["peak_mib"]),
                }
                found.append({"pages": size, "keep": keep, "domains": how, **judge(folder_, truth), **taken})
                print(size, keep, how, *(f"{r['recall']:.3f}/{r['precision']:.3f}" for r in found[-1]["rounds"]), taken)
    return found


def speed_of_parts(options: Options) -> dict[str, float]:
    """Pages a second on one core: reading (with MinHash), and scoring of one round."""
    import numpy as np

    from rollout.corpus.mining.collection import _index_file
    from rollout.corpus.mining.one_round import _score_file
    from rollout.corpus.page_classifier import BUCKETS, PageClassifier
    from rollout.corpus.pages import PageReader

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_web(folder / "web", PAGES_PER_FILE, 1, files=1)
        file = folder / "web" / "pages" / "00.jsonl"
        PageClassifier(np.zeros(BUCKETS, np.float32), 0.0).save(folder / "classifier")
        actions = {
            "reading": lambda n: _index_file(PageReader(), file, folder / f"{n}.npz"),
            "scoring": lambda n: _score_file(
                PageReader(), file, np.arange(PAGES_PER_FILE), folder / "classifier", folder / f"{n}.npy"
            ),
        }
        speeds = {}
        for part, action in actions.items():
            seconds = []
            for number in range(3):
                started = time.process_time()
                action(number)
                seconds.append(time.process_time() - started)
            speeds[part] = PAGES_PER_FILE / min(seconds)
        speeds["characters_per_page"] = file.stat().st_size / PAGES_PER_FILE
    return speeds


def table(found: dict[str, Any]) -> str:
    """Of the larger web, round by round."""
    largest = max(run["pages"] for run in found["runs"])
    lines = [
        "| domains | round | recall, % | precision, % | of these known before, % | pages collected |",
        "| --- " * 6 + "|",
    ]
    for run in (run for run in found["runs"] if run["pages"] == largest):
        for number, one in enumerate(run["rounds"], 1):
            shares = (f"{100 * one[name]:.1f}" for name in ("recall", "precision", "known_share"))
            lines.append(f"| {run['domains']} | {number} | {' | '.join(shares)} | {one['collected']:,} |")
    return "\n".join(lines)


def main(options: Options) -> None:
    parts = speed_of_parts(options)
    print({name: round(value) for name, value in parts.items()})
    smaller, larger = options.sizes
    found = measure(smaller, options.keeps, options) + measure(larger, options.keeps[:1], options)
    result = {**describe_machine(), "options": asdict(options), "per_core": parts, "runs": found}
    write_result("mining", __doc__ or "", result)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
