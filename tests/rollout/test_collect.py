"""Groups belong to problems, seeds to completions, and every completion gets its own score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from rewards.errors import UserError
from rewards.score import Outcome, Score, Verifier
from rl.run.tiny import tiny_tokenizer
from rollout.collect import Collector, has_signal
from rollout.problem_stream import ProblemStream, Source
from rollout.prompts import PromptRenderer
from rollout.records import Completion, Problem, RolloutGroup
from rollout.sampler import (
    Requests,
    Sampler,
    SampleRequest,
    SamplingParams,
    ScriptedSampler,
    Stream,
    completion_seed,
)

TOKENIZER = tiny_tokenizer()
RENDERER = PromptRenderer(TOKENIZER, style="plain")
SIZE = 2


def encoded(text: str) -> tuple[int, ...]:
    return tuple(TOKENIZER(text).input_ids)


def problem(name: str, *, text: str | None = None, reference: str = "1", verifier: str = "equal") -> Problem:
    prompt = ({"role": "user", "content": text or name},)
    return Problem(id=name, prompt=prompt, reference=reference, verifier=verifier)


class Equal:
    """An answer that equals the reference is correct; "?" cannot be graded. Records each batch."""

    def __init__(self) -> None:
        self.batches: list[list[tuple[str, str]]] = []

    def verify_batch(self, answers: Sequence[str], references: Sequence[str]) -> list[Score]:
        self.batches.append(list(zip(answers, references, strict=True)))
        return [self.grade(*pair) for pair in self.batches[-1]]

    def grade(self, answer: str, reference: str) -> Score:
        if answer == "?":
            return Score(None, Outcome.CRASHED)
        return Score(1.0, Outcome.CORRECT) if answer == reference else Score(0.0, Outcome.WRONG)

    def close(self) -> None:
        pass


class Noting(ScriptedSampler):
    """Also records the requests."""

    def completions(self, request: SampleRequest) -> list[Completion]:
        self.asked = [*getattr(self, "asked", []), request]
        return super().completions(request)


def scripted(answers: dict[str, list[str]]) -> Noting:
    """answers: the text of a prompt -> the texts of its completions."""
    script = {RENDERER.render(problem(text)): [encoded(a) for a in texts] for text, texts in answers.items()}
    return Noting(script, {encoded(a): a for texts in answers.values() for a in texts})


def collector(
    sampler: Sampler, *, size: int = SIZE, steps: bool = False, max_refills: int = 4, **verifiers: Verifier
) -> Collector:
    return Collector(
        sampler=sampler,
        verifiers=verifiers or {"equal": Equal()},
        renderer=RENDERER,
        params=SamplingParams(max_tokens=8),
        group_size=size,
        run_seed=5,
        scores_steps=steps,
        max_refills=max_refills,
    )


def values(group: RolloutGroup) -> list[float | None]:
    return [rollout.score.value for rollout in group.rollouts]


def test_problems_of_one_text_keep_their_own_groups() -> None:
    """Two problems may have the same text and different references: advantages compare within a problem only."""
    first, second = problem("first", text="x?", reference="1"), problem("second", text="x?", reference="2")
    collected = collector(scripted({"x?": ["1", "2"]})).collect([first, second], step=1)
    assert [group.problem for group in collected.groups] == [first, second]
    assert [values(group) for group in collected.groups] == [[1.0, 0.0], [0.0, 1.0]]
    assert [group.prompt_ids for group in collected.groups] == [encoded("x?\n")] * 2
    assert collected.num_sampled_tokens == 4


def test_every_completion_is_sampled_with_a_seed_of_its_own() -> None:
    """Equal on every rank and in every batch: it depends on the run, the step, the problem and the sample's index alone."""
    sampler = scripted({"x?": ["1", "2"]})
    asked = [problem("first", text="x?"), problem("second", text="x?")]
    collector(sampler).collect(asked, step=4)
    assert [r.seeds for r in sampler.asked] == [
        tuple(completion_seed(5, 4, name, i) for i in range(SIZE)) for name in ("first", "second")
    ]


class OneOfTwo:
    """A process that receives `other` from the second process, or without it its own results instead."""

    count = 2

    def __init__(self, rank: int, other: list[Any]) -> None:
        self.rank, self.other = rank, other

    def gather(self, mine: list[Any]) -> list[Any]:
        self.mine, other = mine, self.other or mine
        return [*mine, *other] if self.rank == 0 else [*other, *mine]


def test_groups_of_two_processes_come_in_the_order_of_the_problems() -> None:
    asked, sampler = [problem(name) for name in "abcd"], scripted({name: ["1", "2"] for name in "abcd"})
    second = OneOfTwo(1, [])
    replace(collector(sampler), processes=second).collect(asked, step=1)
    assert len(sampler.asked) == 2  # the first process samples the other half
    first = OneOfTwo(0, second.mine)
    collected = replace(collector(sampler), processes=first).collect(asked, step=1)
    assert [group.problem.id for group in collected.groups] == [*"abcd"]
    assert collected.num_sampled_tokens == 4 * SIZE
    seconds = [part.sample_seconds for part in (*first.mine, *second.mine)]
    assert collected.sample_seconds == max(seconds) < sum(seconds)  # they sample at the same time


def test_an_unknown_verifier_is_named_with_those_there_are() -> None:
    with pytest.raises(UserError, match=r"verifier 'code'.*'equal'.*'math'"):
        collector(scripted({"a": ["1", "2"]})).collect([problem("a", verifier="code")], step=1)


@pytest.mark.parametrize(
    ("answers", "expected"), [("12", True), ("11", False), ("22", False), ("1?", False), ("??", False), ("?12", True)]
)
def test_a_group_has_signal_if_its_graded_rewards_differ(answers: str, expected: bool) -> None:
    """An ungraded completion is neither right nor wrong, so it is no signal."""
    sampler = scripted({"a": list(answers)})
    (group,) = collector(sampler, size=len(answers)).collect([problem("a")], step=1).groups
    assert has_signal(group) is expected


def test_right_answers_of_different_worth_are_a_signal() -> None:
    """As if the answer's form counted too."""
    (group,) = collector(scripted({"a": ["1", "1"]})).collect([problem("a")], step=1).groups
    first, second = group.rollouts
    worth_less = replace(second, score=replace(second.score, value=0.9))
    assert has_signal(replace(group, rollouts=(first, worth_less))) and not has_signal(group)


class InOrder(ProblemStream):
    """Draws the problems as they stand."""

    def order(self, source: Source, epoch: int) -> list[int]:
        return list(range(len(source.problems)))


def twelve(differing: set[int]) -> tuple[InOrder, Noting]:
    """A stream of p0 to p11 in this order; only the answers to those in `differing` differ."""
    answers = {f"p{i}": ["1", "2"] if i in differing else ["1", "1"] for i in range(12)}
    stream = InOrder.of([problem(name) for name in answers], seed=0)
    return stream, scripted(answers)


def test_dynamic_sampling_draws_on_until_enough_groups_differ() -> None:
    """The first round of two finds p0, the next p3. Dropped groups count as sampled tokens: they took time."""
    stream, sampler = twelve({0, 3, 4})
    collected = collector(sampler).collect_with_signal(stream, 2, step=1)
    assert [group.problem.id for group in collected.groups] == ["p0", "p3"]
    assert (collected.num_refills, stream.num_drawn, len(sampler.asked)) == (1, 4, 4)
    assert collected.num_sampled_tokens == 4 * SIZE


def test_dynamic_sampling_gives_back_no_more_groups_than_asked_for() -> None:
    """A step has a fixed size; of the groups beyond it the latest are dropped, whatever their rewards."""
    stream, sampler = twelve({0, 4, 5, 6, 7})
    collected = collector(sampler).collect_with_signal(stream, 4, step=1)
    assert [group.problem.id for group in collected.groups] == ["p0", "p4", "p5", "p6"]
    assert (collected.num_refills, stream.num_drawn) == (1, 8)


def test_dynamic_sampling_ends_after_max_refills() -> None:
    """A task that is too hard, or solved, must not hang the run."""
    problems = [problem(f"p{i}") for i in range(12)]
    sampler, stream = scripted({p.id: ["2", "2"] for p in problems}), ProblemStream.of(problems, seed=0)
    collected = collector(sampler, max_refills=3).collect_with_signal(stream, 2, step=1)
    assert collected.groups == []
    assert (collected.num_refills, stream.num_drawn) == (3, 8)


def test_steps_end_at_the_token_that_completes_their_line() -> None:
    """Process supervision gives a step's reward at that token."""
    text = "1+1=2\n2+2=5\n\\boxed{5}"
    ids = (*encoded(text), TOKENIZER.eos_token_id)
    sampler = ScriptedSampler({RENDERER.render(problem("a")): [ids]}, {ids: text})
    (group,) = collector(sampler, size=1, steps=True).collect([problem("a")], step=1).groups
    (rollout,) = group.rollouts
    assert rollout.step_rewards == (1.0, 0.0)
    assert rollout.step_ends == (5, 11)  # the newlines, with one token per character


def test_step_ends_hold_for_characters_of_several_tokens_and_tokens_of_several_characters() -> None:
    """é has two tokens, and the opening of a box is one token of seven characters; a truncated last line ends with the last token."""
    text = "é é \\boxed{ x\n1+2=3\n1+3=4"
    ids = encoded(text)
    assert len(ids) == len(text) + 2 - 6
    sampler = ScriptedSampler({RENDERER.render(problem("a")): [ids]}, {ids: text})
    (group,) = collector(sampler, size=1, steps=True).collect([problem("a")], step=1).groups
    assert group.rollouts[0].step_rewards == (1.0, 1.0)
    first_end = len(encoded(text[: text.index("=3\n") + 3])) - 1
    assert group.rollouts[0].step_ends == (first_end, len(ids) - 1)


def test_a_run_without_process_supervision_scores_no_steps() -> None:
    (group,) = collector(scripted({"a": ["1+1=2", "2"]})).collect([problem("a")], step=1).groups
    assert {(r.step_rewards, r.step_ends) for r in group.rollouts} == {((), ())}


def test_a_problem_drawn_again_in_a_step_gets_other_seeds() -> None:
    """A small data set repeats within a step, or within the rounds of dynamic sampling; equal seeds would give equal answers."""
    sampler, again = scripted({"a": ["1", "1"]}), [problem("a")]
    collector(sampler).collect(again * 2, step=1)
    collector(sampler, max_refills=2).collect_with_signal(ProblemStream.of(again, seed=0), 1, step=2)
    for step, count in ((1, 2), (2, 3)):
        asked = [seed for request in sampler.asked[:count] for seed in request.seeds]
        assert asked == [completion_seed(5, step, "a", i) for i in range(count * SIZE)]
        del sampler.asked[:count]


class Failing(ScriptedSampler):
    """Fails after one completion, `failures` times."""

    failures = 0

    def stream(self, requests: Requests, params: SamplingParams) -> Stream:
        for number, found in enumerate(super().stream(requests, params)):
            if number == 1 and self.failures > 0:
                self.failures -= 1
                raise RuntimeError("out of memory")
            yield found


def test_sampling_is_retried_after_an_engine_failure_and_the_third_failure_ends_the_run(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The result contains nothing of a failed attempt."""
    problems = [problem("a"), problem("b")]
    script = scripted({"a": ["1", "2"], "b": ["1", "1"]})
    failing = Failing(script.script, script.texts)
    whole = collector(script).collect(problems, step=1).groups
    failing.failures = 2
    assert collector(failing).collect(problems, step=1).groups == whole
    assert [record.getMessage()[-14:] for record in caplog.records] == ["attempt 2 of 3", "attempt 3 of 3"]
    failing.failures = 3
    with pytest.raises(RuntimeError, match="out of memory"):
        collector(failing).collect(problems, step=1)


def test_the_prompts_answer_prefix_is_graded_with_the_completion() -> None:
    """A template that writes <think> itself: the verifier must see the tag, and a step's end must count the completion's tokens only."""
    opening = tiny_tokenizer()
    opening.chat_template = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}<think>"
    answers = ["\n1+1=2\n</think>1", "1"]
    sampler = Noting({encoded("a\n<think>"): [encoded(a) for a in answers]}, {encoded(a): a for a in answers})
    collecting = replace(collector(sampler, steps=True), renderer=PromptRenderer(opening, style="plain"))
    (group,) = collecting.collect([problem("a", reference="<think>1")], step=1).groups
    assert [r.completion.text for r in group.rollouts] == ["<think>\n1+1=2\n</think>1", "<think>1"]
    assert values(group) == [0.0, 1.0]
    assert group.rollouts[0].step_ends == (len("\n1+1=2\n") - 1,)
