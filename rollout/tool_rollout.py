"""Rollouts with tools: turns of the model and answers of its tools, until a turn makes no call."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from transformers import PreTrainedTokenizerBase

from rewards.errors import UserError
from rollout.chat_template import ToolSchema, require_tool_turns, tool_reply
from rollout.records import Completion, EndReason, FinishReason, Message, ToolFormat, ToolUse
from rollout.rollouts import Call, Episode, Fixed, Turns
from rollout.tool_calls import Malformed, ToolCall, format_of, read_calls
from rollout.toolbox import Answer, Toolbox, Tools

DEFAULT_MAX_TURNS, DEFAULT_DEADLINE, DEFAULT_WORKERS = 8, 5.0, 2
_UNREAD = "tool_call"  # the name behind which a malformed call is answered


@dataclass(frozen=True, kw_only=True)
class Answers:
    """The answers to the calls of one turn. seconds: that they took."""

    messages: Sequence[Message]
    failed: int
    malformed: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class ToolRollout:
    """A rollout function (rollout/rollouts.py) whose turns may call tools.

    Graded is what the model writes, all turns of it, and not what its tools answer: an answer that stands there was not given by the
    model. max_turns: of the model; a call in the last of them is not made. threads: that answer calls (rollout/rollouts.py).
    """

    tokenizer: PreTrainedTokenizerBase
    tools: Tools
    schemas: Sequence[ToolSchema]
    tool_format: ToolFormat
    max_turns: int
    threads: int = 0

    @staticmethod
    def of(
        specs: Sequence[str],
        tokenizer: PreTrainedTokenizerBase,
        *,
        tool_format: ToolFormat | None,
        max_turns: int | None,
        deadline: float | None,
        num_workers: int | None,
    ) -> ToolRollout | None:
        """Rollouts with the tools of these names, whose worker processes it starts; None without names. An option that is None has its
        default. Raises UserError for what is wrong with the tools, or with the tokenizer's chat template."""
        if not specs:
            return None
        workers = num_workers or DEFAULT_WORKERS
        toolbox = Toolbox(specs, num_workers=workers, deadline=deadline or DEFAULT_DEADLINE)
        try:
            require_tool_turns(tokenizer, toolbox.schemas)
            return ToolRollout(
                tokenizer=tokenizer,
                tools=toolbox,
                schemas=toolbox.schemas,
                tool_format=tool_format or format_of(tokenizer),
                max_turns=max_turns or DEFAULT_MAX_TURNS,
                threads=workers if workers > 1 else 0,
            )
        except UserError:
            toolbox.close()
            raise

    def close(self) -> None:
        """Ends the tools' worker processes. Safe to call twice."""
        self.tools.close()

    def __call__(self, episode: Episode) -> Turns:
        parts: list[Completion | Fixed] = []
        answered: list[Answers] = []
        while True:
            turn: Completion = yield episode.ask(parts)
            parts.append(turn)
            calls = read_calls(turn.text, self.tool_format)
            if turn.finish_reason is FinishReason.LENGTH:
                end = EndReason.TOKENS
                break
            if not calls:
                end = EndReason.ANSWER
                break
            if len(answered) + 1 == self.max_turns:
                end = EndReason.TURNS
                break
            answered.append((yield Call(partial(answers_of, self.tools, calls))))
            parts.append(self._reply(answered[-1], turn))
            if not episode.num_left(parts):
                end = EndReason.TOKENS
                break
        return replace(episode.join(parts), tool_use=_tool_use(answered, parts, end))

    def _reply(self, answers: Answers, turn: Completion) -> Fixed:
        token_ids, _ = Fixed.reply(answers.messages, self.tokenizer, turn, self.schemas)
        return Fixed(token_ids, "\n")


def answers_of(tools: Tools, calls: Sequence[ToolCall | Malformed]) -> Answers:
    """Makes the calls, one after the other."""
    started = time.perf_counter()
    answers = [Answer.error(c.reason) if isinstance(c, Malformed) else tools.call(*c) for c in calls]
    names = [_UNREAD if isinstance(call, Malformed) else call.name for call in calls]
    return Answers(
        messages=[tool_reply(name, answer.text) for name, answer in zip(names, answers, strict=True)],
        failed=sum(answer.failed for answer in answers),
        malformed=sum(isinstance(call, Malformed) for call in calls),
        seconds=time.perf_counter() - started,
    )


def _tool_use(answered: Sequence[Answers], parts: Sequence[Completion | Fixed], end: EndReason) -> ToolUse:
    return ToolUse(
        turns=sum(isinstance(part, Completion) for part in parts),
        calls=sum(len(answers.messages) for answers in answered),
        failed=sum(answers.failed for answers in answered),
        malformed=sum(answers.malformed for answers in answered),
        seconds=sum(answers.seconds for answers in answered),
        end=end,
    )
