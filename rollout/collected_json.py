"""Collected as JSON and back. It contains plain values only, so that reading a file executes no code."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from rewards.score import Outcome, Score
from rollout.collect import Collected
from rollout.records import (
    SOLUTION,
    Completion,
    EndReason,
    FinishReason,
    Problem,
    Rollout,
    RolloutGroup,
    Thinking,
    ToolUse,
)

NUMBERS = ("num_refills", "num_sampled_tokens", "sample_seconds", "verify_seconds")


def collected_to_json(collected: Collected) -> dict[str, Any]:
    """Key "groups" has the indices in "sampled" of the groups for the update."""
    index = {id(group): i for i, group in enumerate(collected.sampled)}
    return {
        "sampled": [group_to_json(group) for group in collected.sampled],
        "groups": [index[id(group)] for group in collected.groups],
        **{name: getattr(collected, name) for name in NUMBERS},
    }


def collected_from_json(read: dict[str, Any]) -> Collected:
    sampled = [group_from_json(group) for group in read["sampled"]]
    return Collected(
        sampled=sampled, groups=[sampled[i] for i in read["groups"]], **{name: read[name] for name in NUMBERS}
    )


def group_to_json(group: RolloutGroup) -> dict[str, Any]:
    """Of a problem's metadata only the worked solution: the other columns of its row served to grade it, which is done."""
    kept = {name: str(value) for name, value in group.problem.metadata.items() if name == SOLUTION}
    rollouts = []
    for rollout in group.rollouts:
        completion, score = rollout.completion, rollout.score
        rollouts.append(
            {
                "completion": {
                    **asdict(completion),
                    "finish_reason": completion.finish_reason.value,
                    "tool_use": tool_use_to_json(completion.tool_use),
                },
                "score": {**asdict(score), "outcome": score.outcome.value},
                "step_rewards": rollout.step_rewards,
                "step_ends": rollout.step_ends,
            }
        )
    return {
        "problem": asdict(replace(group.problem, metadata=kept)),
        "prompt_ids": group.prompt_ids,
        "rollouts": rollouts,
    }


def tool_use_to_json(tool_use: ToolUse | None) -> dict[str, Any] | None:
    return None if tool_use is None else {**asdict(tool_use), "end": tool_use.end.value}


def group_from_json(read: dict[str, Any]) -> RolloutGroup:
    fields = read["problem"]
    prompt = fields["prompt"]
    problem = Problem(**{**fields, "prompt": prompt if isinstance(prompt, str) else tuple(prompt)})
    rollouts = []
    for row in read["rollouts"]:
        completion, score = row["completion"], row["score"]
        plain: dict[str, Any] = {
            name: tuple(completion[name]) for name in ("token_ids", "sampler_logprobs", "loss_mask")
        }
        if (thinking := completion.get("thinking")) is not None:  # absent in what earlier versions wrote
            plain["thinking"] = Thinking(**thinking)
        if (tool_use := completion.get("tool_use")) is not None:
            plain["tool_use"] = ToolUse(**{**tool_use, "end": EndReason(tool_use["end"])})
        reason = FinishReason(completion["finish_reason"])
        rollouts.append(
            Rollout(
                problem=problem,
                completion=Completion(**{**completion, **plain, "finish_reason": reason}),
                score=Score(**{**score, "outcome": Outcome(score["outcome"])}),
                step_rewards=tuple(row["step_rewards"]),
                step_ends=tuple(row["step_ends"]),
            )
        )
    return RolloutGroup(problem=problem, prompt_ids=tuple(read["prompt_ids"]), rollouts=tuple(rollouts))
