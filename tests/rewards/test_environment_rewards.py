"""What an environment leaves at the end of a rollout reaches the rewards: its own one, and functions that ask for its state."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from rewards.combine import CombinedVerifier
from rewards.errors import UserError
from rewards.function_verifier import FunctionVerifier
from rewards.functions.source import Source
from rewards.reward_spec import need_references, parse_rewards
from rewards.score import FinalState, Outcome, Score, verify
from rewards.verifiers import REWARD, VerifierOptions, Verifiers

FUNCTIONS = """
def tries(state): return 1 / state["tries"]
def most(environments, **kwargs):
    return [float(env.tries == max(other.tries for other in environments)) for env in environments]
def column(answer, state): return len(state)
def few(environments, **kwargs): return [1.0 if env.tries < 3 else None for env in environments]
def many(environments, **kwargs): return [0.5 if env.tries >= 3 else None for env in environments]
def reached(environments, target, word, **kwargs):
    return [env.tries == t and w == "crane" for env, t, w in zip(environments, target, word)]
def never(answer): return None
def watched(answer): return 1.0
def fails(state):
    if state["tries"] > 3: raise ValueError("no")
"""
WON, LOST = (
    FinalState(Score(1.0, Outcome.CORRECT), {"tries": 2}),
    FinalState(Score(0.0, Outcome.WRONG), {"tries": 4}),
)


def verifiers(tmp_path: Path, *rewards: str, has_environment: bool = True) -> Verifiers:
    (tmp_path / "given.py").write_text(FUNCTIONS)
    named = [reward.replace("given.py", f"{tmp_path}/given.py") for reward in rewards]
    return Verifiers(VerifierOptions(num_workers=1, rewards=parse_rewards(named), has_environment=has_environment))


def scores(verifier: Any, finals: Sequence[FinalState | None]) -> list[Score]:
    count = len(finals)
    return verify(verifier, ["text"] * count, [""] * count, ["Which?"] * count, final_states=finals)


def test_the_reward_of_the_environment_is_a_part_of_the_sum(tmp_path: Path) -> None:
    assert not need_references(["environment"])
    named = verifiers(tmp_path, "given.py:tries=0.5", "environment")
    won, lost = scores(named[REWARD], [WON, LOST])
    assert (won.value, won.parts) == (1.25, {"tries": 0.5, "environment": 1.0})
    assert (lost.value, lost.parts) == (0.125, {"tries": 0.25, "environment": 0.0})
    named.close()


def test_a_failed_get_reward_is_not_graded_and_a_missing_one_leaves_the_others_to_decide(tmp_path: Path) -> None:
    crashed = FinalState(Score(None, Outcome.CRASHED, {}, "ValueError: no"), {"tries": 1})
    named = verifiers(tmp_path, "given.py:tries", "environment")
    failed, without = scores(named[REWARD], [crashed, FinalState(None, {"tries": 1})])
    assert (failed.value, failed.outcome) == (None, Outcome.CRASHED)
    assert (without.value, without.outcome) == (1.0, Outcome.CORRECT)
    alone = verifiers(tmp_path, "environment")
    (outside,) = scores(alone[REWARD], [None])
    assert (outside.value, outside.outcome) == (None, Outcome.NOT_GRADED)
    named.close()


def test_a_reward_that_does_not_grade_an_answer_is_left_out_of_its_sum_as_in_trl(tmp_path: Path) -> None:
    named = verifiers(tmp_path, "given.py:few=2", "given.py:many")
    won, lost = scores(named[REWARD], [WON, LOST])
    assert (won.value, won.outcome, won.parts) == (2.0, Outcome.CORRECT, {"few": 1.0})
    assert (lost.value, lost.outcome, lost.parts) == (0.5, Outcome.WRONG, {"many": 0.5})
    named.close()


@pytest.mark.parametrize("reward", ["given.py:never", "given.py:watched=0", "environment"])
def test_an_answer_that_no_reward_with_a_weight_grades_is_not_graded(tmp_path: Path, reward: str) -> None:
    named = verifiers(tmp_path, "given.py:few", reward)
    without_reward = FinalState(None, {"tries": 4})
    (score,) = scores(named[REWARD], [without_reward])
    assert (score.value, score.outcome, score.parts) == (None, Outcome.NOT_GRADED, {})
    named.close()


def test_a_reward_that_fails_is_not_left_out(tmp_path: Path) -> None:
    named = verifiers(tmp_path, "given.py:watched", "given.py:fails")
    left_out, failed = scores(named[REWARD], [WON, LOST])
    assert (left_out.value, failed.value, failed.outcome) == (1.0, None, Outcome.CRASHED)
    named.close()


def test_a_function_as_for_trl_gets_the_environments_of_a_group(tmp_path: Path) -> None:
    named = verifiers(tmp_path, "given.py:most")
    assert [score.value for score in scores(named[REWARD], [WON, LOST, WON])] == [0.0, 1.0, 0.0]
    named.close()


def test_columns_are_lists_beside_environments_as_in_trl(tmp_path: Path) -> None:
    named = verifiers(tmp_path, "given.py:reached")
    rows = [{"target": 2, "word": "crane"}] * 2
    found = verify(named[REWARD], ["a", "b"], [""] * 2, ["Which?"] * 2, rows, final_states=[WON, LOST])
    assert [score.value for score in found] == [1.0, 0.0]
    named.close()


def test_format_rules_pass_the_final_state_on() -> None:
    combined = CombinedVerifier(Verifiers(VerifierOptions(rewards=parse_rewards(["environment"])))[REWARD], ["words:1"])
    assert [score.value for score in scores(combined, [WON, LOST])] == [1.0, 0.0]


def test_without_an_environment_state_is_a_column_like_any_other(tmp_path: Path) -> None:
    (tmp_path / "given.py").write_text(FUNCTIONS)
    spec = f"{tmp_path}/given.py:column"
    verifier = FunctionVerifier(spec, Source.parse(spec), num_workers=1)
    assert [s.outcome for s in verifier.check_references(["Ohio"], ["Which?"], [{"state": "Ohio"}])] == [
        Outcome.CORRECT
    ]
    assert verifier.verify_batch(["a"], ["Ohio"], ["Which?"], [{"state": "Ohio"}])[0].value == 4.0
    with pytest.raises(UserError, match="it asks for 'state', which no problem offers"):
        verifier.check_references(["Ohio"], ["Which?"], [{"city": "Troy"}])
    verifier.close()


def test_a_function_that_asks_for_the_state_is_not_tried_before_there_is_one(tmp_path: Path) -> None:
    named = verifiers(tmp_path, "given.py:tries")
    assert [score.outcome for score in named[REWARD].check_references(["", ""])] == [Outcome.CORRECT] * 2
    named.close()
