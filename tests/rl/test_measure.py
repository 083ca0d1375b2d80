"""What was sampled, in numbers, and who is to blame for what could not be judged."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from rewards.errors import UserError
from rewards.score import Outcome, Score
from rl.forward.micro_batch import MicroBatch, TrainGroup, TrainSequence
from rl.objective.algorithms import GRPO
from rl.objective.tokens import TokenScores
from rl.objective.values import FrozenTargets, ValueTargets
from rl.run.loop import require_judged
from rl.update.step_metrics import TokenMeans, describe, outcome_shares, part_means, tool_metrics
from rollout.collect import Collected
from rollout.records import Completion, EndReason, FinishReason, Problem, Rollout, RolloutGroup, ToolUse
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
    assert shares["outcome/truncated"] == pytest.approx(4 / 9)  # wrong, no_answer, unparsed, timeout
    assert shares["outcome/wrong"] == pytest.approx(1 / 9)
    for kept in ("correct", "crashed", "bad_reference", "not_graded"):
        assert shares[f"outcome/{kept}"] == pytest.approx(1 / 9)
    assert sum(shares.values()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("outcomes", "stops"),
    [("ucc", False), ("uucc", False), ("uuc", True), ("ttc", True), ("xxc", True), ("UUUc", False), ("nnnn", False)],
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
    """Batch.dummy(): tokens that no other process has, for the sake of a forward."""
    batch = random_batch()
    (micro,) = batch.micro_batches(10_000)
    assert not batch.dummy().weights.any()  # nor learnt from
    tokens = TokenMeans(), TokenMeans()
    for of, micros in zip(tokens, ([micro], [micro, batch.dummy()]), strict=True):
        for one in micros:
            logprobs = torch.linspace(-2, -1, len(one.targets))
            of.add(GRPO, TokenScores(logprobs, -logprobs), FrozenTargets(logprobs, None, None), one)
    assert tokens[0].means() == tokens[1].means()


def test_what_was_sampled_is_described_whole() -> None:
    """Six completions of 18 tokens in three groups, two of them without signal and not trained on. p = 5/6: the variance of the
    rewards is p (1 - p) = 5/36, and two answers are both right or both wrong in 25/36 + 1/36 of all cases."""

    def of(outcome: Outcome, length: int, *, cut: bool = False) -> Rollout:
        one = rollout(outcome, cut=cut)
        tokens = {"token_ids": (1,) * length, "sampler_logprobs": (0.0,) * length}
        return replace(one, completion=replace(one.completion, **tokens))

    right, wrong = Outcome.CORRECT, Outcome.WRONG
    groups = [
        RolloutGroup(problem=PROBLEM, prompt_ids=(1,), rollouts=rollouts)
        for rollouts in (
            (of(right, 1), of(wrong, 6, cut=True)),
            (of(right, 2), of(right, 3)),
            (of(right, 2), of(right, 4)),
        )
    ]
    collected = Collected(
        groups=groups[:1], sampled=groups, num_refills=1, num_sampled_tokens=18, sample_seconds=4.0, verify_seconds=0.5
    )
    found = describe(collected, GRPO.assign_credit(collected.sampled, 10))
    assert (found["reward/mean"], found["accuracy/sampled"]) == pytest.approx((5 / 6, 5 / 6))
    assert found["reward/std"] == pytest.approx(math.sqrt(5 / 36))
    assert (found["length/mean"], found["length/max"], found["length/truncated"]) == (3.0, 6, 1 / 6)
    assert (found["groups/no_signal"], found["groups/no_signal_expected"]) == pytest.approx((2 / 3, 26 / 36))
    assert (found["groups/refilled"], found["tokens/sampled"], found["tokens/per_second"]) == (1, 18, 4.5)
    assert (found["time/sample"], found["time/verify"]) == (4.0, 0.5)


def test_means_over_tokens_worked_by_hand() -> None:
    """Of three tokens, with s, b, l, f of sampler, behaviour, policy and reference:

    b - s = ln 3, -ln 2, 0: weights 3, cut to 2, and 1/2, 1. KL of the sampler: k3 of s - b, e^(b-s) - (b - s) - 1.
    l - b = ln 1.3, ln 0.7, 0: ratios, two beyond 1 -+ 0.2. l - f = ln 2, 0, 0: k3 is 1/2 + ln 2 - 1.
    Returns 1, 1, 4 have variance 2, and less the values 0, 1, 2 they are 1, 0, 2: variance 2/3.
    """
    by_sampler, moved = torch.tensor([3.0, 0.5, 1.0]).log(), torch.tensor([1.3, 0.7, 1.0]).log()
    sequence = TrainSequence(
        token_ids=(1, 2, 3), sampler_logprobs=(-2.0, -1.0, -1.0), advantages=torch.ones(3), weight=1.0
    )
    micro = MicroBatch.of([TrainGroup((4,), (sequence,))])
    behaviour = micro.sampler_logprobs + by_sampler
    policy = behaviour + moved
    values, returns = torch.tensor([0.0, 1.0, 2.0]), torch.tensor([1.0, 1.0, 4.0])
    seen = FrozenTargets(
        behaviour,
        policy - torch.tensor([2.0, 1.0, 1.0]).log(),
        ValueTargets(values, returns - values, returns),
        teacher_logprobs=behaviour - torch.tensor([0.5, -0.2, 0.0]),
    )
    tokens = TokenMeans()
    scores = TokenScores(policy, torch.tensor([0.3, 0.6, 0.9]))
    tokens.add(GRPO, scores, seen, micro)
    expected = {
        "entropy": 0.6,
        "kl/sampler": ((3 - math.log(3) - 1) + (0.5 + math.log(2) - 1)) / 3,
        "kl/reference": (0.5 + math.log(2) - 1) / 3,
        "kl/teacher": 0.1,
        "mismatch/mean": (math.log(3) + math.log(2)) / 3,
        "mismatch/max": math.log(3),
        "ratio/clipped": 2 / 3,
        "ratio/max": 1.3,
        "tis/weight": (2 + 0.5 + 1) / 3,
        "tis/truncated": 1 / 3,
        "value/mean": 1.0,
        "value/return": 2.0,
        "value/explained": 2 / 3,
    }
    assert tokens.means() == pytest.approx(expected, abs=1e-6)
    wider, calmer = TokenMeans(), TokenMeans()
    wider.add(replace(GRPO, clip_high=0.35), scores, seen, micro)
    assert wider.means()["ratio/clipped"] == pytest.approx(1 / 3)  # 0.7 alone
    calmer.add(
        GRPO,
        TokenScores(micro.sampler_logprobs, torch.zeros(3)),
        FrozenTargets(micro.sampler_logprobs, None, None),
        micro,
    )
    both = TokenMeans.merged([tokens, calmer]).means()
    assert both["mismatch/mean"] == pytest.approx(expected["mismatch/mean"] / 2)  # half of the tokens
    assert both["value/mean"] == 1.0  # of the part that has any
    assert both["mismatch/max"] == pytest.approx(math.log(3)) and both["ratio/max"] == pytest.approx(1.3)


def test_tool_metrics_are_shares_of_calls_and_of_rollouts() -> None:
    usual = {"malformed": 0, "seconds": 0.5}
    uses = [
        ToolUse(turns=1, calls=0, failed=0, end=EndReason.ANSWER, **usual),
        ToolUse(turns=4, calls=3, failed=2, end=EndReason.TURNS, **{**usual, "malformed": 1}),
    ]
    assert tool_metrics(uses) == {
        "tools/turns": 2.5,
        "tools/calls": 1.5,
        "tools/used": 0.5,
        "tools/failed": 2 / 3,
        "tools/malformed": 1 / 3,
        "tools/end_answer": 0.5,
        "tools/end_turns": 0.5,
        "tools/end_tokens": 0.0,
        "tools/end_context": 0.0,
        "tools/end_failure": 0.0,
        "time/tools": 1.0,
    }
    assert tool_metrics(uses[:1])["tools/failed"] is None and tool_metrics([]) == {}
