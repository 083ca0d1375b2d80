"""Rollouts with tools: turns of the model and answers of its tools, until a turn makes no call."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from functools import partial

from transformers import PreTrainedTokenizerBase

from rollout.chat_template import ToolSchema, require_tool_turns, tool_reply
from rollout.code_fences import CODE_FENCES, OUTPUT, PYTHON, output_block, require_python_alone
from rollout.environment import Environments
from rollout.python_tool import PythonTool
from rollout.records import Completion, EndReason, FinishReason, Message, Problem, ToolFormat, ToolUse
from rollout.rollouts import Call, Episode, Fixed, Turns
from rollout.tool_calls import Malformed, ToolCall, format_of, read_calls
from rollout.toolbox import Answer, JoinedTools, Toolbox, Tools, ToolSource, require_one_of_each_name

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
    model. Rollouts that play in an environment have its methods as tools too.

    max_turns: of the model; a call in the last of them is not made. threads: that answer calls (rollout/rollouts.py).
    """

    tokenizer: PreTrainedTokenizerBase
    sources: Sequence[ToolSource]
    tool_format: ToolFormat
    max_turns: int
    threads: int = 0
    environments: Environments | None = None

    @staticmethod
    def of(
        specs: Sequence[str],
        tokenizer: PreTrainedTokenizerBase,
        *,
        tool_format: ToolFormat | None,
        max_turns: int | None,
        deadline: float | None,
        num_workers: int | None,
        keeps_state: bool | None = None,
        allow_unsafe_code: bool = False,
        environments: Environments | None = None,
    ) -> ToolRollout | None:
        """Rollouts with the tools of these names, whose worker processes it starts, and in these environments; None without any. An option
        that is None has its default. Raises UserError for what is wrong with the tools, or with the tokenizer's chat template.

        keeps_state, allow_unsafe_code: of the tool python."""
        if not specs and environments is None:
            return None
        require_python_alone(specs, [of.spec for of in environments.classes] if environments else (), tool_format)
        workers, deadline = num_workers or DEFAULT_WORKERS, deadline or DEFAULT_DEADLINE
        functions = [spec for spec in specs if spec != PYTHON]
        with ExitStack() as on_error:
            sources: list[ToolSource] = []
            if functions:
                toolbox = Toolbox(functions, num_workers=workers, deadline=deadline)
                sources.append(on_error.enter_context(closing(toolbox)))
            if PYTHON in specs:
                python = PythonTool(
                    keeps_state=keeps_state is not False, deadline=deadline, allow_unsafe_code=allow_unsafe_code
                )
                sources += [on_error.enter_context(closing(python))] * specs.count(PYTHON)  # twice is refused below
            shared = [schema for source in sources for schema in source.schemas]
            shown = [[*shared, *of.schemas] for of in environments.classes] if environments else [shared]
            for schemas in filter(None, shown):  # an environment without tools only begins and judges
                require_one_of_each_name(schemas)
                if tool_format != CODE_FENCES:
                    require_tool_turns(tokenizer, schemas)
            rollout = ToolRollout(
                tokenizer=tokenizer,
                sources=sources,
                environments=environments,
                tool_format=tool_format or (format_of(tokenizer) if any(shown) else "hermes"),
                max_turns=max_turns or DEFAULT_MAX_TURNS,
                threads=workers if workers > 1 else 0,
            )
            on_error.pop_all()
        return rollout

    def schemas_of(self, problem: Problem) -> list[ToolSchema]:
        """Of all tools that the problem's prompt shows."""
        if self.tool_format == CODE_FENCES:
            return []  # the model has learnt them, or the system prompt asks for them
        shared = [schema for source in self.sources for schema in source.schemas]
        return shared if self.environments is None else [*shared, *self.environments.schemas_of(problem)]

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """At which the model's turns end, beside those of the run."""
        return (OUTPUT,) if self.tool_format == CODE_FENCES else ()

    def close(self) -> None:
        """Ends the tools' worker processes and the environments. Safe to call twice."""
        for source in self.sources:
            source.close()
        if self.environments is not None:
            self.environments.close()

    def __call__(self, episode: Episode) -> Turns:
        environment = episode.environment
        if environment is not None and environment.failure:
            # Its reset failed. The shortest completion stands for the episode, and is not graded.
            completion = yield episode.ask(at_most=1, is_last=True)
            tool_use = _tool_use([], [completion], EndReason.FAILURE)
            return replace(completion, tool_use=tool_use, final_state=environment.end())
        with ExitStack() as ended:
            tools: list[tuple[Sequence[ToolSchema], Tools]] = [
                (source.schemas, ended.enter_context(closing(source.begin()))) for source in self.sources
            ]
            if environment is not None:
                tools.append((environment.schemas, environment))
            completion = yield from self._turns(episode, JoinedTools(tools))
        if environment is None:
            return completion
        return replace(completion, final_state=(yield Call(environment.end)))

    def _turns(self, episode: Episode, tools: JoinedTools) -> Turns:
        parts: list[Completion | Fixed] = []
        answered: list[Answers] = []
        while True:
            is_last = len(answered) + 1 == self.max_turns
            turn: Completion = yield episode.ask(parts, is_last=is_last)
            parts.append(turn)
            calls = read_calls(turn.text, self.tool_format, self.schemas_of(episode.problem))
            if turn.finish_reason is FinishReason.LENGTH:
                end = EndReason.TOKENS
                break
            if not calls:
                end = EndReason.ANSWER
                break
            if is_last:
                end = EndReason.TURNS
                break
            answered.append((yield Call(partial(answers_of, tools, calls))))
            if episode.environment is not None and episode.environment.failure:
                end = EndReason.FAILURE
                break
            parts.append(self._reply(answered[-1], turn, episode.problem))
            if not episode.num_left(parts):
                end = EndReason.CONTEXT
                break
        return replace(episode.join(parts), tool_use=_tool_use(answered, parts, end))

    def _reply(self, answers: Answers, turn: Completion, problem: Problem) -> Fixed:
        if self.tool_format == CODE_FENCES:
            return output_block("\n".join(message["content"] for message in answers.messages), self.tokenizer)
        return Fixed.unread(answers.messages, self.tokenizer, turn, self.schemas_of(problem))


def answers_of(tools: JoinedTools, calls: Sequence[ToolCall | Malformed]) -> Answers:
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
