"""The embedded engine passes the contract with every kind of attention, and uses the fastest correct decoder."""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace

import pytest
import torch
from transformers import PreTrainedModel

from rl.forward.forward import enable_gradient_checkpointing
from rollout.engine.batch import Batch, Ended
from rollout.engine.decoders import CachedDecoder, RecomputingDecoder
from rollout.engine.fused_decoder import FusedDecoder
from rollout.records import FinishReason
from rollout.sampler import RequestQueue, SampleRequest, SamplingParams
from rollout.torch_sampler import TorchSampler, stop_token_ids
from tests.rollout.families import ALL, CACHED, FUSED, RECOMPUTED, tiny_model
from tests.rollout.sampler_contract import TOLERANCE, Engine, SamplerContract, requests, tokens
from tests.rollout.tiny import END, plain_logprobs, tokenizer
from tests.rollout.uniform_reference import uniform


def sampler_of(model: PreTrainedModel, max_rows: int, how: str) -> TorchSampler:
    """how: "" or "threads" for the default decoder; "slots": the model's own forward; "buckets": as on a GPU, but without graphs."""
    sampler = TorchSampler(copy.deepcopy(model), tokenizer(), max_rows=max_rows)
    if how == "slots":
        sampler.decoder_class, sampler.fused = CachedDecoder, None
    if how == "buckets":
        sampler.bucketed, sampler.check_every = True, 5  # no divisor of the tests' max_tokens
    return sampler


@pytest.fixture(params=[*ALL, "qwen2-window/slots", "qwen2-window/buckets", "qwen2-window/threads"])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    family, _, how = request.param.partition("/")
    model, num_threads = tiny_model(family, 0), torch.get_num_threads()
    torch.set_num_threads(2 if how == "threads" else num_threads)
    yield Engine(
        model=model,
        other=tiny_model(family, 1),
        tokenizer=tokenizer(),
        sampler=lambda max_rows: sampler_of(model, max_rows, how),
        uniform=uniform,
        in_order=how != "threads",
    )
    torch.set_num_threads(num_threads)


class TestTorchSampler(SamplerContract):
    pass


@pytest.mark.parametrize("family", ALL)
def test_the_fastest_decoder_that_is_right_is_used(family: str, caplog: pytest.LogCaptureFixture) -> None:
    """A slower decoder is used only where it is needed, with a warning."""
    sampler = TorchSampler(tiny_model(family, 0), tokenizer())
    expected = FusedDecoder if family in FUSED else CachedDecoder if family in CACHED else RecomputingDecoder
    assert sampler.decoder_class is expected
    assert ("by its own forward" in caplog.text) is (family in CACHED)
    assert ("without a cache" in caplog.text) is (family in RECOMPUTED)


def test_no_token_is_run_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """A prompt is processed once for its group, and rows that ended leave at once."""
    sampler, run = TorchSampler(tiny_model("qwen2", 0), tokenizer(), max_rows=9), []
    assert sampler.fused is not None
    states = sampler.fused.states
    monkeypatch.setattr(sampler.fused, "states", lambda tokens, *rest: run.append(tokens) or states(tokens, *rest))
    asked = [SampleRequest((p, *range(3, 8)), r.seeds) for p, r in enumerate(requests(9, 4), 2)]  # of equal lengths
    sampled = sampler.sample(asked, SamplingParams(max_tokens=20, temperature=2.0))
    lengths = [len(c.token_ids) for group in sampled for c in group]
    assert sum(map(len, run)) == sum(len(r.prompt_ids) - 1 for r in asked) + sum(lengths)
    assert len(set(lengths)) > 1  # otherwise no row left early


def test_texts_that_prove_a_delivery_are_run_together_once(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler, run = TorchSampler(tiny_model("mistral-window", 0), tokenizer()), []
    assert sampler.fused is not None
    states = sampler.fused.states
    monkeypatch.setattr(sampler.fused, "states", lambda tokens, *rest: run.append(tokens) or states(tokens, *rest))
    texts = [((5, 9, 2, 11), (4, 3, 8, 30, 2)), ((7,), (6,)), ((3, 8, 12), (1, 2, 3, 4))]
    (scored,) = sampler.probe(texts).values()
    assert len(run) == 1
    for (prompt, completion), logprobs in zip(texts, scored, strict=True):
        plain = plain_logprobs(tiny_model("mistral-window", 0), prompt, completion)
        assert logprobs == pytest.approx(plain.tolist(), abs=TOLERANCE)


def test_what_a_row_draws_after_its_end_is_not_kept() -> None:
    """After the limit of one token, and after the end token. A row without a completion draws too, without effect."""
    batch = Batch(3, 2, torch.device("cpu"))
    numbers = torch.tensor([[0, 1], [11, 12], [5, 5], [0, 0], [1, 1]])
    batch.admit(*numbers)
    for drawn in ([8, END, 8], [END, 8, END]):
        batch.append(torch.tensor(drawn), -torch.ones(3))
        batch.end(torch.tensor(drawn) == END)
    assert batch.position.tolist() == [1, 1, 0]
    done, *_ = batch.release()
    assert done == [Ended(0, 11, [8], [-1.0], stopped=False), Ended(1, 12, [END], [-1.0], stopped=True)]
    assert len(batch) == 0


def test_a_stop_string_that_the_last_token_completes_stops() -> None:
    """Also if the same token reaches the limit: the finish reason is STOP."""
    (asked,), words = requests(2, 1)[1:], tokenizer()
    params = SamplingParams(max_tokens=12, temperature=0)
    sampler = sampler_of(tiny_model("qwen2", 0), 5, "")
    ((free,),) = sampler.sample([asked], params)
    assert free.finish_reason is FinishReason.LENGTH
    stop = words.decode(free.token_ids)[-3:]
    ((stopped,),) = sampler.sample([asked], replace(params, stop_strings=(stop,)))
    assert (stopped.token_ids, stopped.finish_reason) == (free.token_ids, FinishReason.STOP)


@pytest.mark.parametrize("max_tokens", [63, 64])
def test_rows_that_ended_decode_on_without_harm(max_tokens: int) -> None:
    """On a GPU they are decoded until the host checks: their keys must not be written beyond the bucket, here full, into the next row."""
    model, params = tiny_model("qwen2", 0), SamplingParams(max_tokens=max_tokens, temperature=0.7)
    asked = requests(24, 1)
    expected = sampler_of(model, 5, "").sample(asked, params)
    sampled = sampler_of(model, 5, "buckets").sample(asked, params)
    assert tokens(sampled) == tokens(expected)
    assert {c.finish_reason for group in sampled for c in group} == set(FinishReason)
    assert [c.finish_reason for group in sampled for c in group] == [c.finish_reason for g in expected for c in g]


def test_the_trainers_own_module_is_sampled_from_and_left_as_it_was() -> None:
    """Gradient checkpointing disables the cache while it is on, and must be on again when training continues."""
    model, params = copy.deepcopy(tiny_model("qwen2", 0)), SamplingParams(max_tokens=8)
    expected = TorchSampler(model, tokenizer()).sample(requests(4, 3), params)
    enable_gradient_checkpointing(model)
    before = [module.training for module in model.modules()]
    assert any(before)
    sampler = TorchSampler(model, tokenizer())
    assert tokens(sampler.sample(requests(4, 3), params)) == tokens(expected)
    sampler.score((3, 4), (5, 6))
    assert [module.training for module in model.modules()] == before


@pytest.mark.parametrize(("named", "expected"), [(7, {7, END}), ([7, 9], {7, 9, END}), (None, {END})])
def test_end_tokens_are_the_generation_configs_and_the_tokenizers(
    named: int | list[int] | None, expected: set[int]
) -> None:
    """Chat models end a turn with one token and a text with another; each may be named in one place only."""
    model = copy.deepcopy(tiny_model("qwen2", 0))
    model.generation_config.eos_token_id = named
    assert stop_token_ids(model, tokenizer()) == expected


def test_a_model_without_an_end_token_writes_to_the_limit() -> None:
    model, words = copy.deepcopy(tiny_model("qwen2", 0)), tokenizer()
    model.generation_config.eos_token_id = words.eos_token = None
    (group,) = TorchSampler(model, words).sample(requests(1, 8), SamplingParams(max_tokens=30))
    assert {(len(c.token_ids), c.finish_reason) for c in group} == {(30, FinishReason.LENGTH)}


@pytest.mark.timeout(60)
def test_a_thread_that_waits_for_requests_ends_with_the_stream() -> None:
    """One of two threads has nothing left to decode, the other one has: the consumer stops, and both must end."""
    model, num_threads, running = tiny_model("qwen2", 0), torch.get_num_threads(), threading.active_count()
    torch.set_num_threads(2)
    sampler, queue = TorchSampler(model, tokenizer()), RequestQueue()
    for seed, limit in ((0, 1), (1, 4000)):
        queue.put(SampleRequest((5,), (seed,), limit))
    with closing(sampler.stream(queue, SamplingParams(max_tokens=8, stop_strings=("never",)))) as stream:
        assert next(stream)[0] == 0
        time.sleep(0.2)  # the first thread waits for the queue now
    assert threading.active_count() == running
    assert torch.get_num_threads() == 2
    torch.set_num_threads(num_threads)
