"""A tiny random model of every family that is tried, and docs/families.md, the table of the path that each takes.

python -m tests.rl.families    writes the table anew
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from rl.forward.choose_forward import choose_forward
from rl.forward.forward import packed_forward
from tests.rl.models import SIZES

TABLE = Path(__file__).parents[2] / "docs" / "families.md"

EXPERTS = {"moe_intermediate_size": 16, "num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2}
GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
MIXED = {"layer_types": ["linear_attention", "full_attention"], "head_dim": 8}
LINEAR = {
    **MIXED,
    **{f"linear_{of}_head_dim": 8 for of in ("key", "value")},
    **{f"linear_num_{of}_heads": 2 for of in ("key", "value")},
}
MAMBA = {"mamba_d_state": 8, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_ssm": 32, "mamba_chunk_size": 4}
# Every name that transformers has for it: none may ever act.
DROPOUT = dict.fromkeys(
    (
        *("activation_dropout", "attention_dropout", "attn_pdrop", "dropout", "embd_dropout", "embd_pdrop"),
        *("hidden_dropout", "hidden_dropout_prob", "layerdrop", "resid_dropout", "resid_pdrop"),
    ),
    0.1,
)

# name -> model type of transformers, what differs from SIZES
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "Qwen2": ("qwen2", {"tie_word_embeddings": True}),
    "Qwen3": ("qwen3", {"head_dim": 16}),
    "Llama": ("llama", {}),
    "Mistral, window": ("mistral", {"sliding_window": 4}),
    "Gemma": ("gemma", {"head_dim": 16}),
    "Gemma 2": ("gemma2", {"head_dim": 8, "sliding_window": 4, "attn_logit_softcapping": 2.0}),
    "Gemma 3": ("gemma3_text", {"head_dim": 8, "sliding_window": 4}),
    "Phi-3": ("phi3", {"pad_token_id": 0, "sliding_window": 4}),
    "Phi": ("phi", {}),
    "GPT-2": ("gpt2", GPT),
    "GPT-NeoX": ("gpt_neox", {}),
    "OPT": ("opt", {"init_std": 0.3, "word_embed_proj_dim": 32, "ffn_dim": 48, "pad_token_id": 0}),
    "StarCoder2": ("starcoder2", {"sliding_window": 4}),
    "OLMo 2": ("olmo2", {}),
    "OLMo 3": ("olmo3", {"sliding_window": 4}),
    "SmolLM3": ("smollm3", {"pad_token_id": 0}),
    "Cohere 2": ("cohere2", {"sliding_window": 4, "logit_scale": 0.5}),
    "Granite": ("granite", {"logits_scaling": 3.0, "embedding_multiplier": 2.0}),
    "GLM-4": ("glm4", {"head_dim": 8, "pad_token_id": 0}),
    "Exaone 4": ("exaone4", {"sliding_window": 4}),
    "Apertus": ("apertus", {"pad_token_id": 0}),
    "gpt-oss": ("gpt_oss", {**EXPERTS, "head_dim": 8, "sliding_window": 4}),
    "Mixtral": ("mixtral", EXPERTS),
    "Qwen3-MoE": ("qwen3_moe", {**EXPERTS, "head_dim": 8}),
    "OLMoE": ("olmoe", EXPERTS),
    "DeepSeek-V3": (
        "deepseek_v3",
        {
            **{**EXPERTS, "n_routed_experts": 4, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1},
            **{"kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8},
        },
    ),
    "Falcon": ("falcon", {}),
    "BLOOM": ("bloom", {}),
    "BioGPT": ("biogpt", {"pad_token_id": 0}),
    "XGLM": (
        "xglm",
        {"d_model": 32, "ffn_dim": 48, "num_layers": 2, "attention_heads": 4, "init_std": 0.3, "pad_token_id": 0},
    ),
    "Doge": ("doge", {"head_dim": 8}),
    "Nemotron": ("nemotron", {}),
    "Qwen3-Next": ("qwen3_next", {**EXPERTS, **LINEAR, "shared_expert_intermediate_size": 16}),
    "Qwen3.5": ("qwen3_5_text", LINEAR),
    "LFM2": ("lfm2", {"layer_types": ["conv", "full_attention"], "pad_token_id": 0}),
    "Mamba": ("mamba", {"state_size": 4}),
    "Mamba-2": ("mamba2", {"state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 1, "chunk_size": 4}),
    "Falcon-H1": ("falcon_h1", MAMBA),
    "Jamba": ("jamba", {**EXPERTS, "attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 4}),
    "RWKV": ("rwkv", {"attention_hidden_size": 32, "context_length": 128}),
}


def of_family(family: str) -> PreTrainedModel:
    torch.manual_seed(0)
    model_type, own = FAMILIES[family]
    config = AutoConfig.for_model(model_type, **{**SIZES, **DROPOUT, **own})
    # scaled_dot_product_attention has no cap on scores: transformers would leave it out
    eager = getattr(config, "attn_logit_softcapping", None) is not None
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager" if eager else None).eval()


def table() -> str:
    """The page, by trying every family."""
    packed = [name for name in FAMILIES if choose_forward(of_family(name)) is packed_forward]
    padded = [name for name in FAMILIES if name not in packed]
    rows = [f"| {name} | packed: no padding, each prompt once |" for name in packed]
    rows += [f"| {name} | padded on the right |" for name in padded]
    return PAGE.format(rows="\n".join(rows))


PAGE = """# Which model uses which forward

The update scores completions in one packed row that contains each prompt once ([rl/forward/forward.py](../rl/forward/forward.py)). All layers
except attention are the model's own; attention is replaced through the attention interface of transformers. When a model is loaded, the packed
forward is tried on a short example, also with narrow sliding windows, and used if it reproduces the model's own log-probs. Other models (with recurrent
layers, convolutions, or position biases and masks computed inside attention) use the padded forward: whole sequences, padded on the right, where
causal models do not see the padding. A warning in the log then names the reason.

`python -m tests.rl.families` writes this table from tiny random models. Tests compare the log-probs, entropies and all gradients of each family with those
of sequences run separately: with all weights trained or LoRA adapters, with gradient checkpointing and without.

| family | forward |
| --- | --- |
{rows}

Packed attention with sinks (gpt-oss) or capped scores (Gemma 2) is computed explicitly, with all scores in memory. Experts are routed token by token,
so packing does not change them. A rotary scale that depends on the longest position of a batch (dynamic NTK, LongRoPE) does so in transformers
too: with such a model log-probs depend on which sequences share a micro-batch.
"""


if __name__ == "__main__":
    TABLE.write_text(table(), encoding="utf-8")
