"""A weighted sum of rewards, which keeps every one of them as a part of the score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rewards.answer_format import format_rule
from rewards.extract import own_turn
from rewards.score import FinalState, Outcome, Reference, Score, Verifier, check_references, compares_group, verify
from rewards.verifier_contract import checked_scores

Row = Mapping[str, Any]


class FormatVerifier:
    """The value of a format rule (rewards.answer_format) as a reward of its own; a `rewards.score.Verifier`."""

    def __init__(self, name: str) -> None:
        self._rule = format_rule(name)

    def verify_batch(self, answers: Sequence[str], references: Sequence[Reference]) -> list[Score]:
        """The value of the rule for each answer. It does not depend on the reference."""
        found = [self._rule(own_turn(answer)) for answer in answers]
        return [Score(f.value, Outcome.CORRECT if f.value == 1 else Outcome.WRONG, {}, f.problem) for f in found]

    def check_references(self, references: Sequence[Reference]) -> list[Score]:
        """CORRECT for every reference."""
        return [Score(1.0, Outcome.CORRECT)] * len(references)

    def close(self) -> None:
        """Does nothing: there are no worker processes."""


class EnvironmentVerifier:
    """What the get_reward of an answer's environment returned; a `rewards.score.Verifier`.

    NOT_GRADED by an environment without get_reward, so that other rewards decide.
    """

    def verify_batch(
        self,
        answers: Sequence[str],
        references: Sequence[Reference],
        final_states: Sequence[FinalState | None] | None = None,
    ) -> list[Score]:
        """The score of each answer's environment; NOT_GRADED for an answer that was given outside of one."""
        return [self._score(final) for final in final_states or [None] * len(answers)]

    def check_references(self, references: Sequence[Reference]) -> list[Score]:
        """CORRECT for every reference."""
        return [Score(1.0, Outcome.CORRECT)] * len(references)

    def close(self) -> None:
        """Does nothing: a run ends its environments itself."""

    @staticmethod
    def _score(final: FinalState | None) -> Score:
        if final is None:
            return Score(None, Outcome.NOT_GRADED, {}, "the answer was given outside of an environment")
        return final.score or Score(None, Outcome.NOT_GRADED, {}, "its environment has no get_reward")


@dataclass(frozen=True, kw_only=True)
class Weighted:
    """A verifier with its name and weight in a sum."""

    name: str
    verifier: Verifier
    weight: float


class WeightedVerifier:
    """Scores each answer by a sum of rewards, sum_k w_k r_k; a `rewards.score.Verifier`.

    `parts` has every r_k by its name, and the parts that it has itself, of several rewards as name.part. The outcome is
    that of the first reward, which decides what counts as correct. A reward that is NOT_GRADED is left out of the sum and
    of the parts, as TRL does; an answer that no reward with a weight has graded is NOT_GRADED. An answer on which one of
    them failed has the value None and that reward's outcome.
    """

    def __init__(self, rewards: Sequence[Weighted]) -> None:
        self._rewards = rewards

    @property
    def compares_group(self) -> bool:
        """Whether one of the rewards grades the completions of a group together."""
        return any(compares_group(one.verifier) for one in self._rewards)

    def verify_batch(
        self,
        answers: Sequence[str],
        references: Sequence[Reference],
        prompts: Sequence[str] | None = None,
        rows: Sequence[Row] | None = None,
        groups: Sequence[int] | None = None,
        final_states: Sequence[FinalState | None] | None = None,
    ) -> list[Score]:
        """The sum for each answer. What else it takes: see rewards.score.verify."""
        prompts, rows = prompts or [""] * len(answers), rows or [{}] * len(answers)
        named = [str(row.get("id", answer[:40])) for row, answer in zip(rows, answers)]
        by_reward = []
        for one in self._rewards:
            scores = verify(one.verifier, answers, references, prompts, rows, groups, final_states)
            by_reward.append(checked_scores(scores, verifier=one.name, problems=named))
        return [self._sum(scores) for scores in zip(*by_reward)]

    def check_references(
        self, references: Sequence[Reference], prompts: Sequence[str] | None = None, rows: Sequence[Row] | None = None
    ) -> list[Score]:
        """CORRECT for each reference that all rewards can grade against."""
        prompts, rows = prompts or [""] * len(references), rows or [{}] * len(references)
        checked = [check_references(one.verifier, references, prompts, rows) for one in self._rewards]
        return [next((s for s in of if s.outcome is not Outcome.CORRECT), of[0]) for of in zip(*checked)]

    def close(self) -> None:
        """Ends the worker processes of all rewards. Safe to call twice."""
        for one in self._rewards:
            one.verifier.close()

    def _sum(self, scores: Sequence[Score]) -> Score:
        named = list(zip(self._rewards, scores))
        detail = "; ".join(f"{one.name}: {score.detail}" for one, score in named if score.detail)
        for one, score in named:
            if score.value is None and score.outcome is not Outcome.NOT_GRADED:
                return Score(None, score.outcome, {}, f"{one.name}: {score.detail}")
        alone = len(named) == 1
        named = [(one, score) for one, score in named if score.value is not None]
        if not any(one.weight for one, _ in named):
            return Score(None, Outcome.NOT_GRADED, {}, detail)
        value = sum(one.weight * (score.value or 0.0) for one, score in named)
        parts = {
            name if alone else f"{one.name}.{name}": part
            for one, score in named
            for name, part in score.parts.items()
            if name != one.name
        }
        parts |= {one.name: score.value or 0.0 for one, score in named}
        return Score(value, named[0][1].outcome, parts, detail)
