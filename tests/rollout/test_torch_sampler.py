"""The embedded engine keeps the contract on every kind of attention, and takes the cache wherever it is right."""

from __future__ import annotations

import copy
from collections.abc import Callable
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
from rollout.sampler import SamplingParams
from rollout.torch_sampler import CachedDecoder, RecomputingDecoder, TorchSampler, stop_token_ids
from tests.rl.models import FAMILIES, SIZES, VOCAB, make
from tests.rollout.sampler_contract import Engine, SamplerContract, requests, tokens
from tests.rollout.tiny import END, PAD, tokenizer
from tests.rollout.uniform_reference import uniform

ENDS = [END, 7]  # the tokenizer knows the first, only the generation config the second


def qwen2_with_a_window_above_its_first_layer() -> PreTrainedModel:
    return Qwen2ForCausalLM(Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=5, max_window_layers=1))


def gemma2_with_capped_scores() -> PreTrainedModel:
    sizes = {**SIZES, "bos_token_id": 2, "pad_token_id": PAD}
    return Gemma2ForCausalLM(Gemma2Config(**sizes, head_dim=8, attn_logit_softcapping=1.0))


def mamba() -> PreTrainedModel:
    return MambaForCausalLM(MambaConfig(vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, state_size=4))


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
