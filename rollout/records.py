"""What flows: Problem -> Completion -> Rollout -> RolloutGroup. Frozen, complete when made, no tensors."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from rewards.score import Outcome, Reference, Score

Message = Mapping[str, str]  # {"role": "user", "content": "..."}
PromptStyle = Literal["plain", "boxed", "r1", "code"]  # how a prompt asks for the answer, see rollout/prompts.py
WORKED = "worked"  # in a problem's metadata: its solution, written out


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A question with a checkable answer. `id` is unique within its source and stable across runs: seeds depend on it."""

    id: str
    prompt: str | tuple[Message, ...]
    reference: Reference
    verifier: str = "math"
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def messages(self) -> tuple[Message, ...]:
        """The prompt; a text is one message of the user's."""
        return ({"role": "user", "content": self.prompt},) if isinstance(self.prompt, str) else self.prompt

    @property
    def question(self) -> str:
        """What the user says last: the prompt without a system message or worked examples before it."""
        return next((m["content"] for m in reversed(self.messages) if m["role"] == "user"), "")


class FinishReason(enum.Enum):
    STOP = "stop"  # an end-of-sequence token or a stop string
    LENGTH = "length"  # cut off by the token limit


@dataclass(frozen=True, kw_only=True)
class Completion:
    """Tokens as sampled. An end-of-sequence token that was sampled is the last of `token_ids`; nothing follows it.

    loss_mask: which tokens the policy chose; all of them unless it is said. What a tool wrote, or a budget of tokens forced, is
        context: no loss, no KL, no entropy, in no count, mean or sum.
    sampler_logprobs: of each token that the policy chose the log-prob under the distribution that was really sampled from, as the
        engine computed it.
    policy_version: the step whose update made the weights that it was sampled with; 0 is the base.
    text: what is judged: as written, special tokens included, up to the end of the turn (rollout/turn.py); from a Collector it begins
        with what the prompt has opened of the answer.
    view: what the policy drew for itself beside the tokens (a mask of the prompt, a depth), as a seed; it is scored under that again.
        A causal model draws nothing.
    """

    token_ids: tuple[int, ...]
    sampler_logprobs: tuple[float, ...]
    finish_reason: FinishReason
    policy_version: int
    seed: int
    text: str
    view: int | None = None
    loss_mask: tuple[bool, ...] = ()

    def __post_init__(self) -> None:
        if all(self.loss_mask):
            object.__setattr__(self, "loss_mask", (True,) * len(self.token_ids))
        assert len(self.token_ids) == len(self.loss_mask) > 0
        assert len(self.sampler_logprobs) == self.num_chosen

    @property
    def num_chosen(self) -> int:
        """Tokens that the policy chose."""
        return sum(self.loss_mask)


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """A completion and its verdict.

    step_rewards, step_ends: rewards of the reasoning steps and the index of each step's last token; empty unless the
    run is supervised by process.
    """

    problem: Problem
    completion: Completion
    score: Score
    step_rewards: tuple[float, ...] = ()
    step_ends: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        assert len(self.step_rewards) == len(self.step_ends)

    @property
    def is_graded(self) -> bool:
        return self.score.value is not None

    @property
    def cut_short(self) -> bool:
        """Cut by the token limit, and not right: a verdict on half an answer says nothing of the verifier."""
        is_cut = self.completion.finish_reason is FinishReason.LENGTH
        return is_cut and self.score.outcome.gradable and self.score.outcome is not Outcome.CORRECT


@dataclass(frozen=True, kw_only=True)
class RolloutGroup:
    """All rollouts of one problem, with the prompt tokens they share."""

    problem: Problem
    prompt_ids: tuple[int, ...]
    rollouts: tuple[Rollout, ...]

    def __post_init__(self) -> None:
        assert all(rollout.problem is self.problem for rollout in self.rollouts)
