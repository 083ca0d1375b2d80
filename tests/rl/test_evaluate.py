"""Held-out problems: the greedy answer, whether any of k samples is right, and what they vote for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from rewards.score import Outcome, Score
from rl.run.evaluate import evaluate, right_by_vote
from rl.run.tiny import tiny_tokenizer
from rollout.collect import Collector
from rollout.prompts import PromptRenderer
from rollout.records import Completion, FinishReason, Problem, Rollout, RolloutGroup
from rollout.sampler import Requests, SampleRequest, SamplingParams, ScriptedSampler, Stream, completion_seed


def group(*judged: tuple[str, Outcome]) -> RolloutGroup:
    problem = Problem(id="p", prompt="p", reference="1/2")
    rollouts = []
    for text, outcome in judged:
        completion = Completion(
            token_ids=(1,),
            sampler_logprobs=(0.0,),
            finish_reason=FinishReason.STOP,
            policy_version=0,
            seed=0,
            text=text,
        )
        score = Score(float(outcome is Outcome.CORRECT) if outcome.gradable else None, outcome)
        rollouts.append(Rollout(problem=problem, completion=completion, score=score))
    return RolloutGroup(problem=problem, prompt_ids=(1,), rollouts=tuple(rollouts))


RIGHT, WRONG, NONE = Outcome.CORRECT, Outcome.WRONG, Outcome.NO_ANSWER


@pytest.mark.parametrize(
    ("judged", "expected"),
    [
        ([(r"\boxed{1/2}", RIGHT), (r"\boxed{0.5}", RIGHT), (r"\boxed{3}", WRONG)], 1.0),  # two writings, one answer
        ([(r"\boxed{1/2}", RIGHT), (r"\boxed{3}", WRONG), (r"\boxed{3}", WRONG)], 0.0),
        ([(r"\boxed{1/2}", RIGHT), (r"\boxed{3}", WRONG), (r"\boxed{4}", WRONG)], 1 / 3),  # a tie of three
        ([(r"\boxed{1/2}", RIGHT), ("I do not know", NONE), ("nor do I", NONE)], 1.0),  # they do not vote
        ([(r"\boxed{1/2}", RIGHT), ("#### 3", WRONG), ("<answer>3</answer>", WRONG)], 0.0),  # answers in any form vote
        ([("I do not know", NONE)], 0.0),
    ],
)
def test_the_vote_is_that_of_answers_and_not_of_texts(judged: list[tuple[str, Outcome]], expected: float) -> None:
    assert right_by_vote(group(*judged)) == pytest.approx(expected)


def test_the_vote_is_on_answers_where_the_runs_form_has_them() -> None:
    """A puzzle's answers stand where they always do."""
    judged = group(("It is 3 #### 4", WRONG), ("So 3.", WRONG), ("Or 1/2", RIGHT))
    assert right_by_vote(judged, "hashes") == 0.5  # 4, and the right one; the second text has no answer of that form
    assert right_by_vote(judged, "last-number") == pytest.approx(1 / 3)
    assert right_by_vote(group(("3", WRONG), ("3", WRONG), ("Or 1/2", RIGHT)), "last-number") == 0.0
    puzzle = replace(judged.problem, verifier="puzzle")
    rollouts = tuple(replace(rollout, problem=puzzle) for rollout in judged.rollouts)
    assert right_by_vote(replace(judged, problem=puzzle, rollouts=rollouts), "last-number") == 0.5


class Knows:
    """Judges by a table."""

    def verify_batch(self, answers: Sequence[str], references: Sequence[object]) -> list[Score]:
        judged = {"right": RIGHT, "no": NONE, "crash": Outcome.CRASHED}
        outcomes = [judged.get(answer, WRONG) for answer in answers]
        return [Score(None if o is Outcome.CRASHED else float(o is RIGHT), o) for o in outcomes]

    def check_references(self, references: Sequence[object]) -> list[Score]:
        raise NotImplementedError

    def close(self) -> None: ...


@pytest.mark.parametrize("verifier", ["math", "program"])
def test_k_samples_are_looked_at_beside_the_greedy_one(verifier: str) -> None:
    """Three problems: the greedy answer is right once of two graded; of four samples one is right for two of three problems,
    and the vote is right for one (the other's right answer is alone against a pair)."""
    tokenizer = tiny_tokenizer()
    problems = [Problem(id=name, prompt=name, reference="", verifier=verifier) for name in "abc"]
    renderer = PromptRenderer(tokenizer, style="plain")
    texts = {
        (1,): "right",
        (2,): r"\boxed{7}",
        (3,): r"\boxed{8}",
        (4,): "no",
        (5,): "crash",
    }
    script = {"a": [(1,), (1,), (2,), (4,)], "b": [(2,), (1,), (2,), (3,)], "c": [(5,), (2,), (3,), (4,)]}
    sampler = ScriptedSampler({renderer.render(p): script[p.id] for p in problems}, texts)
    collector = Collector(
        sampler=sampler,
        verifiers={verifier: Knows()},
        renderer=renderer,
        params=SamplingParams(max_tokens=4),
        group_size=2,
        run_seed=0,
    )
    found = evaluate(collector, problems, 4)
    assert found["eval/accuracy"] == pytest.approx(1 / 2)
    assert found["eval/pass_at_k"] == pytest.approx(2 / 3)
    assert found["eval/maj_at_k"] == (pytest.approx(1 / 3) if verifier == "math" else None)
    assert "eval/pass_at_k" not in evaluate(collector, problems)


class Noting(ScriptedSampler):
    """Also notes at what temperature and by which seeds it was asked."""

    def stream(self, requests: Requests, params: SamplingParams) -> Stream:
        self.asked = [*getattr(self, "asked", []), (params.temperature, [])]
        return super().stream(requests, params)

    def completions(self, request: SampleRequest) -> list[Completion]:
        self.asked[-1][1].append(request.seeds)
        return super().completions(request)


def test_every_evaluation_samples_by_the_same_seeds_at_the_temperature_of_training() -> None:
    tokenizer = tiny_tokenizer()
    renderer, problem = PromptRenderer(tokenizer, style="plain"), Problem(id="a", prompt="a", reference="")
    sampler = Noting({renderer.render(problem): [(1, 3), (2,), (2,)]}, {(1, 3): "right", (2,): "no"})
    collector = Collector(
        sampler=sampler,
        verifiers={"math": Knows()},
        renderer=renderer,
        params=SamplingParams(max_tokens=4, temperature=0.7),
        group_size=2,
        run_seed=5,
    )
    for _ in range(2):
        found = evaluate(collector, [problem], 3)
        assert (found["eval/length"], found["eval/truncated"]) == (2.0, 0.0)  # of the greedy one
    seeds = tuple(completion_seed(5, 0, "a", i) for i in range(3))
    assert sampler.asked == [(0.0, [seeds[:1]]), (0.7, [seeds])] * 2
