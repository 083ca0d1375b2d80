"""Combines correctness and format rules in one reward, and reports each part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from rewards.answer_format import format_rule
from rewards.extract import own_turn
from rewards.score import FinalState, Reference, Score, Verifier, check_references, compares_group, verify
from rewards.verifier_contract import checked_scores


class CombinedVerifier:
    """Combines the value c of a verifier with the mean f of format rules at weight w; a
    `rewards.score.Verifier`.

        gated (the default)   c (1 - w + w f)      a wrong answer earns nothing for its format; c < 0 stays c
        not gated             (1 - w) c + w f      with 0 < w < 1

    A policy exploits an ungated format reward first, since it can be earned from the first step without a correct
    answer. The outcome is the verifier's; a value of None stays None. `parts` has the verifier's parts and one part per
    rule.
    """

    def __init__(self, verifier: Verifier, formats: Sequence[str], *, weight: float = 0.1, gated: bool = True) -> None:
        self._verifier, self._weight, self._gated = verifier, weight, gated
        self._rules = {name: format_rule(name) for name in formats}

    @property
    def compares_group(self) -> bool:
        """Whether the verifier grades the completions of a group together."""
        return compares_group(self._verifier)

    def verify_batch(
        self,
        answers: Sequence[str],
        references: Sequence[Reference],
        prompts: Sequence[str] | None = None,
        rows: Sequence[Mapping[str, Any]] | None = None,
        groups: Sequence[int] | None = None,
        final_states: Sequence[FinalState | None] | None = None,
    ) -> list[Score]:
        """The combined score of each answer. All but answers and references is passed on to a verifier that takes it."""
        if prompts is None:
            scores = self._verifier.verify_batch(answers, references)
        else:
            scores = verify(self._verifier, answers, references, prompts, rows, groups, final_states)
        named = type(self._verifier).__name__
        checked = checked_scores(scores, verifier=named, problems=[a[:40] for a in answers], named_by="answer")
        return [self._with_format(score, answer) for score, answer in zip(checked, answers, strict=True)]

    def check_references(
        self,
        references: Sequence[Reference],
        prompts: Sequence[str] | None = None,
        rows: Sequence[Mapping[str, Any]] | None = None,
    ) -> list[Score]:
        """The verifier's check of the references, to which format rules do not apply."""
        if prompts is None or rows is None:
            return self._verifier.check_references(references)
        return check_references(self._verifier, references, prompts, rows)

    def close(self) -> None:
        """Ends the verifier's worker processes. Safe to call twice."""
        self._verifier.close()

    def _with_format(self, score: Score, answer: str) -> Score:
        if score.value is None:
            return score
        text = own_turn(answer)
        format_scores = {name: rule(text) for name, rule in self._rules.items()}
        format_mean = sum(f.value for f in format_scores.values()) / len(format_scores)
        w = self._weight
        if self._gated:
            value = score.value * (1 - w + w * format_mean) if score.value > 0 else score.value
        else:
            value = (1 - w) * score.value + w * format_mean
        problems = "".join(f"; {name}: {f.problem}" for name, f in format_scores.items() if f.problem)
        parts = {**score.parts, **{name: f.value for name, f in format_scores.items()}}
        return replace(score, value=value, parts=parts, detail=score.detail + problems)
