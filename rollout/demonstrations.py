"""Written solutions as groups of correct completions, for supervised fine-tuning."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rewards.score import Outcome, Score
from rollout.collect import Collected
from rollout.prompts import PromptRenderer
from rollout.records import SOLUTION, Completion, FinishReason, Problem, Rollout, RolloutGroup


def demonstrate(problems: Sequence[Problem], renderer: PromptRenderer) -> Collected:
    """For each problem a group of one completion: its solution and the token that ends the turn."""
    started = time.perf_counter()
    groups = [demonstration(problem, renderer) for problem in problems]
    return Collected(
        groups=groups,
        sampled=groups,
        num_refills=0,
        num_sampled_tokens=sum(r.completion.num_chosen for group in groups for r in group.rollouts),
        sample_seconds=time.perf_counter() - started,
        verify_seconds=0.0,
    )


def demonstration(problem: Problem, renderer: PromptRenderer) -> RolloutGroup:
    text = str(problem.metadata[SOLUTION])
    token_ids = (*renderer.tokenizer(text, add_special_tokens=False).input_ids, renderer.closing_id)
    completion = Completion(
        token_ids=token_ids,
        sampler_logprobs=(0.0,) * len(token_ids),
        finish_reason=FinishReason.STOP,
        policy_version=0,
        seed=0,
        text=text,
    )
    rollout = Rollout(problem=problem, completion=completion, score=Score(1.0, Outcome.CORRECT))
    return RolloutGroup(problem=problem, prompt_ids=renderer.render(problem), rollouts=(rollout,))
