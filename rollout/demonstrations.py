"""Written solutions as groups of correct completions, for supervised fine-tuning."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from itertools import groupby

from rewards.score import Outcome, Score
from rollout.collect import Collected
from rollout.prompts import PromptRenderer
from rollout.records import Completion, FinishReason, Problem, Rollout, RolloutGroup
from rollout.rollouts import Episode, Fixed
from rollout.worked import worked_messages


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
    """The tokens and the loss mask are those of a rollout with these turns (rollout/tool_rollout.py)."""
    tools, parts = renderer.tools_of(problem), list[Completion | Fixed]()
    for is_reply, messages in groupby(worked_messages(problem), lambda message: message["role"] != "assistant"):
        if is_reply:
            turn = parts[-1]
            assert isinstance(turn, Completion)  # a worked solution begins with the assistant
            parts.append(Fixed.unread(list(messages), renderer.tokenizer, turn, tools))
        else:
            parts += [_turn(message["content"], renderer) for message in messages]
    prompt_ids = renderer.render(problem)
    whole = Episode(problem=problem, prompt_ids=prompt_ids, max_tokens=sys.maxsize, seed_of=lambda turn: 0)
    rollout = Rollout(problem=problem, completion=whole.join(parts), score=Score(1.0, Outcome.CORRECT))
    return RolloutGroup(problem=problem, prompt_ids=prompt_ids, rollouts=(rollout,))


def _turn(text: str, renderer: PromptRenderer) -> Completion:
    token_ids = (*renderer.tokenizer(text, add_special_tokens=False).input_ids, renderer.closing_id)
    return Completion(
        token_ids=token_ids,
        sampler_logprobs=(0.0,) * len(token_ids),
        finish_reason=FinishReason.STOP,
        policy_version=0,
        seed=0,
        text=text,
    )
