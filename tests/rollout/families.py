"""Tiny random models of the families that decode differently."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from tests.rl.models import SIZES
from tests.rollout.tiny import END, PAD

ENDS = [END, 7]  # the first is the tokenizer's EOS, the second is named in the generation config only

# name -> model type of transformers, what differs from SIZES
FUSED: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2-window": ("qwen2", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}),
    "qwen3": ("qwen3", {"head_dim": 16, "attention_bias": True}),
    "mistral-window": ("mistral", {"sliding_window": 4, "head_dim": 32}),  # this one and the next in whole vectors
    "llama": ("llama", {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 4}),
    "smollm3": ("smollm3", {"no_rope_layers": [1, 0], "pad_token_id": PAD, "head_dim": 32}),
}
CACHED: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma": ("gemma", {"head_dim": 16}),
    "gpt2": ("gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}),
    "granite": ("granite", {"logits_scaling": 3.0, "embedding_multiplier": 2.0}),
}
RECOMPUTED: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma2-capped": ("gemma2", {"head_dim": 8, "bos_token_id": 2, "pad_token_id": PAD, "attn_logit_softcapping": 1.0}),
    "mamba": ("mamba", {"state_size": 4, "tie_word_embeddings": False}),
}
ALL = {**FUSED, **CACHED, **RECOMPUTED}


@cache
def tiny_model(family: str, seed: int) -> PreTrainedModel:
    """A shared model that tests must not change; those that do take a copy."""
    model_type, own = ALL[family]
    return model_of(model_type, own, seed)


def model_of(model_type: str, own: dict[str, Any], seed: int = 0) -> PreTrainedModel:
    torch.manual_seed(seed)
    config = AutoConfig.for_model(model_type, **{**SIZES, **own})
    # scaled_dot_product_attention has no soft-cap, and transformers would leave it out
    eager = getattr(config, "attn_logit_softcapping", None) is not None
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager" if eager else None).eval()
    for name, parameter in model.named_parameters():
        if name.endswith(("bias", "norm.weight")):  # initialized to zeros and ones
            torch.nn.init.normal_(parameter, mean=parameter.mean().item(), std=0.1)
    model.generation_config = GenerationConfig(eos_token_id=ENDS, pad_token_id=PAD)
    return model
