"""Rollouts of several turns: what the policy chose is trained on, what a tool wrote is context."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from threading import Event, current_thread
from threading import enumerate as enumerate_threads

import pytest
import torch

from rewards.errors import UserError
from rewards.extract import own_turn
from rewards.score import Outcome, Score
from rl.objective.algorithms import ALGORITHMS
from rl.policy.policy import Policy
from rl.processes.runtime import Runtime
from rl.run.tiny import tiny_tokenizer
from rl.update.batch import pack
from rl.update.delivery import Delivery
from rl.update.learner import Learner
from rl.update.step import train_step
from rollout.chat_template import text_between_turns
from rollout.collect import Collector
from rollout.problem_stream import ProblemStream
from rollout.prompts import PromptRenderer
from rollout.records import Completion, FinishReason
from rollout.rollouts import Call, Episode, Fixed, RolloutFunction, Turns
from rollout.sampler import SampleRequest, SamplingParams, completion_seed
from rollout.torch_sampler import TorchSampler
from tests.rl.models import make
from tests.rollout import tiny
from tests.rollout.test_collect import RENDERER, TOKENIZER, Equal, Noting, collector, encoded, problem, values

PRODUCT = re.compile(r"(\d+)\*(\d+)=$")


def calculator(episode: Episode) -> Turns:
    """Writes the product behind each turn that ends in `a*b=`."""
    parts = [(yield episode.ask())]
    while call := PRODUCT.search(parts[-1].text):
        parts.append(Fixed.of(f"{int(call[1]) * int(call[2])}\n", TOKENIZER))
        if not episode.num_left(parts):
            break
        parts.append((yield episode.ask(parts)))
    return episode.join(parts)


def scripted_turns(prompt: str, turns: dict[str, list[str]]) -> Noting:
    """turns: what the policy says, by what has been said before it."""
    script = {(*RENDERER.render(problem(prompt)), *encoded(said)): [*map(encoded, t)] for said, t in turns.items()}
    return Noting(script, {encoded(text): text for texts in turns.values() for text in texts})


def test_a_tool_answers_between_turns() -> None:
    sampler = scripted_turns("x?", {"": ["3*4=", "12"], "3*4=12\n": ["5*5="], "3*4=12\n5*5=25\n": ["9"]})
    collecting = replace(collector(sampler), rollout=calculator, params=SamplingParams(max_tokens=40))
    collected = collecting.collect([problem("x?", reference="3*4=12\n5*5=25\n9")], step=1)
    (group,) = collected.groups
    first, second = (rollout.completion for rollout in group.rollouts)
    assert first.text == "3*4=12\n5*5=25\n9" and first.token_ids == encoded(first.text)
    chosen = "".join(c if x else "_" for c, x in zip(first.text, first.loss_mask, strict=True))  # a token a character
    assert chosen == "3*4=___5*5=___9"
    assert first.sampler_logprobs == (-1.0,) * 9
    assert (second.text, second.loss_mask) == ("12", (True, True))
    assert values(group) == [1.0, 0.0] and collected.num_sampled_tokens == 9 + 2
    seeds = [completion_seed(5, 1, "x?", 0, turn) for turn in range(3)]
    assert [request.seeds for request in sampler.asked] == [
        (seeds[0], completion_seed(5, 1, "x?", 1)),
        (seeds[1],),
        (seeds[2],),
    ]
    assert [request.max_tokens for request in sampler.asked] == [40, 40 - 7, 40 - 14]
    assert [c.seed for c in (first, second)] == list(sampler.asked[0].seeds) and len(set(seeds)) == 3


@pytest.mark.parametrize(("max_tokens", "text_kept"), [(7, "3*4=12\n"), (6, "3*4=12"), (5, "3*4=1")])
def test_fixed_tokens_that_reach_the_limit_end_the_completion(max_tokens: int, text_kept: str) -> None:
    """No token beyond it is trained on or read: memory is planned for so many."""
    sampler = scripted_turns("x?", {"": ["3*4="]})
    params = SamplingParams(max_tokens=max_tokens)
    (group,) = (
        replace(collector(sampler, size=1), rollout=calculator, params=params).collect([problem("x?")], step=1).groups
    )
    whole = group.rollouts[0].completion
    assert (whole.token_ids, whole.num_chosen) == (encoded(text_kept), 4)
    assert whole.finish_reason is FinishReason.LENGTH


def test_an_error_in_a_rollout_ends_the_collection_and_every_other_rollout() -> None:
    ended = []

    def failing(episode: Episode) -> Turns:
        try:
            first = yield episode.ask()
            if first.text == "2":
                raise KeyError("no such tool")
            yield episode.ask([first])
        finally:
            ended.append(episode)
        raise AssertionError

    sampler, streams = scripted_turns("x?", {"": ["1", "2", "3"], "1": ["4"]}), []
    stream = sampler.stream
    sampler.stream = lambda *args: streams.append(stream(*args)) or streams[-1]
    with pytest.raises(KeyError, match="no such tool"):
        replace(collector(sampler, size=3), rollout=failing).collect([problem("x?")], step=1)
    assert len(ended) == 3
    assert next(streams[0], None) is None  # it is closed


class Waits:
    """A tool that answers the first call only when a second one has come, as one that waits for somebody else."""

    def __init__(self) -> None:
        self.second_has_come = Event()
        self.threads: set[str] = set()

    def answer(self, said: str) -> str:
        self.threads.add(current_thread().name)
        if said == "slow":
            assert self.second_has_come.wait(timeout=30)
        self.second_has_come.set()
        return f"({said})"

    def rollout(self, episode: Episode) -> Turns:
        first = yield episode.ask()
        parts = [first, Fixed.of((yield Call(lambda: self.answer(first.text))), TOKENIZER)]
        return episode.join([*parts, (yield episode.ask(parts))] if episode.num_left(parts) else parts)


SLOW_AND_QUICK = {"": ["slow", "quick"], "slow(slow)": ["1"], "quick(quick)": ["2"]}


@pytest.mark.parametrize("max_tokens", [40, 9])
def test_while_a_call_waits_for_its_answer_others_go_on(max_tokens: int) -> None:
    """Also where the rollout ends with the answer of its call, in the call's thread, and the engine has nothing left to decode."""
    tool, sampler = Waits(), scripted_turns("x?", SLOW_AND_QUICK)
    params = SamplingParams(max_tokens=max_tokens)
    collecting = replace(collector(sampler), rollout=tool.rollout, call_threads=2, params=params)
    (group,) = collecting.collect([problem("x?")], step=1).groups
    whole = ["slow(slow)1", "quick(quick)2"]
    assert [rollout.completion.text[: max_tokens + 1] for rollout in group.rollouts] == [
        w[: max_tokens + 1] for w in whole
    ]
    assert len(tool.threads) == 2 and all(name.startswith("call") for name in tool.threads)


def test_without_threads_a_call_is_answered_where_the_rollout_runs() -> None:
    tool, sampler = Waits(), scripted_turns("x?", SLOW_AND_QUICK)
    tool.second_has_come.set()
    collecting = replace(collector(sampler), rollout=tool.rollout, params=SamplingParams(max_tokens=40))
    (group,) = collecting.collect([problem("x?")], step=1).groups
    assert [rollout.completion.text for rollout in group.rollouts] == ["slow(slow)1", "quick(quick)2"]
    assert tool.threads == {current_thread().name}


@pytest.mark.parametrize("call_threads", [0, 2])
def test_an_error_of_a_call_ends_the_collection(call_threads: int) -> None:
    """Also while the engine waits for a request, which will never come."""

    def failing(episode: Episode) -> Turns:
        yield episode.ask()
        yield Call(lambda: {}["no such tool"])
        raise AssertionError

    collecting = replace(collector(scripted_turns("x?", {"": ["1", "2"]})), rollout=failing, call_threads=call_threads)
    with pytest.raises(KeyError, match="no such tool"):
        collecting.collect([problem("x?")], step=1)
    assert not any(thread.name.startswith("call") for thread in enumerate_threads())


def begins_with_a_call(episode: Episode) -> Turns:
    return (yield Call(lambda: None))


def asks_for_two(episode: Episode) -> Turns:
    return (yield SampleRequest(episode.prompt_ids, (1, 2)))


def asks_for_none(episode: Episode) -> Turns:
    return Completion(
        token_ids=(1,), sampler_logprobs=(0.0,), finish_reason=FinishReason.STOP, policy_version=0, seed=0, text=""
    )
    yield episode.ask()


@pytest.mark.parametrize("rollout", [asks_for_two, asks_for_none, begins_with_a_call])
def test_a_rollout_begins_with_a_request_and_asks_for_one_completion_at_a_time(rollout: RolloutFunction) -> None:
    with pytest.raises(UserError, match="it must begin with a request"):
        replace(collector(scripted_turns("x?", {"": ["1", "2"]})), rollout=rollout).collect([problem("x?")], step=1)


def test_steps_are_not_scored_over_several_turns() -> None:
    with pytest.raises(UserError, match="scores_steps"):
        replace(collector(scripted_turns("x?", {"": ["1"]}), steps=True), rollout=calculator)


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'].split('</think>')[-1] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.mark.parametrize("ends_itself", [True, False])
def test_a_reply_is_what_the_template_writes_between_two_turns(ends_itself: bool) -> None:
    """Whether the model has ended its turn or a stop string has; its reasoning, which this template drops from history, stays."""
    words = tiny_tokenizer()
    words.chat_template = CHATML
    words.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    encode, said = words.encode, "<think>hm</think>call()"
    turn = Completion(
        token_ids=tuple(encode(said + "<|im_end|>" * ends_itself)),
        sampler_logprobs=(0.0,) * len(encode(said + "<|im_end|>" * ends_itself)),
        finish_reason=FinishReason.STOP,
        policy_version=0,
        seed=0,
        text=said,
    )
    reply = Fixed.reply([{"role": "tool", "content": "42"}], words, turn)
    expected = said + "<|im_end|>\n<|im_start|>tool\n42<|im_end|>\n<|im_start|>assistant\n"
    assert (*turn.token_ids, *reply.token_ids) == tuple(encode(expected))
    assert own_turn(turn.text + reply.text + "43") == "<think>hm</think>call()\n42\n43"  # what a verifier reads


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for m in messages if m['role'] != 'tool' %}{{ m['content'] }}\n{% endfor %}", "leaves out some"),
        ("{% for m in messages %}{{ m['content'] }}{{ raise(m) }}{% endfor %}", "cannot render messages .roles tool."),
    ],
)
def test_a_template_that_has_no_place_for_a_reply_is_named(template: str, message: str) -> None:
    words = tiny_tokenizer()
    words.chat_template = template
    with pytest.raises(UserError, match=f"chat_template: it {message}"):
        text_between_turns(words, [{"role": "tool", "content": "42"}])


class Long(Equal):
    """The longer the better, so that every group has a signal."""

    def grade(self, answer: str, reference: str) -> Score:
        return Score(len(answer) / 100, Outcome.WRONG)


def forced(episode: Episode) -> Turns:
    """Thought of at most four tokens, a fixed phrase, and the answer."""
    parts = [(yield episode.ask(at_most=4)), Fixed.of("the=", tiny.tokenizer())]
    return episode.join([*parts, (yield episode.ask(parts))])


@pytest.fixture
def two_threads() -> Iterator[None]:
    num_threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(num_threads)


@pytest.mark.usefixtures("two_threads")
def test_a_step_is_trained_on_what_the_policy_chose() -> None:
    """The trainer's log-probs of these tokens, behind all that stands before them, are the engine's: the ratio is 1."""
    model = make("qwen2")
    sampler, policy = TorchSampler(model, tiny.tokenizer()), Policy.of(model)
    algorithm = replace(ALGORITHMS["grpo"], dynamic_sampling=False)
    collecting = Collector(
        sampler=sampler,
        verifiers={"equal": Long()},
        renderer=PromptRenderer(tiny.tokenizer(), style="plain"),
        params=SamplingParams(max_tokens=12),
        group_size=4,
        run_seed=0,
        rollout=forced,
    )
    learner = Learner(
        policy=policy,
        reference=policy.frozen_copy() if algorithm.kl_weight else None,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        runtime=Runtime.start(dtype="float32", device="cpu"),
        algorithm=algorithm,
        temperature=1.0,
        token_budget=10_000,
        max_grad_norm=1.0,
    )
    stream = ProblemStream.of([problem(name) for name in ("a+b", "the", "12")], seed=0)
    delivery = Delivery(policy, sampler, tolerance=1e-3)
    result = train_step(learner, collecting, stream, delivery, step=1, num_problems=3)
    completions = [rollout.completion for credited in result.groups for rollout in credited.group.rollouts]
    assert all(c.loss_mask.count(False) == len("the=") and "the=" in c.text for c in completions)
    batch = pack(result.groups, algorithm, 12)
    assert batch.counts.num_tokens == sum(c.num_chosen for c in completions)
    assert (
        result.metrics["mismatch/max"] < 3e-5
    )  # float32 in another order, as tests/rollout/sampler_contract.py measures it
    assert result.metrics["grad_norm"] > 0
