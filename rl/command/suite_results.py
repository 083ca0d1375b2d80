"""Results of a suite: a journal of the graded completions of each set, the measures computed from it, and the table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rewards.errors import UserError
from rewards.extract import AnswerForm, answer_by_form
from rewards.score import Outcome
from rl.command.estimate import Estimate
from rl.command.evaluate_model import pass_at_k
from rl.run.evaluate import vote
from rl.view.metrics import write_whole
from rollout.published.scores import SCORES, PublishedScore
from rollout.records import FinishReason, RolloutGroup

Record = Mapping[str, Any]  # {"id": of the problem, "samples": a list of completions with their outcome}
HEADINGS = ("set", "problems", "k", "avg@k", "pass@k", "maj@k", "cut", "not graded", "published")


def record_of(group: RolloutGroup) -> Record:
    """A problem's completions as a line of the journal."""
    samples = [
        {
            "text": rollout.completion.text,
            "outcome": rollout.score.outcome.value,
            "detail": rollout.score.detail,
            "tokens": rollout.completion.num_chosen,
            "finish": rollout.completion.finish_reason.value,
            "seed": rollout.completion.seed,
        }
        for rollout in group.rollouts
    ]
    return {"id": group.problem.id, "samples": samples}


class Journal:
    """A file of JSON lines: first the settings, then a record for each problem that is done.

    records: those that the file has. Raises UserError if it was written with other settings. A line that a kill cut short is left out.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path, self.settings = path, dict(settings)
        self.records: list[Record] = []
        if path.exists():
            whole = path.read_text(encoding="utf-8").split("\n")[:-1]
            for before in map(json.loads, whole[:1]):
                _require_same(path, before, json.loads(json.dumps(self.settings)))
            self.records = [json.loads(line) for line in whole[1:]]

    def keep(self, count: int) -> None:
        """Cuts the file after so many records, and writes its settings if it is new."""
        self.records = self.records[:count]
        write_whole(self.path, _lines([self.settings, *self.records]))

    def add(self, records: Sequence[Record]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(_lines(records))
        self.records += records


def _lines(rows: Sequence[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def _require_same(path: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    differing = [name for name in (*before, *(n for n in now if n not in before)) if before.get(name) != now.get(name)]
    if differing:
        shown = "; ".join(f"{name} was {_shown(before.get(name))} and is {_shown(now.get(name))}" for name in differing)
        raise UserError(
            f"out is {str(path.parent)!r}: {path.name} was written with other settings ({shown}); repeat them to go on, or name another folder"
        )


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:60] + "…"


@dataclass(frozen=True, kw_only=True)
class SetResult:
    """What was measured on a set.

    k: samples of each problem. problems: that were sampled. left_out: those that were not, because their reference cannot be graded or
    their prompt is too long. not_graded: samples on which the verifier failed. measures: avg@k, pass@k and so on, by name.
    """

    name: str
    k: int
    problems: int
    left_out: int
    not_graded: int
    measures: Mapping[str, Estimate | None]
    settings: Mapping[str, Any]


def measured(name: str, journal: Journal, *, k: int, left_out: int, voted: bool, form: AnswerForm | None) -> SetResult:
    """voted: answers of the set can be compared with one another, so that there is a majority. form: where they stand."""
    sampled = [record["samples"] for record in journal.records]
    return SetResult(
        name=name,
        k=k,
        problems=len(sampled),
        left_out=left_out,
        not_graded=sum(not _is_graded(sample) for samples in sampled for sample in samples),
        measures=measures(sampled, k, voted, form),
        settings=journal.settings,
    )


def measures(
    sampled: Sequence[Sequence[Mapping[str, Any]]], k: int, voted: bool, form: AnswerForm | None
) -> dict[str, Estimate | None]:
    """Over problems with a graded sample: avg@k is the mean share of correct samples among the graded ones, pass@k is 1 where one of k
    graded samples is correct, maj@k is the vote of the graded ones (arXiv 2203.11171). A sample that was not graded is no wrong one."""
    graded = [own for samples in sampled if (own := [s for s in samples if _is_graded(s)])]
    right = [[sample["outcome"] == Outcome.CORRECT.value for sample in own] for own in graded]
    found = {
        "avg@k": Estimate.of([sum(own) / len(own) for own in right]),
        "pass@k": Estimate.of([pass_at_k(len(own), sum(own), k) for own in right if len(own) >= k]),
    }
    if voted:
        texts = [[answer_by_form(sample["text"], form) for sample in own] for own in graded]
        found["maj@k"] = Estimate.of([vote([*zip(*pair, strict=True)]) for pair in zip(right, texts, strict=True)])
    everything = [sample for samples in sampled for sample in samples]
    found["cut by max_tokens"] = Estimate.of([s["finish"] == FinishReason.LENGTH.value for s in everything])
    found["tokens"] = Estimate.of([sample["tokens"] for sample in everything], is_share=False)
    return found


def _is_graded(sample: Mapping[str, Any]) -> bool:
    return Outcome(sample["outcome"]).gradable


def write_results(folder: Path, results: Sequence[SetResult], absent: Mapping[str, str]) -> None:
    """results.json, with all settings, and results.md, the table."""
    written = [
        {**asdict(result), "published": [asdict(score) for score in SCORES.get(result.name, ())]} for result in results
    ]
    write_whole(folder / "results.json", json.dumps({"sets": written, "not there": absent}, indent=2) + "\n")
    write_whole(folder / "results.md", table(results, absent) + "\n")


def table(results: Sequence[SetResult], absent: Mapping[str, str]) -> str:
    """The results as a Markdown table, with the sources of the published scores below it. absent: sets that are not there, and why."""
    scores = [score for result in results for score in SCORES.get(result.name, ())]
    sources = list(dict.fromkeys(score.source for score in scores))
    rows = [HEADINGS, ("---",) * len(HEADINGS), *(_row(result, sources) for result in results)]
    rows += [(name, "not there", *("-",) * (len(HEADINGS) - 2)) for name in absent]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |" for row in rows]
    notes = [
        "In brackets: 95 % confidence intervals, by bootstrap over problems. Published scores have other prompts and settings."
    ]
    notes += [f"[{number}] {source}" for number, source in enumerate(sources, 1)]
    return "\n".join([*lines, "", *(f"{note}  " for note in notes)]).rstrip()


def _row(result: SetResult, sources: Sequence[str]) -> tuple[str, ...]:
    measured_of = result.measures
    total = result.problems + result.left_out
    return (
        result.name,
        f"{result.problems}" + (f" of {total}" if result.left_out else ""),
        f"{result.k}",
        _percent(measured_of["avg@k"]),
        *(_percent(measured_of.get(name) if result.k > 1 else None) for name in ("pass@k", "maj@k")),
        _percent(measured_of["cut by max_tokens"], with_interval=False),
        f"{result.not_graded} of {result.problems * result.k}" if result.not_graded else "0",
        "; ".join(_published(score, sources) for score in SCORES.get(result.name, ())) or "-",
    )


def _percent(found: Estimate | None, *, with_interval: bool = True) -> str:
    if found is None:
        return "-"
    interval = f" [{100 * found.low:.1f}, {100 * found.high:.1f}]" if with_interval else ""
    return f"{100 * found.mean:.1f}{interval}"


def _published(score: PublishedScore, sources: Sequence[str]) -> str:
    return f"{score.percent:g} {score.model}, {score.how} [{sources.index(score.source) + 1}]"
