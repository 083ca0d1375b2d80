"""What was sampled, in numbers, and who is to blame for what could not be judged."""

from __future__ import annotations

import pytest
import torch

from rewards.errors import UserError
from rewards.score import Outcome, Score
from rl.algorithms import GRPO
from rl.head import TokenScores
from rl.loop import require_judged
from rl.measure import TokenMeans, outcome_shares, part_means
from rl.values import Seen
from rollout.records import Completion, FinishReason, Problem, Rollout, RolloutGroup
from tests.rl.models import random_batch

PROBLEM = Problem(id="p", prompt="1+1?", reference="2")


def rollout(outcome: Outcome, *, cut: bool = False, parts: dict[str, float] | None = None) -> Rollout:
    value = float(outcome is Outcome.CORRECT) if outcome.gradable else None
    completion = Completion(
        token_ids=(1,),
        sampler_logprobs=(0.0,),
        finish_reason=FinishReason.LENGTH if cut else FinishReason.STOP,
        policy_version=0,
        seed=0,
        text="so it is",
    )
    return Rollout(problem=PROBLEM, completion=completion, score=Score(value, outcome, parts or {}))


def test_truncated_completions_are_counted_apart() -> None:
    """Half an answer is no answer, and no fault of the parser; a right answer is right, and a crash ours, wherever cut."""
    cut = [rollout(outcome, cut=True) for outcome in Outcome]
    shares = outcome_shares([*cut, rollout(Outcome.WRONG)])
    assert shares["outcome/truncated"] == pytest.approx(4 / 8)  # wrong, no_answer, unparsed, timeout
    assert shares["outcome/wrong"] == pytest.approx(1 / 8)
    for kept in ("correct", "crashed", "bad_reference"):
        assert shares[f"outcome/{kept}"] == pytest.approx(1 / 8)
    assert sum(shares.values()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("outcomes", "stops"),
    [("ucc", False), ("uuc", True), ("ttc", True), ("xxc", True), ("UUUc", False), ("nnnn", False)],
)
def test_a_run_stops_when_too_much_could_not_be_judged(outcomes: str, stops: bool) -> None:
    """u unparsed, t timeout, x crashed, n no answer, c correct; U unparsed since it was cut. The bound is a half."""
    kinds = {
        "u": Outcome.UNPARSED,
        "t": Outcome.TIMEOUT,
        "x": Outcome.CRASHED,
        "n": Outcome.NO_ANSWER,
        "c": Outcome.CORRECT,
    }
    rollouts = tuple(rollout(kinds[o.lower()], cut=o.isupper()) for o in outcomes)
    groups = [RolloutGroup(problem=PROBLEM, prompt_ids=(1,), rollouts=rollouts)]
    if not stops:
        require_judged(groups, 0.5)
        return
    with pytest.raises(UserError, match=r"2 of 3 answers") as stopped:
        require_judged(groups, 0.5)
    assert str(stopped.value).count("answer ends 'so it is'") == 2  # the examples


def test_each_part_has_its_mean_over_the_scores_that_have_it() -> None:
    parts = [{"math": 1.0, "boxed": 0.0}, {"math": 0.0, "boxed": 1.0}, {"math": 0.0}, {}]
    means = part_means([rollout(Outcome.WRONG, parts=p) for p in parts])
    assert means == {"part/math": pytest.approx(1 / 3), "part/boxed": 0.5}


def test_what_a_process_does_only_to_keep_step_is_not_measured() -> None:
    """Batch.idle(): tokens that no other process has, for the sake of a forward."""
    batch = random_batch()
    (micro,) = batch.micro_batches(10_000)
    tokens = TokenMeans(), TokenMeans()
    for of, micros in zip(tokens, ([micro], [micro, batch.idle()]), strict=True):
        for one in micros:
            logprobs = torch.linspace(-2, -1, len(one.targets))
            of.add(GRPO, TokenScores(logprobs, -logprobs), Seen(logprobs, None, None), one)
    assert tokens[0].means() == tokens[1].means()
