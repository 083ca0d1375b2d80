"""The embedded engine keeps the contract on every kind of attention, and takes the cache wherever it is right."""

from __future__ import annotations

import copy
from functools import cache

import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GenerationConfig,
    MambaConfig,
    MambaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from rl.forward import enable_gradient_checkpointing
from rollout.records import FinishReason
from rollout.sampler import SamplingParams
from rollout.torch_sampler import CachedDecoder, RecomputingDecoder, TorchSampler, stop_token_ids
from tests.rl.models import FAMILIES, SIZES, VOCAB
from tests.rollout.sampler_contract import Engine, SamplerContract, requests, tokens
from tests.rollout.tiny import END, PAD, tokenizer
from tests.rollout.uniform_reference import uniform

ENDS = [END, 7]  # the tokenizer knows the first, only the generation config the second


def qwen2_with_a_window_above_its_first_layer() -> PreTrainedModel:
    return Qwen2ForCausalLM(Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=5, max_window_layers=1))


def gemma2_with_capped_scores() -> PreTrainedModel:
    sizes = {**SIZES, "bos_token_id": 2, "pad_token_id": PAD}
    return Gemma2ForCausalLM(Gemma2Config(**sizes, head_dim=8, attn_implementation="eager", attn_logit_softcapping=1.0))


def mamba() -> PreTrainedModel:
    sizes = {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}
    return MambaForCausalLM(MambaConfig(**sizes, initializer_range=0.3, tie_word_embeddings=False))


CACHED = {**FAMILIES, "qwen2-window": qwen2_with_a_window_above_its_first_layer}
RECOMPUTED = {"gemma2-capped": gemma2_with_capped_scores, "mamba": mamba}


@cache
def tiny_model(family: str, seed: int) -> PreTrainedModel:
    torch.manual_seed(seed)
    model = {**CACHED, **RECOMPUTED}[family]().eval()
    model.generation_config = GenerationConfig(eos_token_id=ENDS, pad_token_id=PAD)
    return model


@pytest.fixture(params=[*CACHED, *RECOMPUTED])
def engine(request: pytest.FixtureRequest) -> Engine:
    model, words = tiny_model(request.param, 0), tokenizer()
    return Engine(
        model=model,
        other=tiny_model(request.param, 1),
        tokenizer=words,
        sampler=lambda max_rows: TorchSampler(copy.deepcopy(model), words, max_rows=max_rows),
        uniform=uniform,
    )


class TestTorchSampler(SamplerContract):
    pass


@pytest.mark.parametrize("family", [*CACHED, *RECOMPUTED])
def test_a_cache_is_used_wherever_it_is_right(family: str, caplog: pytest.LogCaptureFixture) -> None:
    """Without it decoding is many times slower, so that must be needed, and said."""
    sampler = TorchSampler(tiny_model(family, 0), tokenizer())
    assert sampler.decoder_class is (CachedDecoder if family in CACHED else RecomputingDecoder)
    assert ("without a cache" in caplog.text) is (family in RECOMPUTED)


def test_no_token_is_run_twice() -> None:
    """What makes decoding fast: a prompt runs once for its group, and rows that ended leave at once."""
    model = copy.deepcopy(tiny_model("qwen2", 0))
    sampler, lengths = TorchSampler(model, tokenizer(), max_rows=9), []
    model.register_forward_pre_hook(lambda *call: lengths.append(call[2]["input_ids"].shape), with_kwargs=True)
    asked = [r for r in requests(12, 4) if len(r.prompt_ids) > 2]  # the last prompt token is left to the first step
    sampled = sampler.sample(asked, SamplingParams(max_tokens=20, temperature=2.0))
    written = sum(len(c.token_ids) for group in sampled for c in group)
    assert sum(rows for rows, width in lengths if width == 1) == written
    assert sum(rows for rows, width in lengths if width > 1) == len(asked)
    assert len({len(c.token_ids) for group in sampled for c in group}) > 1  # else nothing left early


def test_the_trainers_own_module_is_sampled_from_and_left_as_it_was() -> None:
    """Gradient checkpointing drops the cache while it is on, and must be on again when training goes on."""
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
    """Chat models end a turn with one token and a text with another; either may be named in one place only."""
    model = copy.deepcopy(tiny_model("qwen2", 0))
    model.generation_config.eos_token_id = named
    assert stop_token_ids(model, tokenizer()) == expected


def test_a_model_without_an_end_token_writes_to_the_limit() -> None:
    model, words = copy.deepcopy(tiny_model("qwen2", 0)), tokenizer()
    model.generation_config.eos_token_id = words.eos_token = None
    (group,) = TorchSampler(model, words).sample(requests(1, 8), SamplingParams(max_tokens=30))
    assert {(len(c.token_ids), c.finish_reason) for c in group} == {(30, FinishReason.LENGTH)}
