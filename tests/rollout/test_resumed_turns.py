"""A later turn takes up the keys and values of the turn before: the same completions, and only added tokens are processed."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import pytest
import torch
from transformers import PreTrainedModel

from rollout.engine import fused_decoder
from rollout.engine.fused_decoder import FusedDecoder
from rollout.engine.kept import Context, KeptContexts
from rollout.records import Completion
from rollout.rollouts import Call, Episode, Fixed, Turns, one_shot, run_rollouts
from rollout.sampler import RequestQueue, SampleRequest, SamplingParams, completion_seed
from rollout.torch_sampler import TorchSampler
from tests.rollout.families import ALL, RECOMPUTED, tiny_model
from tests.rollout.sampler_contract import TOLERANCE, episodes, requests
from tests.rollout.test_torch_sampler import sampler_of
from tests.rollout.tiny import plain_logprobs

HOW = [*ALL, "qwen2-window/slots", "qwen2-window/buckets", "qwen3/buckets", "qwen2-window/threads"]
ADDED = ((9, 5, 11, 30), (), (8,), tuple(range(10, 27)))  # what follows each turn but the last


def conversation(episode: Episode, cuts: list[Completion] | None = None) -> Turns:
    """Five turns. The third turn's last token is taken off where it has more than one, as budget forcing does; `cuts` lists these."""
    parts: list[Completion | Fixed] = []
    for n, tokens in enumerate(ADDED):
        turn = yield episode.ask(parts, at_most=3 + n)
        if n == 2 and len(turn.token_ids) > 1:
            turn = cut(turn, len(turn.token_ids) - 1)
            cuts = [] if cuts is None else cuts
            cuts.append(turn)
        yield Call(lambda: None)
        parts += [turn, Fixed(tokens, "")]
    return episode.join([*parts, (yield episode.ask(parts, at_most=5, is_last=True))])


def cut(turn: Completion, n: int) -> Completion:
    kept = {"token_ids": turn.token_ids[:n], "sampler_logprobs": turn.sampler_logprobs[:n], "loss_mask": (True,) * n}
    return replace(turn, **kept)


def of_all(sampler: TorchSampler, begun: Sequence[Sequence[Episode]], rollout=conversation) -> list[Completion]:
    rollouts = [[rollout(episode) for episode in group] for group in begun]
    params = SamplingParams(max_tokens=200, temperature=2.0)
    found = {(i, j): whole for i, j, whole in run_rollouts(rollouts, sampler, params)}
    return [found[place] for place in sorted(found)]


def num_fixed(begun: Sequence[Sequence[Episode]]) -> int:
    """The tokens that the prompts and the additions have: those of a prompt once for its group, without its last one."""
    return sum(len(group[0].prompt_ids) - 1 + len(group) * sum(map(len, ADDED)) for group in begun)


@pytest.mark.parametrize("how", HOW)
def test_completions_are_those_of_turns_that_are_processed_anew(how: str) -> None:
    """Rows enter and leave in the order in which turns end, so that some join their group again and others begin one. In float32 the
    log-probs are those of a plain forward over the whole text."""
    family, _, how = how.partition("/")
    model, threads = tiny_model(family, 0), torch.get_num_threads()
    begun, cuts = episodes(5, 4, max_tokens=200), list[Completion]()
    torch.set_num_threads(2 if how == "threads" else threads)
    try:
        sampler, anew = sampler_of(model, 30, how), sampler_of(model, 30, how)
        anew.resumes = False
        found, expected = of_all(sampler, begun, partial(conversation, cuts=cuts)), of_all(anew, begun)
    finally:
        torch.set_num_threads(threads)
    prompts = [episode.prompt_ids for group in begun for episode in group]
    for prompt, whole in zip(prompts, found, strict=True):
        plain = torch.tensor(tempered_logprobs(model, prompt, whole))
        assert (plain - torch.tensor(whole.sampler_logprobs)).abs().max() < TOLERANCE
    # A draw on the boundary between two tokens may fall on either side, see the contract's test of seeds.
    assert sum(a.token_ids != b.token_ids for a, b in zip(found, expected, strict=True)) <= 1
    if family in RECOMPUTED:
        assert sampler.num_prefilled == anew.num_prefilled
    else:  # the last token of a turn that was cut has been processed: one took the place of the first that is added
        assert cuts and sampler.num_prefilled == num_fixed(begun) - len(cuts) < anew.num_prefilled / 3


def tempered_logprobs(model: PreTrainedModel, prompt: tuple[int, ...], whole: Completion) -> list[float]:
    """Log-probs at the temperature of `of_all` of the tokens that were sampled."""
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *whole.token_ids]]), use_cache=False).logits[0, len(prompt) - 1 : -1]
    table = (logits.double() / 2.0).log_softmax(-1)
    return [table[n, token].item() for n, token in enumerate(whole.token_ids) if whole.loss_mask[n]]


def test_no_token_of_any_turn_is_run_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is one left out: prompts but for their last tokens, once for a group; every sampled token that is read on; additions."""
    sampler, run = sampler_of(tiny_model("qwen2", 0), 30, ""), []
    assert sampler.fused is not None
    states = sampler.fused.states
    monkeypatch.setattr(sampler.fused, "states", lambda tokens, *rest: run.append(tokens) or states(tokens, *rest))

    def two_turns(episode: Episode) -> Turns:
        turn = yield episode.ask(at_most=4)
        parts = [turn, Fixed((9, 5, 30), "")]
        return episode.join([*parts, (yield episode.ask(parts, at_most=4, is_last=True))])

    begun = [  # prompts of equal lengths, so that none is padded
        [replace(e, prompt_ids=(p, *range(3, 8))) for e in group]
        for p, group in enumerate(episodes(6, 3, max_tokens=20), 2)
    ]
    found = of_all(sampler, begun, two_turns)
    # The step that processes a prompt's last token draws the first token; nobody reads the last one of a completion.
    steps = sum(len(whole.token_ids) for whole in found)
    assert sum(map(len, run)) == sum(len(group[0].prompt_ids) - 1 for group in begun) + steps


def test_long_additions_are_processed_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    begun = episodes(5, 4, max_tokens=200)
    expected = of_all(sampler_of(tiny_model("qwen3", 0), 30, ""), begun)
    monkeypatch.setattr(fused_decoder, "PREFILL_TOKENS", 40)
    for how in ("", "buckets"):
        found = of_all(sampler_of(tiny_model("qwen3", 0), 30, how), begun)
        assert [whole.token_ids for whole in found] == [whole.token_ids for whole in expected]


@pytest.mark.parametrize("how", ["", "slots", "buckets"])
def test_a_delivery_drops_what_is_kept(how: str) -> None:
    """Even in the middle of a stream: the next turn is sampled from the new weights alone, as by an engine that never had others."""
    sampler, other = sampler_of(tiny_model("qwen2", 0), 30, how), tiny_model("qwen2", 1)
    params, queue, prompt = SamplingParams(max_tokens=6, temperature=0), RequestQueue(), requests(4, 1)[3].prompt_ids
    queue.put(SampleRequest(prompt, (1,), is_last=False))
    stream = sampler.stream(queue, params)
    number, n, first = next(stream)
    assert len(sampler.contexts[0]) == 1
    sampler.update_weights(other.named_parameters(remove_duplicate=False), version=1)
    assert len(sampler.contexts[0]) == 0
    context = (*prompt, *first.token_ids, 4, 5)
    queue.put(SampleRequest(context, (2,), continues=(number, n)))
    queue.close()
    ((_, _, second),) = stream
    expected = plain_logprobs(other, context, second.token_ids)
    assert (expected - torch.tensor(second.sampler_logprobs)).abs().max() < TOLERANCE
    assert sampler.num_prefilled == len(prompt) - 1 + len(context) - 1


def test_a_row_that_saw_two_weights_is_not_kept() -> None:
    """It was being decoded when the weights came: part of its keys are the old weights'."""
    sampler, params, queue = sampler_of(tiny_model("qwen2", 0), 30, ""), SamplingParams(max_tokens=9), RequestQueue()
    for seed, limit in ((1, 1), (2, 9)):
        queue.put(SampleRequest((5, 6), (seed,), limit, is_last=False))
    stream = sampler.stream(queue, params)
    next(stream)
    sampler.update_weights([], version=1)
    next(stream)
    assert len(sampler.contexts[0]) == 0
    stream.close()


def test_nothing_is_kept_beyond_a_stream() -> None:
    """Whether it ends or is broken off, as before a collection is tried again."""
    sampler = sampler_of(tiny_model("qwen2", 0), 30, "")
    of_all(sampler, episodes(3, 2, max_tokens=200))
    assert sampler.contexts == []
    queue = RequestQueue()
    queue.put(SampleRequest((5, 6), (1, 2), is_last=False))
    stream = sampler.stream(queue, SamplingParams(max_tokens=1))
    next(stream)
    assert len(sampler.contexts[0]) == 2
    stream.close()
    assert sampler.contexts == []


def test_rows_and_what_is_kept_are_together_at_most_max_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """With 7 rows for 20 rollouts what ended first makes room, and is processed anew: the same completions."""
    begun, sizes, trim = episodes(5, 4, max_tokens=200), [], KeptContexts.trim

    def watched(self: KeptContexts, most: int) -> None:
        trim(self, most)
        sizes.append((len(self), most))

    expected = of_all(sampler_of(tiny_model("qwen2", 0), 30, ""), begun)
    monkeypatch.setattr(KeptContexts, "trim", watched)
    sampler = sampler_of(tiny_model("qwen2", 0), 7, "")
    found = of_all(sampler, begun)
    assert [whole.token_ids for whole in found] == [whole.token_ids for whole in expected]
    assert all(size <= most <= 7 for size, most in sizes) and max(sizes)[0] > 1
    assert sampler.num_prefilled > num_fixed(begun)


def test_what_a_rollout_kept_is_dropped_as_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here after one turn, which need not have been the last. Four groups of five rows each end one step after the other."""

    def one_turn(episode: Episode) -> Turns:
        return (yield episode.ask(at_most=2 + int(episode.problem.id)))

    most, put = [0], KeptContexts.put

    def watched(self: KeptContexts, *args) -> None:
        put(self, *args)
        most.append(len(self))

    monkeypatch.setattr(KeptContexts, "put", watched)
    of_all(sampler_of(tiny_model("qwen2", 0), 30, ""), episodes(4, 5, max_tokens=9), one_turn)
    assert (
        len(most) == 21 and max(most) <= 6
    )  # those of one step, in which one of another group may end by an end token


def test_of_completions_that_ended_the_earliest_make_room() -> None:
    kept = KeptContexts()
    for n in range(4):
        kept.put((n, 0), Context((5, 6, n), 2, None))
    kept.trim(2)
    taken = [kept.take(SampleRequest((5, 6, n, 8), (1,), continues=(n, 0))) for n in range(4)]
    assert [None if resumed is None else resumed.start for resumed in taken] == [None, None, 3, 3]
    assert len(kept) == 0


@pytest.mark.parametrize(
    ("prompt", "start"),
    [((5, 6, 7, 8, 9), 4), ((5, 6, 7, 8), 3), ((5, 6, 1, 8), 2), ((5, 1, 7, 8), 1), ((5, 6), 1), ((4, 6, 7, 8), None)],
)
def test_a_context_is_taken_up_as_far_as_the_prompt_begins_with_it(prompt: tuple[int, ...], start: int | None) -> None:
    """The prompt's last token is processed in any case. What is not even the first prompt's is not taken up."""
    kept = KeptContexts()
    kept.put((0, 0), Context((5, 6, 7, 8), 2, None))
    resumed = kept.take(SampleRequest(prompt, (1,), continues=(0, 0)))
    assert (resumed.start if resumed else None) == start


def test_rollouts_of_one_turn_keep_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FusedDecoder, "keep", lambda *_: pytest.fail("kept"))
    of_all(sampler_of(tiny_model("qwen2", 0), 30, ""), episodes(3, 2, max_tokens=9), one_shot)


def test_memory_does_not_grow_over_steps() -> None:
    """Where a GPU's caches are kept from step to step, their size is that of the second step in all later ones."""
    sampler = TorchSampler(copy.deepcopy(tiny_model("qwen2", 0)), sampler_of(tiny_model("qwen2", 0), 1, "").tokenizer)
    sampler.bucketed = sampler.keeps_caches = True
    capacities = []
    for step in range(4):
        begun = [
            [replace(e, seed_of=partial(completion_seed, 0, step, e.problem.id)) for e in group]
            for group in episodes(5, 4, max_tokens=200)
        ]
        of_all(sampler, begun)
        sampler.sleep()
        sampler.update_weights([], step)
        assert sampler.kept is not None and sampler.contexts == []
        capacities.append(sampler.kept.capacity)
    assert len(set(capacities[1:])) == 1
