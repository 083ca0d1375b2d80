"""Format counts beside correctness, never instead of it, and every part stays visible."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from rewards.combine import CombinedVerifier
from rewards.errors import UserError
from rewards.score import Outcome, Reference, Score

FORMED, LOOSE = "<think>w</think><answer>{}</answer>", "{}"


class Equal:
    """Right if the reference occurs; '?' cannot be graded."""

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
def test_a_wrong_answer_earns_nothing_for_its_form_unless_told_so(answer: str, gated: float, added: float) -> None:
    for is_gated, value in ((True, gated), (False, added)):
        score = combined(is_gated).verify_batch([answer], ["7"])[0]
        assert score.value == pytest.approx(value)
        assert score.outcome is (Outcome.CORRECT if "7" in answer else Outcome.WRONG)
        assert score.parts == {"math": float("7" in answer), "think-answer": float("<" in answer)}


def test_what_is_no_score_is_refused_before_anything_is_added_to_it() -> None:
    class Mine(Equal):
        def verify_batch(self, answers: Sequence[str], references: Sequence[Reference]) -> list[Score]:
            return [None for _ in answers]  # pyright: ignore

    with pytest.raises(UserError, match="verifier 'Mine', answer '7': it returned None"):
        CombinedVerifier(Mine(), ["words:1"]).verify_batch(["7"], ["7"])


def test_the_detail_says_what_both_found() -> None:
    assert combined(True).verify_batch(["7"], ["7"])[0].detail == "compared; think-answer: <think> occurs 0 times"


def test_several_rules_share_the_weight() -> None:
    verifier = CombinedVerifier(Equal(), ["think-answer", "words:1"], weight=0.2, gated=True)
    score = verifier.verify_batch(["7"], ["7"])[0]
    assert score.value == pytest.approx(1 - 0.2 + 0.2 / 2)
    assert score.parts == {"math": 1.0, "think-answer": 0.0, "words:1": 1.0}


def test_what_could_not_be_graded_stays_so() -> None:
    """A form can be judged without the answer, but a value would then be made of the form alone."""
    for gated in (True, False):
        score = combined(gated).verify_batch([FORMED.format("?")], ["7"])[0]
        assert score.value is None
        assert score.outcome is Outcome.CRASHED


def test_references_and_the_end_are_the_verifiers_business() -> None:
    verifier = Equal()
    made = CombinedVerifier(verifier, ["boxed"], weight=0.1)
    assert [s.outcome for s in made.check_references(["", ""])] == [Outcome.BAD_REFERENCE] * 2
    made.close()
    assert verifier.closed


def test_a_form_is_that_of_the_models_own_turn() -> None:
    """A base model that writes on after its turn, as somebody else, has written its answer well."""
    verifier = CombinedVerifier(Equal(), ["think-answer", "words:2"], weight=0.2)
    score = verifier.verify_batch([FORMED.format(7) + "<|im_end|>\n<|im_start|>user\nand now <think>"], ["7"])[0]
    assert score.parts == {"math": 1.0, "think-answer": 1.0, "words:2": 1.0}
