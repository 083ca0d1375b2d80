"""Format adds to correctness, never replaces it, and every part stays visible."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from rewards.combine import CombinedVerifier
from rewards.errors import UserError
from rewards.score import Outcome, Reference, Score

FORMED, LOOSE = "<think>w</think><answer>{}</answer>", "{}"


class Equal:
    """Correct if the reference occurs in the answer; '?' cannot be graded."""

    closed = False

    def verify_batch(self, answers: Sequence[str], references: Sequence[Reference]) -> list[Score]:
        return [self._score(answer, str(reference)) for answer, reference in zip(answers, references, strict=True)]

    def _score(self, answer: str, reference: str) -> Score:
        if "?" in answer:
            return Score(None, Outcome.CRASHED, {}, "the worker died")
        right = reference in answer
        return Score(float(right), Outcome.CORRECT if right else Outcome.WRONG, {"math": float(right)}, "compared")

    def check_references(self, references: Sequence[Reference]) -> list[Score]:
        return [Score(None, Outcome.BAD_REFERENCE, {}, "empty") for _ in references]

    def close(self) -> None:
        self.closed = True


def combined(gated: bool) -> CombinedVerifier:
    return CombinedVerifier(Equal(), ["think-answer"], weight=0.2, gated=gated)


@pytest.mark.parametrize(
    ("answer", "gated", "added"),
    [  # c (1 - w + w f) and (1 - w) c + w f at w = 0.2
        (FORMED.format(7), 1.0, 1.0),
        (LOOSE.format(7), 0.8, 0.8),
        (FORMED.format(8), 0.0, 0.2),
        (LOOSE.format(8), 0.0, 0.0),
    ],
)
def test_a_wrong_answer_earns_nothing_for_its_format_unless_ungated(answer: str, gated: float, added: float) -> None:
    for is_gated, value in ((True, gated), (False, added)):
        score = combined(is_gated).verify_batch([answer], ["7"])[0]
        assert score.value == pytest.approx(value)
        assert score.outcome is (Outcome.CORRECT if "7" in answer else Outcome.WRONG)
        assert score.parts == {"math": float("7" in answer), "think-answer": float("<" in answer)}


def test_an_invalid_score_is_rejected_before_the_format_is_added() -> None:
    class Mine(Equal):
        def verify_batch(self, answers: Sequence[str], references: Sequence[Reference]) -> list[Score]:
            return [None for _ in answers]  # pyright: ignore

    with pytest.raises(UserError, match="verifier 'Mine', answer '7': it returned None"):
        CombinedVerifier(Mine(), ["words:1"]).verify_batch(["7"], ["7"])


def test_the_detail_contains_both_details() -> None:
    assert combined(True).verify_batch(["7"], ["7"])[0].detail == "compared; think-answer: <think> occurs 0 times"


def test_several_rules_share_the_weight() -> None:
    verifier = CombinedVerifier(Equal(), ["think-answer", "words:1"], weight=0.2, gated=True)
    score = verifier.verify_batch(["7"], ["7"])[0]
    assert score.value == pytest.approx(1 - 0.2 + 0.2 / 2)
    assert score.parts == {"math": 1.0, "think-answer": 0.0, "words:1": 1.0}


def test_an_ungradable_answer_stays_ungradable() -> None:
    """The format could be scored without the answer, but the value would then consist of the format alone."""
    for gated in (True, False):
        score = combined(gated).verify_batch([FORMED.format("?")], ["7"])[0]
        assert score.value is None
        assert score.outcome is Outcome.CRASHED


def test_check_references_and_close_are_delegated_to_the_verifier() -> None:
    verifier = Equal()
    made = CombinedVerifier(verifier, ["boxed"], weight=0.1)
    assert [s.outcome for s in made.check_references(["", ""])] == [Outcome.BAD_REFERENCE] * 2
    made.close()
    assert verifier.closed


def test_format_rules_read_the_models_own_turn_only() -> None:
    """A base model that continues after its turn as another speaker has still formatted its answer well."""
    verifier = CombinedVerifier(Equal(), ["think-answer", "words:2"], weight=0.2)
    score = verifier.verify_batch([FORMED.format(7) + "<|im_end|>\n<|im_start|>user\nand now <think>"], ["7"])[0]
    assert score.parts == {"math": 1.0, "think-answer": 1.0, "words:2": 1.0}
