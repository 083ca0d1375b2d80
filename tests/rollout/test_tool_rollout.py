"""A rollout with tools: turns by the template, answers that are context, and an end of each kind."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from rollout.collect import Collector
from rollout.prompts import PromptRenderer
from rollout.records import Completion, EndReason, FinishReason, ToolFormat
from rollout.sampler import SampleRequest, SamplingParams, ScriptedSampler
from rollout.tool_rollout import ToolRollout
from rollout.toolbox import Answer
from tests.rollout.some_tools import add
from tests.rollout.test_collect import Equal, problem
from tests.rollout.test_tool_turns import get_json_schema
from tests.rollout.tool_templates import HERMES, LLAMA3, tool_tokenizer

SCHEMAS = [get_json_schema(add)]
END = "<|im_end|>"


class Adds:
    """Answers calls of add; for too large numbers by an error. Each rollout begins and ends its own."""

    schemas = SCHEMAS

    def __init__(self) -> None:
        self.begun = self.ended = 0

    def begin(self) -> Adds:
        self.begun += 1
        return self

    def close(self) -> None:
        self.ended += 1

    def call(self, name: str, arguments: Mapping[str, Any]) -> Answer:
        return Answer.error("too large") if arguments["a"] > 99 else Answer(str(add(**arguments)))


class Speaks(ScriptedSampler):
    """Says one turn after the other, whatever stands before it; records the contexts."""

    def __init__(self, words: Any, turns: list[str]) -> None:
        super().__init__({}, {})
        self.words, self.turns, self.contexts = words, iter(turns), []

    def completions(self, request: SampleRequest) -> list[Completion]:
        self.contexts.append(self.words.decode(list(request.prompt_ids)))
        return [self.say(next(self.turns), seed, request.max_tokens or 1) for seed in request.seeds]

    def say(self, text: str, seed: int, limit: int) -> Completion:
        ids = self.words.encode(text + END, add_special_tokens=False)
        kept = tuple(ids[:limit])
        return Completion(
            token_ids=kept,
            sampler_logprobs=(-1.0,) * len(kept),
            finish_reason=FinishReason.STOP if len(ids) <= limit else FinishReason.LENGTH,
            policy_version=0,
            seed=seed,
            text=self.words.decode(list(kept)).removesuffix(END),
        )


def hermes(**arguments: Any) -> str:
    return f"<tool_call>{json.dumps({'name': 'add', 'arguments': arguments})}</tool_call>"


def llama3(**arguments: Any) -> str:
    return json.dumps({"name": "add", "parameters": arguments})


def run(
    turns: list[str],
    *,
    template: str = HERMES,
    tool_format: ToolFormat = "hermes",
    max_turns: int = 4,
    max_tokens: int = 900,
) -> tuple[Completion, Speaks]:
    words = tool_tokenizer(template)
    sampler = Speaks(words, turns)
    collector = Collector(
        sampler=sampler,
        verifiers={"equal": Equal()},  # pyright: ignore[reportArgumentType]  it checks no references
        renderer=PromptRenderer(words, style="plain", tools_of=lambda _: SCHEMAS),
        params=SamplingParams(max_tokens=max_tokens),
        group_size=1,
        run_seed=0,
        rollout=ToolRollout(tokenizer=words, sources=[Adds()], tool_format=tool_format, max_turns=max_turns),
    )
    (group,) = collector.collect([problem("x?")], step=1).groups
    return group.rollouts[0].completion, sampler


def chosen(completion: Completion, sampler: Speaks) -> str:
    """The text of the tokens that are trained on."""
    ids = [token for token, is_own in zip(completion.token_ids, completion.loss_mask, strict=True) if is_own]
    return sampler.words.decode(ids)


@pytest.mark.parametrize(("template", "tool_format", "call"), [(HERMES, "hermes", hermes), (LLAMA3, "llama3", llama3)])
def test_the_context_of_each_turn_is_the_templates_own_text(template: str, tool_format: ToolFormat, call: Any) -> None:
    first, second = call(a=3, b=4), call(a=7, b=7)
    completion, sampler = run([first, second, "14"], template=template, tool_format=tool_format)
    conversation = [{"role": "user", "content": "x?"}]
    for said, context, answer in zip([first, second, "14"], sampler.contexts, ["7", "14", ""], strict=True):
        whole = sampler.words.apply_chat_template(
            conversation, tools=SCHEMAS, add_generation_prompt=True, tokenize=False
        )
        assert context == whole
        conversation += [{"role": "assistant", "content": said}, {"role": "tool", "name": "add", "content": answer}]
    assert chosen(completion, sampler) == f"{first}{END}{second}{END}14{END}"
    assert completion.text == f"{first}\n{second}\n14"  # graded is what the model says, not what its tools answer
    use = completion.tool_use
    assert use is not None and use.seconds > 0
    assert replace(use, seconds=0) == replace(
        use, turns=3, calls=2, failed=0, malformed=0, seconds=0, end=EndReason.ANSWER
    )


def test_failed_and_malformed_calls_are_answered_and_counted() -> None:
    both = f"{hermes(a=100)} {hermes(a=1)} <tool_call>add(1, 2)</tool_call>"
    completion, sampler = run([both, "2"])
    assert "<tool_response>Error: too large</tool_response>" in sampler.contexts[1]
    assert "<tool_response>2</tool_response>" in sampler.contexts[1]
    assert "<tool_response>Error: 'add(1, 2)' is no JSON" in sampler.contexts[1]
    use = completion.tool_use
    assert use is not None
    assert (use.turns, use.calls, use.failed, use.malformed, use.end) == (2, 3, 2, 1, EndReason.ANSWER)


def test_calls_in_a_loop_end_at_the_turn_limit() -> None:
    completion, sampler = run([hermes(a=1)] * 9, max_turns=3)
    use = completion.tool_use
    assert use is not None and (use.turns, use.calls, use.end) == (3, 2, EndReason.TURNS)
    assert len(sampler.contexts) == 3 and completion.finish_reason is FinishReason.STOP
    assert all(completion.loss_mask[-len(hermes(a=1)) :])  # nothing stands behind the last turn


CALL_LENGTH = len(hermes(a=1)) + 1
REPLY_LENGTH = len("\n user\n<tool_response>2</tool_response> \n assistant\n") - 2 + 1


@pytest.mark.parametrize(
    ("max_tokens", "reason"),
    [
        (CALL_LENGTH - 5, EndReason.TOKENS),
        (CALL_LENGTH + 3, EndReason.CONTEXT),
        (CALL_LENGTH + REPLY_LENGTH + 20, EndReason.TOKENS),
    ],
)
def test_a_rollout_ends_at_the_token_limit(max_tokens: int, reason: EndReason) -> None:
    """In the middle of a call, of a tool's answer, or of a later turn."""
    completion, _ = run([hermes(a=1)] * 9, max_tokens=max_tokens)
    use = completion.tool_use
    assert use is not None and use.end is reason and use.failed == 0
    assert len(completion.token_ids) == max_tokens and completion.finish_reason is FinishReason.LENGTH
