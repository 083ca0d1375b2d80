"""Mining from the first page read to the report."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np

from rollout.corpus.mining.collection import collect
from rollout.corpus.mining.describe import describe
from rollout.corpus.mining.domains import Decisions, domains_of, write_domains
from rollout.corpus.mining.results import files_of_tests, write_pages
from rollout.corpus.mining.rounds import run_rounds
from rollout.corpus.mining.settings import Mining, write_json
from rollout.corpus.mining.training import SEED
from rollout.corpus.mining.workers import Workers

Report = dict[str, Any]


def mine(mining: Mining, report: Callable[[str], None]) -> Report:
    """Mines the pages; returns what report.json has. A call with the folder of one that was interrupted goes on.

    The result depends on the options and the files, not on the number of workers or on interruptions. Raises UserError for files that
    hold no page and for a folder of other settings.
    """
    decisions, tests = Decisions.read(mining.reviewed), files_of_tests(mining)
    mining.claim()
    try:
        with Workers(mining.workers, report) as workers:
            pages, counts = collect(mining, workers)
            rounds, state = run_rounds(mining, pages, decisions, workers)
            domains = domains_of(pages, state.collected, mining.accept_above, decisions)
            contaminated = write_pages(mining, pages, state, tests, workers)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("interrupted: the same command goes on from here") from None
    write_domains(mining.out / "domains.jsonl", domains)
    seed = json.loads((mining.out / SEED).read_text(encoding="utf-8"))
    found = {
        "pages": counts | {"used": len(pages), "words": int(pages.words.sum(dtype=np.int64))},
        "seed": seed,
        "rounds": [asdict(one) | {"known_share": one.known_share} for one in rounds],
        "domains": {"recalled": len(domains), "accepted": sum(one.accepted for one in domains)},
        "contaminated": {"pages": len(contaminated), "first": contaminated[:1]},
        "mined": rounds[-1].collected - len(contaminated),
    }
    write_json(mining.out / "report.json", found)
    (mining.out / "report.md").write_text(describe(found) + "\n", encoding="utf-8")
    return found
