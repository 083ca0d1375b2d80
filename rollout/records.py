"""The records of the pipeline, Problem -> Completion -> Rollout -> RolloutGroup: immutable, complete when made, without tensors."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from rewards.extract import AnswerForm
from rewards.reward_spec import RewardSpec
from rewards.score import FinalState, Outcome, Reference, Score

Message = Mapping[str, str]  # {"role": "user", "content": "..."}
# How a prompt asks for the answer, see rollout/prompts.py.
PromptStyle = Literal["plain", "boxed", "r1", "hashes", "code", "program-answer"]
# How a model writes calls of tools, see rollout/tool_calls.py.
ToolFormat = Literal["hermes", "llama3", "qwen3-coder", "code-fences"]
# The style of problems by their verifier, and of math problems by the form of their answers; others state the form themselves.
STYLE_OF: Mapping[str, PromptStyle] = {"math": "boxed", "program": "code", "program-answer": "program-answer"}
STYLE_OF_FORM: Mapping[AnswerForm, PromptStyle] = {
    "boxed": "boxed",
    "tags": "r1",
    "hashes": "hashes",
    "last-number": "plain",
    "text": "plain",
}
SOLUTION = "worked"  # key of a problem's metadata: its written-out solution
INFORMAL = "informal"  # another: what a formal statement says in natural language


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
        """The prompt as chat messages; a plain text is one user message."""
        return ({"role": "user", "content": self.prompt},) if isinstance(self.prompt, str) else self.prompt

    @property
    def question(self) -> str:
        """The content of the last user message: the prompt without a system message or worked examples before it."""
        return next((m["content"] for m in reversed(self.messages) if m["role"] == "user"), "")


def style_of_rewards(rewards: Sequence[RewardSpec], answer_form: AnswerForm | None) -> PromptStyle | None:
    """The style that asks for an answer where a sum of rewards looks for it; None if it does not say where."""
    if rewards and answer_form is not None:
        return STYLE_OF_FORM[answer_form]
    return next((STYLE_OF[reward.source] for reward in rewards if reward.source in STYLE_OF), None)


class FinishReason(enum.Enum):
    STOP = "stop"  # an end-of-sequence token or a stop string
    LENGTH = "length"  # cut off by the token limit


class EndReason(enum.Enum):
    """Why a rollout with tools ended."""

    ANSWER = "answer"  # a turn without a call
    TURNS = "turns"  # the turn limit, with a call that was not made
    TOKENS = "tokens"  # the token limit, in a turn of the model
    CONTEXT = "context"  # the token limit, in what a tool answered
    FAILURE = "failure"  # the environment could not go on


@dataclass(frozen=True, kw_only=True)
class ToolUse:
    """What a rollout did with its tools.

    turns: of the model. calls: malformed ones included. failed: calls that were answered by an error, malformed ones included.
    seconds: spent in tools.
    """

    turns: int
    calls: int
    failed: int
    malformed: int
    seconds: float
    end: EndReason


@dataclass(frozen=True, kw_only=True)
class Thinking:
    """How a completion was kept to its thinking budget (rollout/budget_forcing.py).

    num_tokens: tokens before the end of thinking, forced ones included. num_waits: how often the model was made to think on.
    is_cut: whether the budget ended its thinking.
    """

    num_tokens: int
    num_waits: int = 0
    is_cut: bool = False


@dataclass(frozen=True, kw_only=True)
class Completion:
    """A sampled completion. A sampled end-of-sequence token is part of `token_ids` and ends its turn.

    loss_mask: True for tokens that the policy chose; all True by default. Other tokens (a tool's answer, a forced phrase) are context:
        they have no loss, KL or entropy and enter no count, mean or sum.
    sampler_logprobs: for each token that the policy chose its log-prob under the distribution that it was sampled from, as computed
        by the engine.
    policy_version: the step whose update produced the weights that it was sampled with; 0 is the base model.
    text: the text that is graded: as written, special tokens included, up to the end of the turn (rollout/turn.py). A Collector puts
        the prompt's answer prefix before it (rollout/answer_prefix.py).
    view: the seed of further random choices of the policy (a prompt mask, a depth), which are replayed when the completion is scored.
        None for causal models.
    thinking: None without a thinking budget.
    tool_use: None for a rollout without tools.
    final_state: of the rollout's environment; None without one, and once the completion is graded.
    """

    token_ids: tuple[int, ...]
    sampler_logprobs: tuple[float, ...]
    finish_reason: FinishReason
    policy_version: int
    seed: int
    text: str
    view: int | None = None
    loss_mask: tuple[bool, ...] = ()
    thinking: Thinking | None = None
    tool_use: ToolUse | None = None
    final_state: FinalState | None = None

    def __post_init__(self) -> None:
        if all(self.loss_mask):
            object.__setattr__(self, "loss_mask", (True,) * len(self.token_ids))
        assert len(self.token_ids) == len(self.loss_mask) > 0
        assert len(self.sampler_logprobs) == self.num_chosen

    @property
    def num_chosen(self) -> int:
        """The number of tokens that the policy chose."""
        return sum(self.loss_mask)


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """A completion and its score.

    step_rewards, step_ends: rewards of the reasoning steps and the index of each step's last token; empty without process supervision.
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
        """Whether the token limit cut the completion and it is not correct. The score of half an answer says nothing about the verifier."""
        is_cut = self.completion.finish_reason is FinishReason.LENGTH
        return is_cut and self.score.outcome.gradable and self.score.outcome is not Outcome.CORRECT


@dataclass(frozen=True, kw_only=True)
class RolloutGroup:
    """All rollouts of one problem, with the prompt tokens that they share."""

    problem: Problem
    prompt_ids: tuple[int, ...]
    rollouts: tuple[Rollout, ...]

    def __post_init__(self) -> None:
        assert all(rollout.problem is self.problem for rollout in self.rollouts)
