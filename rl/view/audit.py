"""Compares a run's verdicts with those of math-verify, and lists the answers that the two engines grade differently."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rewards.errors import UserError
from rewards.extract import AnswerForm, answer_by_form
from rewards.pool import WorkerPool
from rewards.score import Outcome
from rl.view.metrics import complete_lines, existing_run_dir
from rl.view.progress import visible

_SHOWN = 80  # characters of an answer
_JUDGED = {outcome.value for outcome in (Outcome.CORRECT, Outcome.WRONG, Outcome.UNPARSED)}


@dataclass(frozen=True)
class Disagreement:
    """An answer that only one engine grades as correct. count: completions with this answer."""

    reference: str
    answer: str
    ours: str
    our_reason: str
    theirs: str
    their_reason: str
    count: int


def audit(run_dir: Path, *, num_workers: int = 2, deadline: float = 5.0) -> tuple[int, list[Disagreement]]:
    """-> the number of distinct math answers in the run, and those that are graded differently, the most frequent first."""
    path = existing_run_dir(run_dir) / "completions.jsonl"
    if not path.is_file():
        raise UserError(
            f"run folder {run_dir} has no completions.jsonl: there is nothing to audit; give the folder of a run that has sampled"
        )
    form = _answer_form(run_dir)
    answers: dict[tuple[str, str], dict[str, Any]] = {}
    counts: dict[tuple[str, str], int] = {}
    for row in _math_rows(path):
        key = row["reference"], answer_by_form(row["completion"], form) or ""
        answers.setdefault(key, row)
        counts[key] = counts.get(key, 0) + 1
    pool = WorkerPool(
        "rewards.mathematics.symbolic:load_alone", {}, num_workers=num_workers, deadline=deadline, memory_limit=2 << 30
    )
    try:
        opinions = pool.run([(f"\\boxed{{{answer}}}", reference) for reference, answer in answers])
    finally:
        pool.close()
    found = [
        Disagreement(*key, row["outcome"], row["detail"], theirs.value, reason, counts[key])
        for (key, row), (theirs, reason) in zip(answers.items(), opinions, strict=True)
        if (row["outcome"] == Outcome.CORRECT.value) != (theirs is Outcome.CORRECT)
    ]
    return len(answers), sorted(found, key=lambda d: -d.count)


def _answer_form(run_dir: Path) -> AnswerForm | None:
    """Where the run's math answers stand; None in a run from before that was an option."""
    config = run_dir / "config.json"
    return json.loads(config.read_text(encoding="utf-8")).get("answer_form") if config.is_file() else None


def _math_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of completions.jsonl that were graded by comparing a final answer."""
    for row in map(json.loads, complete_lines(path)):
        if row["outcome"] in _JUDGED and isinstance(row["reference"], str):
            yield row


def describe_audit(run_dir: Path, limit: int) -> str:
    """The audit as text."""
    num_answers, found = audit(run_dir)
    lines = [f"{num_answers:,} different answers; our engine and math-verify grade {len(found):,} of them differently."]
    for d in found[:limit]:
        lines += [
            f"reference {_short(d.reference)}, answer {_short(d.answer)}, {d.count} times",
            f"    ours: {d.ours} ({visible(d.our_reason)})    math-verify: {d.theirs} ({visible(d.their_reason)[:_SHOWN]})",
        ]
    if len(found) > limit:
        lines.append(f"and {len(found) - limit:,} more (--limit)")
    return "\n".join(lines)


def _short(text: str) -> str:
    return repr(visible(text[:_SHOWN])) + ("…" if len(text) > _SHOWN else "")
