"""Rejection sampling: the correct and readable completions of a model, as a data set of worked solutions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rewards.answer_format import format_rule
from rewards.errors import UserError
from rl.command.census import problem_row, sampled, write_rows
from rl.command.evaluate_model import opened
from rl.pipeline.stages import Found
from rl.run.build import with_environments
from rl.run.evaluate import is_right
from rl.settings.options import CensusOptions
from rl.view.progress import Progress
from rollout.records import SOLUTION, FinishReason, Problem, Rollout, RolloutGroup

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Kept:
    """Which completions are kept. per_problem: the most of one problem, so that easy problems do not outweigh hard ones. formats: rules
    that a completion must satisfy in full."""

    per_problem: int
    formats: tuple[str, ...]

    def of(self, group: RolloutGroup, fallen: Counter[str]) -> list[Rollout]:
        """The first of the completions that are kept, in the order in which they were sampled. fallen: counts the reasons of others."""
        kept: list[Rollout] = []
        seen = set[str]()
        for rollout in group.rollouts:
            text = " ".join(rollout.completion.text.split())
            reason = self._reason(rollout)
            if reason is None:
                reason = "a duplicate" if text in seen else None
                seen.add(text)
            if reason is None and len(kept) == self.per_problem:
                reason = "more than enough of a problem"
            if reason is None:
                kept.append(rollout)
            else:
                fallen[reason] += 1
        return kept

    def _reason(self, rollout: Rollout) -> str | None:
        if not rollout.is_graded:
            return "could not be graded"
        if not is_right(rollout):
            return rollout.score.outcome.value
        if rollout.completion.finish_reason is FinishReason.LENGTH:
            return "cut by max_tokens"
        return next((rule for rule in self.formats if format_rule(rule)(rollout.completion.text).value < 1), None)


def reject(
    options: CensusOptions,
    problems: Sequence[Problem],
    kept: Kept,
    out: Path,
    progress: Progress,
    written: Callable[[Row], Row] = dict,
) -> Found:
    """Samples options.samples completions of each problem and writes those that are kept to `out`, a data set for --algorithm sft.

    As in DeepSeek-R1 (arXiv 2501.12948, section 2.3.3): several responses of each prompt from the checkpoint of RL, only correct ones
    retained, hardly readable ones left out. written: how a row
    is written. Returns counts: of sampled and kept completions, of problems with one, of the others by reason.
    """
    options, environments = with_environments(options)
    fallen, rows, solved = Counter[str](), list[Row](), 0
    with opened(options, environments, problems, "training", progress) as (collector, graded):
        for group in sampled(collector, graded, progress, "rejection sampling: "):
            chosen = list(_rows(group, kept.of(group, fallen)))
            solved += bool(chosen)
            rows += chosen
    if not rows:
        most = ", ".join(f"{count} {reason}" for reason, count in fallen.most_common(3))
        raise UserError(
            f"samples is {options.samples}: no completion of {len(graded)} problems is correct and readable ({most}); train the stage before "
            "for longer, raise samples, or allow other formats"
        )
    write_rows(out, map(written, rows))
    return {
        "sampled": len(graded) * options.samples,
        "kept": len(rows),
        "problems": solved,
        "fallen": dict(fallen.most_common()),
    }


def _rows(group: RolloutGroup, kept: Sequence[Rollout]) -> Iterator[Row]:
    for number, rollout in enumerate(kept):
        yield {**problem_row(group.problem), "id": f"{group.problem.id}#{number}", SOLUTION: rollout.completion.text}
