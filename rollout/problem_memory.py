"""What a run remembers of each problem, its pass rate, and which problems it draws because of that."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field

from rewards.errors import UserError
from rewards.score import Outcome
from rollout.records import Problem, RolloutGroup

PASS_RATE = "pass_rate"  # column of a data set, as `plumbline census` writes it


@dataclass(kw_only=True)
class Record:
    """What is known of one problem. graded, correct: completions in the whole run; one that could not be graded is in no count.

    rate: the pass rate at the last visit whose completions were all graded; None before the first. The policy changes from visit to
    visit, so that older completions would tell of another policy.
    """

    graded: int = 0
    correct: int = 0
    rate: float | None = None

    def add(self, group: RolloutGroup) -> None:
        """Counts one visit."""
        graded = [rollout for rollout in group.rollouts if rollout.is_graded]
        correct = sum(rollout.score.outcome is Outcome.CORRECT for rollout in graded)
        self.graded += len(graded)
        self.correct += correct
        if len(graded) == len(group.rollouts):
            self.rate = correct / len(graded)


@dataclass
class ProblemMemory:
    """The records of the problems that were drawn, by their ids."""

    records: dict[str, Record] = field(default_factory=dict)

    def add(self, groups: Iterable[RolloutGroup]) -> None:
        for group in groups:
            self.records.setdefault(group.problem.id, Record()).add(group)

    def rate(self, problem: Problem) -> float | None:
        """The pass rate at the problem's last visit; None if it is not known."""
        record = self.records.get(problem.id)
        return None if record is None else record.rate

    def to_lines(self) -> str:
        """The records as JSON lines, in the order in which the problems were first drawn."""
        return "".join(json.dumps({"id": name, **vars(record)}) + "\n" for name, record in self.records.items())

    @staticmethod
    def from_lines(text: str) -> ProblemMemory:
        rows = map(json.loads, text.splitlines())
        return ProblemMemory({row.pop("id"): Record(**row) for row in rows})


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which problems are drawn, by their pass rates.

    drop_mastered: a problem whose pass rate at its last visit in the run reached this is never drawn again. difficulty: only problems
    whose pass rate is within these bounds are drawn, and those without one. A problem's pass rate is that of its last visit, and before
    that the data set's column pass_rate.
    """

    drop_mastered: float | None = None
    difficulty: tuple[float, float] | None = None

    def is_mastered(self, rate: float | None) -> bool:
        return self.drop_mastered is not None and rate is not None and rate >= self.drop_mastered

    def allows(self, problem: Problem, rate: float | None) -> bool:
        """Whether the problem may be drawn. rate: the pass rate at its last visit."""
        if self.is_mastered(rate):
            return False
        if self.difficulty is None:
            return True
        known = rate if rate is not None else given_rate(problem)
        low, high = self.difficulty
        return known is None or low <= known <= high


def given_rate(problem: Problem) -> float | None:
    """The pass rate that the data set gives; None without one."""
    given = problem.metadata.get(PASS_RATE)
    try:
        rate = None if given in (None, "") else float(given)
    except (TypeError, ValueError):
        rate = -1.0
    if rate is not None and not 0 <= rate <= 1:
        raise UserError(
            f"dataset: {PASS_RATE} of problem {problem.id!r} is {given!r}: it must be a share in [0, 1], or empty where it is not known"
        )
    return rate


def parse_difficulty(text: str, option: str = "difficulty") -> tuple[float, float]:
    """The bounds in "0.1:0.9". option: that has them, for the message."""
    try:
        low, high = map(float, text.split(":"))
    except ValueError:
        low, high = 1.0, 0.0
    if not 0 <= low <= high <= 1:
        raise UserError(
            f"{option} is {text!r}: it must be two pass rates in [0, 1], the lower one first, such as 0.1:0.9"
        )
    return low, high
