"""Budget forcing: where the thinking ends, what is forced, and what of it the policy is trained on."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
from tokenizers import AddedToken

from rewards.errors import UserError
from rl.objective.algorithms import ALGORITHMS
from rl.run.tiny import END, tiny_tokenizer
from rl.update.batch import pack
from rl.update.step_metrics import describe
from rollout.budget_forcing import BudgetForcing
from rollout.collect import Collected
from rollout.collected_json import collected_from_json, collected_to_json
from rollout.prompts import PromptRenderer
from rollout.records import Completion, FinishReason, Problem, RolloutGroup, Thinking
from rollout.rollouts import Episode, run_rollouts
from rollout.sampler import SampleRequest, SamplingParams, ScriptedSampler, completion_seed
from rollout.thinking_budget import ThinkingBudget, parse_range
from rollout.torch_sampler import TorchSampler
from rollout.turn import TurnReader
from tests.rl.models import make
from tests.rollout import tiny
from tests.rollout.test_collect import Equal, collector, problem

TOKENIZER = tiny_tokenizer()  # a token is a byte, so the delimiter is many tokens
ONE_TOKEN = tiny_tokenizer()
ONE_TOKEN.add_tokens([AddedToken("</think>", normalized=False)])
ENDING = "</think>\n\nFinal Answer:"


class Speaking(ScriptedSampler):
    """Says at each point what `says` has behind what was said before, up to the limit. A text without END goes on and on."""

    def __init__(self, prompt: tuple[int, ...], says: dict[str, str], tokenizer=TOKENIZER, stop_strings=()) -> None:
        super().__init__({}, {})
        self.prompt, self.says, self.tokenizer = prompt, says, tokenizer
        self.turns = TurnReader.of(tokenizer, {tokenizer.eos_token_id})
        self.asked: list[tuple[str, SampleRequest]] = []
        self.stop_strings = stop_strings

    def completions(self, request: SampleRequest) -> list[Completion]:
        before = self.tokenizer.decode(request.prompt_ids[len(self.prompt) :])
        self.asked.append((before, request))
        said = self.tokenizer.encode(self.says[before])
        token_ids = tuple(said[: request.max_tokens])
        is_whole = len(said) <= (request.max_tokens or 0) and self.says[before].endswith((END, *self.stop_strings))
        (text,) = self.turns.texts([token_ids], self.stop_strings)
        return [
            Completion(
                token_ids=token_ids,
                sampler_logprobs=tuple(-float(n) for n in range(len(token_ids))),
                finish_reason=FinishReason.STOP if is_whole else FinishReason.LENGTH,
                policy_version=0,
                seed=seed,
                text=text,
            )
            for seed in request.seeds
        ]


def forced(
    says: dict[str, str], budget: ThinkingBudget, *, max_tokens=80, tokenizer=TOKENIZER, stop_strings=()
) -> tuple[Completion, Speaking]:
    """The completion of a policy that says this, and the sampler with what it was asked."""
    prompt = tuple(tokenizer.encode("x?\n"))
    sampler = Speaking(prompt, says, tokenizer, stop_strings)
    rollout = BudgetForcing(budget=budget, turns=sampler.turns, stop_strings=stop_strings)
    rollout.require_room(max_tokens)
    seed_of = partial(completion_seed, 5, 1, "x?", 0)
    episode = Episode(problem=problem("x?"), prompt_ids=prompt, max_tokens=max_tokens, seed_of=seed_of)
    ((_, _, completion),) = run_rollouts([[rollout(episode)]], sampler, SamplingParams(max_tokens=max_tokens))
    return completion, sampler


def at_most(most: int, **given: object) -> ThinkingBudget:
    return ThinkingBudget(least=most, most=most, **given)  # pyright: ignore[reportArgumentType]


def chosen(completion: Completion, tokenizer=TOKENIZER) -> str:
    """What the policy chose of the completion."""
    pairs = zip(completion.token_ids, completion.loss_mask, strict=True)
    return tokenizer.decode([token for token, is_chosen in pairs if is_chosen])


def test_at_the_maximum_the_answer_is_forced() -> None:
    completion, sampler = forced({"": "hm" * 40, "hmhmh" + ENDING: f" 7{END}"}, at_most(5))
    assert completion.text == f"hmhmh{ENDING} 7"
    assert tuple(TOKENIZER.encode(completion.text + END)) == completion.token_ids
    assert chosen(completion) == f"hmhmh 7{END}"
    assert completion.sampler_logprobs == (0.0, -1.0, -2.0, -3.0, -4.0, 0.0, -1.0, -2.0)
    assert completion.thinking == Thinking(num_tokens=5, is_cut=True)
    assert completion.finish_reason is FinishReason.STOP
    assert [request.max_tokens for _, request in sampler.asked] == [5, 80 - 5 - len(ENDING)]
    seeds = [completion_seed(5, 1, "x?", 0, turn) for turn in range(2)]
    assert [request.seeds[0] for _, request in sampler.asked] == seeds and completion.seed == seeds[0]


def test_an_answer_that_is_forced_ends_at_the_limit_of_the_whole_completion() -> None:
    completion, _ = forced({"": "hm" * 40, "hm" + ENDING: "7" * 99}, at_most(2), max_tokens=2 + len(ENDING) + 3)
    assert completion.text == f"hm{ENDING}777" and completion.finish_reason is FinishReason.LENGTH


def test_a_budget_of_0_leaves_no_thinking() -> None:
    completion, sampler = forced({ENDING: f"7{END}"}, at_most(0))
    assert completion.text == ENDING + "7" and len(sampler.asked) == 1
    assert completion.thinking == Thinking(num_tokens=0, is_cut=True)
    assert completion.seed == completion_seed(5, 1, "x?", 0)


def test_a_model_that_ends_its_thinking_in_time_is_left_alone() -> None:
    completion, sampler = forced({"": f"hm</think>7{END}"}, at_most(50))
    assert len(sampler.asked) == 1 and all(completion.loss_mask)
    assert completion.text == "hm</think>7" and completion.thinking == Thinking(num_tokens=2)


def test_an_answer_that_the_maximum_cuts_is_gone_on_with() -> None:
    """The budget is of the thinking. A character whose bytes two turns have written is read whole."""
    says = {"": "hm</think>é7" + END}
    begun = len(TOKENIZER.encode("hm</think>")) + 1
    before = TOKENIZER.decode(TOKENIZER.encode("hm</think>é")[:begun])
    prompt, rest = tuple(TOKENIZER.encode("x?\n")), TOKENIZER.encode("é7" + END)[1:]
    sampler = Speaking(prompt, says)
    rollout = BudgetForcing(budget=at_most(begun), turns=sampler.turns)
    turns = rollout(Episode(problem=problem("x?"), prompt_ids=prompt, max_tokens=80, seed_of=lambda turn: turn + 5))
    first = sampler.completions(next(turns))[0]
    assert first.text == before and first.finish_reason is FinishReason.LENGTH
    request = turns.send(first)
    assert request.prompt_ids == prompt + first.token_ids and request.max_tokens == 80 - begun
    second = replace(first, token_ids=tuple(rest), sampler_logprobs=(-1.0,) * len(rest), loss_mask=())
    with pytest.raises(StopIteration) as end:
        turns.send(replace(second, finish_reason=FinishReason.STOP))
    completion = end.value.value
    assert completion.text == "hm</think>é7" and all(completion.loss_mask)
    assert completion.thinking == Thinking(num_tokens=2) and completion.finish_reason is FinishReason.STOP


@pytest.mark.parametrize("end", ["</think>so 7" + END, END], ids=["delimiter", "end of turn"])
def test_the_end_of_thinking_is_taken_off_as_often_as_the_model_is_to_wait(end: str) -> None:
    says = {"": "hm" + end, "hmWait": "oh" + end, "hmWaitohWait": f"ah</think>9{END}"}
    completion, sampler = forced(says, at_most(50, waits=2))
    assert completion.text == "hmWaitohWaitah</think>9"
    assert chosen(completion) == f"hmohah</think>9{END}"
    assert completion.sampler_logprobs == (0.0, -1.0) * 2 + tuple(-float(n) for n in range(12))
    assert completion.thinking == Thinking(num_tokens=len("hmWaitohWaitah"), num_waits=2)
    assert [request.max_tokens for _, request in sampler.asked] == [50, 44, 38]
    assert [r.seeds[0] for _, r in sampler.asked] == [completion_seed(5, 1, "x?", 0, n) for n in range(3)]


def test_a_stop_string_is_an_end_of_the_turn_too() -> None:
    says = {"": "hm<stop>", "hmWait": "oh<stop>"}
    completion, _ = forced(says, at_most(50, waits=1), stop_strings=("<stop>",))
    assert completion.text == "hmWaitoh<stop>" and completion.thinking == Thinking(num_tokens=8, num_waits=1)


@pytest.mark.parametrize("begun", range(1, len("<stop>")))
def test_a_stop_string_that_the_maximum_cuts_ends_the_completion(begun: int) -> None:
    """The engine has gone on, since neither of its turns has all of it."""
    thought = "hm</think>7"
    says = {"": f"{thought}<stop>", thought + "<stop>"[:begun]: "<stop>"[begun:] + "89" * 20}
    completion, _ = forced(says, at_most(len(thought) + begun), stop_strings=("<stop>",))
    assert completion.text == thought + "<stop>" and completion.finish_reason is FinishReason.STOP
    assert tuple(TOKENIZER.encode(completion.text)) == completion.token_ids and all(completion.loss_mask)


def test_a_stop_string_that_a_forced_phrase_has_begun_ends_the_completion() -> None:
    completion, _ = forced({"": "hm" * 40, f"hm{ENDING}": "\n7" * 9}, at_most(2), stop_strings=(":\n",))
    assert completion.text == f"hm{ENDING}\n" and completion.finish_reason is FinishReason.STOP


def test_a_turn_of_which_nothing_is_left_has_had_its_seed() -> None:
    """Otherwise the next turn would be drawn with the random numbers that made the model end its thinking."""
    says = {"": f"</think>7{END}", "Wait": f"oh</think>8{END}"}
    completion, sampler = forced(says, at_most(50, waits=1))
    assert completion.text == "Waitoh</think>8" and chosen(completion) == f"oh</think>8{END}"
    seeds = [completion_seed(5, 1, "x?", 0, turn) for turn in range(2)]
    assert [request.seeds[0] for _, request in sampler.asked] == seeds and completion.seed == seeds[0]


def test_a_wait_that_the_maximum_has_no_room_for_is_not_forced() -> None:
    says = {"": f"hm{END}", "hmWait": f"o{END}", "hmWaito" + ENDING: f"8{END}"}
    assert forced(says, at_most(6, waits=1))[0].text == "hm"
    completion, _ = forced(says, at_most(7, waits=1))
    assert completion.text == f"hmWaito{ENDING}8" and completion.thinking == Thinking(
        num_tokens=7, num_waits=1, is_cut=True
    )


@pytest.mark.parametrize("begun", range(1, len("</think>")))
def test_a_delimiter_that_the_maximum_cuts_is_not_there_twice(begun: int) -> None:
    says = {"": f"hm</think>7{END}", "hm" + ENDING: f" 7{END}"}
    completion, _ = forced(says, at_most(2 + begun))
    assert completion.text == f"hm{ENDING} 7" and completion.thinking == Thinking(num_tokens=2, is_cut=True)


def test_a_delimiter_of_one_token() -> None:
    """As Qwen3 and DeepSeek-R1 have it."""
    says = {"": f"hm</think>7{END}", "hmWait": "oh" * 40, "hmWaito" + ENDING: f" 7{END}"}
    completion, _ = forced(says, at_most(7, waits=1), tokenizer=ONE_TOKEN)
    assert completion.text == f"hmWaito{ENDING} 7" and chosen(completion, ONE_TOKEN) == f"hmo 7{END}"
    assert completion.token_ids.count(ONE_TOKEN.get_vocab()["</think>"]) == 1
    completion, _ = forced({"": f"hm</think>7{END}"}, at_most(50), tokenizer=ONE_TOKEN)
    assert completion.thinking == Thinking(num_tokens=2)


def test_a_token_that_reaches_into_the_delimiter_goes_with_it() -> None:
    """As ".</" is one token to many vocabularies. Nothing is encoded anew."""
    merged = tiny_tokenizer()
    merged.add_tokens([AddedToken("m</", normalized=False)])
    says = {"": f"hm</think>7{END}", "hWait": f"oh</think>8{END}"}
    completion, _ = forced(says, at_most(50, waits=1), tokenizer=merged)
    assert completion.text == "hWaitoh</think>8"


def test_the_maximum_is_drawn_from_the_range_by_the_seed_of_the_completion() -> None:
    budget = ThinkingBudget(least=3, most=6)
    seeds = [completion_seed(0, step, "p", i, -1) for step in range(50) for i in range(8)]
    drawn = [budget.maximum(seed) for seed in seeds]
    assert set(drawn) == {3, 4, 5, 6} and drawn == [budget.maximum(seed) for seed in seeds]
    assert all(60 < drawn.count(n) < 140 for n in range(3, 7))  # 100 are expected, with a standard deviation of 9
    says = {"": "h" * 80} | {"h" * n + ENDING: f"7{END}" for n in range(3, 7)}
    completion, _ = forced(says, budget)
    assert completion.thinking is not None
    assert completion.thinking.num_tokens == budget.maximum(completion_seed(5, 1, "x?", 0, -1))


@pytest.mark.parametrize(("text", "bounds"), [("64", (64, 64)), ("0", (0, 0)), ("64:256", (64, 256)), ("8:8", (8, 8))])
def test_ranges(text: str, bounds: tuple[int, int]) -> None:
    assert parse_range(text) == bounds


@pytest.mark.parametrize("text", ["", "-1", "1.5", "8:4", ":8", "8:", "a:b", "1:2:3", "²"])
def test_what_is_no_range(text: str) -> None:
    with pytest.raises(UserError, match="LOW:HIGH"):
        parse_range(text)


def test_what_has_no_room_is_refused() -> None:
    turns = TurnReader.of(TOKENIZER, {TOKENIZER.eos_token_id})
    room = 80 - len(ENDING) - 1
    BudgetForcing(budget=at_most(room), turns=turns).require_room(80)
    with pytest.raises(UserError, match=f"thinking_budget is {room + 1}: .* has room for {room} tokens"):
        BudgetForcing(budget=at_most(room + 1), turns=turns).require_room(80)
    with pytest.raises(UserError, match=f"thinking_budget is 8:{room + 1}: .* has room for {room} tokens"):
        BudgetForcing(budget=replace(at_most(room + 1), least=8), turns=turns).require_room(80)
    with pytest.raises(UserError, match="thinking_waits is 1: wait_phrase has 4 tokens"):
        BudgetForcing(budget=at_most(4, waits=1), turns=turns).require_room(80)


def test_a_phrase_that_the_tokenizer_does_not_know_is_refused() -> None:
    turns = TurnReader.of(tiny.tokenizer(), {tiny.END})
    with pytest.raises(UserError, match="wait_phrase is 'Wait': to the model's tokenizer it is"):
        BudgetForcing(budget=at_most(8, waits=1, end="=", closing=""), turns=turns).require_room(80)


RANGE = ThinkingBudget(least=1, most=9, waits=1, end="=", wait="qu", closing="ee")


def collected_by(budget: ThinkingBudget, sampler: TorchSampler, step: int = 1) -> Collected:
    rollout = BudgetForcing(budget=budget, turns=sampler.turns)
    renderer = PromptRenderer(tiny.tokenizer(), style="plain")
    collecting = replace(collector(sampler, size=6, equal=Equal()), renderer=renderer, rollout=rollout)
    problems: list[Problem] = [problem(name) for name in ("a+b", "the", "12")]
    return replace(collecting, params=SamplingParams(max_tokens=20)).collect(problems, step=step)


def completions_of(groups: list[RolloutGroup]) -> list[Completion]:
    return [rollout.completion for group in groups for rollout in group.rollouts]


def test_the_embedded_engines_own_tokens_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every chosen token is one that the engine returned at this place, with its log-prob; text is that of all tokens."""
    sampler, returned = TorchSampler(make("qwen2"), tiny.tokenizer()), {}
    stream = sampler.stream

    def noting(queue, params):
        for n, i, completion in stream(queue, params):
            returned[completion.seed] = completion
            yield n, i, completion

    monkeypatch.setattr(sampler, "stream", noting)
    found = completions_of(collected_by(RANGE, sampler).groups)
    assert any(c.thinking.is_cut for c in found) and any(c.thinking.num_waits for c in found)  # pyright: ignore
    for c in found:
        logprobs = iter(c.sampler_logprobs)
        own = [(t, next(logprobs)) for t, is_chosen in zip(c.token_ids, c.loss_mask, strict=True) if is_chosen]
        turns = [returned[seed] for seed in seeds_of(c, returned)]
        for turn in turns:  # each turn's beginning, in order
            pairs = list(zip(turn.token_ids, turn.sampler_logprobs, strict=True))
            n = max(k for k in range(len(pairs) + 1) if own[:k] == pairs[:k])
            own = own[n:]
        assert own == []
        assert c.text == sampler.turns.texts([c.token_ids])[0]


def seeds_of(completion: Completion, returned: dict[int, Completion]) -> list[int]:
    """The seeds of a completion's turns, in order."""
    for name in ("a+b", "the", "12"):
        for i in range(6):
            seeds = [completion_seed(5, 1, name, i, turn) for turn in range(4)]
            if seeds[0] == completion.seed:
                return [seed for seed in seeds if seed in returned]
    return [completion.seed]


def test_the_same_seeds_force_the_same_completions() -> None:
    """A step that is sampled again after a resume, and one that was saved in a checkpoint."""
    first, again = (collected_by(RANGE, TorchSampler(make("qwen2"), tiny.tokenizer())) for _ in range(2))
    assert completions_of(first.groups) == completions_of(again.groups)
    saved = collected_from_json(collected_to_json(first))
    assert completions_of(saved.groups) == completions_of(first.groups)


def test_forced_tokens_are_in_no_count() -> None:
    collected = collected_by(RANGE, TorchSampler(make("qwen2"), tiny.tokenizer()))
    completions = completions_of(collected.groups)
    assert sum(len(c.token_ids) for c in completions) > sum(c.num_chosen for c in completions)
    algorithm = replace(ALGORITHMS["grpo"], dynamic_sampling=False)
    credited = algorithm.assign_credit(collected.groups, 20)
    assert pack(credited, algorithm, 20).counts.num_tokens == sum(c.num_chosen for c in completions)
    metrics = describe(collected, credited)
    assert collected.num_sampled_tokens == metrics["tokens/sampled"] == sum(c.num_chosen for c in completions)
    found = [c.thinking for c in completions if c.thinking is not None]
    assert metrics["thinking/tokens"] == pytest.approx(sum(t.num_tokens for t in found) / len(found))
    assert metrics["thinking/cut"] == pytest.approx(sum(t.is_cut for t in found) / len(found))
    assert metrics["thinking/waits"] == pytest.approx(sum(t.num_waits for t in found) / len(found))
    assert 0 < (metrics["thinking/cut"] or 0) < 1
