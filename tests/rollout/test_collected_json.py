"""Collected completions are equal after conversion to JSON and back."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import date

from rewards.score import Outcome, Score
from rollout.collect import Collected
from rollout.collected_json import collected_from_json, collected_to_json, group_to_json
from rollout.records import Completion, EndReason, FinishReason, Problem, Rollout, RolloutGroup, ToolUse


def group(name: str, outcome: Outcome) -> RolloutGroup:
    messages = ({"role": "system", "content": "s"}, {"role": "user", "content": "5个?"})
    problem = Problem(
        id=name, prompt=messages, reference={"type": "stdin", "tests": []}, verifier="program", metadata={"worked": "w"}
    )
    value = 1 / 3 if outcome.gradable else None
    rollout = Rollout(
        problem=problem,
        completion=Completion(
            token_ids=(3, 1), sampler_logprobs=(-0.1, -1e-17), finish_reason=FinishReason.LENGTH, policy_version=4, seed=2**63, text="\ud800x", view=7,
            tool_use=ToolUse(turns=2, calls=1, failed=1, malformed=0, seconds=0.25, end=EndReason.TURNS),
        ),
        score=Score(value, outcome, {"math": 1 / 3}, "why"),
        step_rewards=(0.1,),
        step_ends=(1,),
    )  # fmt: skip
    return RolloutGroup(problem=problem, prompt_ids=(1, 2), rollouts=(rollout,))


def test_every_field_comes_back_and_groups_are_still_among_the_sampled() -> None:
    sampled = [group("a", Outcome.CORRECT), group("b", Outcome.CRASHED)]
    collected = Collected(
        groups=[sampled[1]],
        sampled=sampled,
        num_refills=2,
        num_sampled_tokens=4,
        sample_seconds=0.1,
        verify_seconds=0.2,
    )
    again = collected_from_json(json.loads(json.dumps(collected_to_json(collected))))
    assert again == collected
    assert again.groups[0] is again.sampled[1]


def test_the_other_columns_of_a_problems_row_are_not_written() -> None:
    """A checkpoint does not grow with them, and a date or bytes are no JSON."""
    one = group("a", Outcome.CORRECT)
    wide = replace(one.problem, metadata={"worked": "w", "seen": date(2024, 1, 1), "image": b"x"})
    row = replace(one, problem=wide, rollouts=tuple(replace(r, problem=wide) for r in one.rollouts))
    assert json.dumps(group_to_json(row)) == json.dumps(group_to_json(one))
