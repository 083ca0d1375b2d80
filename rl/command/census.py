"""`plumbline census`: how often a model solves each problem of a data set, and the data set with these pass rates."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rewards.reward_spec import need_references
from rewards.verifiers import REWARD
from rl.command.evaluate_model import opened, run_of, with_values_of
from rl.policy.load import require_folder
from rl.run.build import with_environments
from rl.settings.options import CensusOptions
from rl.view.metrics import write_whole
from rl.view.progress import Progress
from rollout.collect import Collector
from rollout.messages import messages_in
from rollout.problem_memory import PASS_RATE, Record
from rollout.problems import load_problems
from rollout.records import Problem, RolloutGroup
from rollout.row_problem import PROMPT_COLUMNS

AT_ONCE = 512  # problems, whose completions are in memory at the same time
MAX_BINS = 10  # of the histogram, beside the one for never
BAR = 40  # characters of the longest bar


@dataclass(frozen=True, kw_only=True)
class Profiled:
    """A problem, and what its samples showed."""

    problem: Problem
    record: Record

    @property
    def rate(self) -> float | None:
        """The share of correct completions among the graded ones; None where none could be graded."""
        return self.record.correct / self.record.graded if self.record.graded else None


def take_census(options: CensusOptions, progress: Progress) -> list[Profiled]:
    """Samples and grades completions of each problem. Writes the problems with their pass rates to options.out, if it is given."""
    require_folder(options.model)
    options = with_values_of(run_of(options), options)
    options, environments = with_environments(options)
    problems = load_problems(
        options.dataset,
        config=options.dataset_config,
        split=options.split,
        prompt_column=options.prompt_column,
        answer_column=options.answer_column,
        system_column=options.system_column,
        needs_reference=need_references(options.reward or ()),
        has_environment=environments is not None,
        report=progress.message,
    )[: options.size]
    with opened(options, environments, problems, "profiled", progress) as (collector, problems):
        found = list(profiled(collector, problems, progress))
    if options.out is not None:
        write_rows(options.out, map(as_row, found))
    return found


def profiled(collector: Collector, problems: Sequence[Problem], progress: Progress) -> Iterator[Profiled]:
    """The problems with the outcome of their samples, in their order."""
    for group in sampled(collector, problems, progress):
        record = Record()
        record.add(group)
        yield Profiled(problem=group.problem, record=record)


def sampled(
    collector: Collector, problems: Sequence[Problem], progress: Progress, what: str = ""
) -> Iterator[RolloutGroup]:
    """The graded samples of each problem, in their order. what: the beginning of the message about the progress."""
    for start in range(0, len(problems), AT_ONCE):
        progress.start(f"{what}{start} of {len(problems)} problems, {collector.group_size} samples of each")
        yield from collector.collect(problems[start : start + AT_ONCE], step=0).groups


def as_row(found: Profiled) -> dict[str, Any]:
    """The problem as a row, the pass rate, and the number of graded samples."""
    return {**problem_row(found.problem), PASS_RATE: found.rate, "samples": found.record.graded}


def problem_row(problem: Problem) -> dict[str, Any]:
    """The problem as load_problems reads it back, with all its other columns."""
    others = {name: value for name, value in problem.metadata.items() if name not in PROMPT_COLUMNS}
    grading = {"answer": problem.reference}
    if problem.verifier not in ("math", REWARD):  # a sum of rewards grades the row as it stands
        grading = {"verifier": problem.verifier, "reference": problem.reference}
    return {**others, "id": problem.id, "prompt": prompt_cell(problem), **grading}


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes a data set of these rows. What JSON has no values of is written as its text."""
    write_whole(path, "".join(json.dumps(row, default=str) + "\n" for row in rows))


def prompt_cell(problem: Problem) -> Any:
    """The prompt as a cell: text where it is one question, which would be read as that question again, else messages."""
    is_question = [message["role"] for message in problem.messages] == ["user"]
    return problem.question if is_question and messages_in(problem.question) is None else list(problem.messages)


def describe(found: Sequence[Profiled], samples: int) -> str:
    """A histogram of the pass rates: a line for each possible one, or for each tenth. Never and always are exact."""
    bins = min(samples, MAX_BINS)
    rates = [one.rate for one in found if one.rate is not None]
    labels = ["never", *(f"{number / bins:.0%}" for number in range(1, bins)), "always"]
    counts = Counter(nearest_bin(rate, bins) for rate in rates)
    width, longest = max(map(len, labels)), max(counts.values(), default=1)
    lines = ["pass rate and problems"]
    for number, label in enumerate(labels):
        count = counts[number]
        bar = "#" * -(-BAR * count // longest)
        lines.append(f"{label:<{width}}  {count:>7}  {count / max(1, len(rates)):6.1%}  {bar}".rstrip())
    mean = sum(rates) / len(rates) if rates else 0.0
    lines.append(f"{len(rates)} problems, solved in {mean:.1%} of the samples")
    if ungraded := len(found) - len(rates):
        lines.append(f"{ungraded} more have no sample that could be graded: their {PASS_RATE} is empty")
    return "\n".join(lines)


def nearest_bin(rate: float, bins: int) -> int:
    """The bin whose rate, bin / bins, is the nearest; the first and the last are for 0 and 1 only."""
    return round(rate * bins) if rate in (0, 1) else min(max(1, round(rate * bins)), max(1, bins - 1))
