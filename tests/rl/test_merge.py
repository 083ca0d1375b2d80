"""Adapters that somebody else has trained: the merged model has their logits, or there is none."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftConfig, PeftModel, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from rewards.errors import UserError
from rl.policy.merge import merge_adapters
from rl.run.tiny import tiny_tokenizer
from tests.rl.models import SIZES

TOKENS = torch.arange(1, 40)[None]


def lora(*targets: str, **settings: Any) -> LoraConfig:
    return LoraConfig(r=4, lora_alpha=8, task_type="CAUSAL_LM", target_modules=list(targets), **settings)


MERGED = {
    "plain": lora("q_proj", "down_proj"),
    "rank-stabilised": lora("q_proj", "down_proj", use_rslora=True),
    "dora": lora("q_proj", "down_proj", use_dora=True),
    "bias": lora("q_proj", "down_proj", bias="all"),
    "lora-bias": lora("q_proj", lora_bias=True),  # whose layer has a bias to add it to
    "output-layer": lora("q_proj", "lm_head"),
    "embedding": lora("q_proj", "embed_tokens"),
    "both-embeddings": lora("embed_tokens", "lm_head"),
    "output-layer-saved": lora("q_proj", modules_to_save=["lm_head"]),
    "both-saved": lora("q_proj", modules_to_save=["embed_tokens", "lm_head"]),
    "tokens": lora("q_proj", trainable_token_indices=[1, 2]),
    "ia3": IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"], task_type="CAUSAL_LM"),
}
REFUSED = {
    "lora-bias-without-bias": (lora("down_proj", lora_bias=True), "peft cannot merge its adapters .*no bias"),
    "prompt-tuning": (PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4), "PROMPT_TUNING.*cannot be merged into weights"),
    "prefix-tuning": (PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4), "PREFIX_TUNING.*cannot be merged into weights"),
}  # fmt: skip


def base(folder: Path, *, tied: bool, dtype: torch.dtype = torch.float32) -> str:
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer()
    sizes = {**SIZES, "vocab_size": len(tokenizer), "initializer_range": 0.1, "tie_word_embeddings": tied}
    Qwen2ForCausalLM(Qwen2Config(**sizes)).to(dtype).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def trained_adapters(source: str, config: PeftConfig, folder: Path) -> torch.Tensor:
    """Saves adapters of random weights. -> the adapted model's logits, by peft alone."""
    torch.manual_seed(1)
    with warnings.catch_warnings(action="ignore"):  # peft's, of embeddings that are tied
        adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(source), config)
        with torch.no_grad():
            for p in adapted.parameters():
                if p.requires_grad:
                    p.add_(0.2 * torch.randn_like(p))
        adapted.save_pretrained(str(folder))
        return logits(PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(source), str(folder)))


@torch.no_grad()
def logits(model: PreTrainedModel | PeftModel) -> torch.Tensor:
    return model.eval()(input_ids=TOKENS).logits


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("kind", MERGED)
def test_the_merged_model_has_the_logits_of_the_adapted_one(kind: str, tied: bool, tmp_path: Path) -> None:
    source = base(tmp_path / "base", tied=tied)
    expected = trained_adapters(source, MERGED[kind], tmp_path / "adapters")
    merged = AutoModelForCausalLM.from_pretrained(merge_adapters(tmp_path / "adapters", tmp_path / "out"))
    assert (expected - logits(AutoModelForCausalLM.from_pretrained(source))).abs().max() > 0.01
    assert (logits(merged) - expected).abs().max() < 1e-5 * expected.abs().max()  # float32 in another order
    ends_tied = tied and kind not in (
        "output-layer",
        "embedding",
        "output-layer-saved",
        "both-embeddings",
        "both-saved",
    )
    assert merged.config.tie_word_embeddings == ends_tied


@pytest.mark.parametrize("kind", REFUSED)
def test_what_no_plain_model_can_have_is_refused(kind: str, tmp_path: Path) -> None:
    config, message = REFUSED[kind]
    trained_adapters(base(tmp_path / "base", tied=False), config, tmp_path / "adapters")
    with pytest.raises(UserError, match=message):
        merge_adapters(tmp_path / "adapters", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapters", "base"]


def test_a_merge_that_makes_another_model_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if peft left a twentieth of the adapters out."""
    trained_adapters(base(tmp_path / "base", tied=False), MERGED["plain"], tmp_path / "adapters")
    from peft.tuners.lora.layer import Linear

    inner = Linear.get_delta_weight
    monkeypatch.setattr(Linear, "get_delta_weight", lambda self, adapter: 0.95 * inner(self, adapter))
    with pytest.raises(UserError, match="the logits of peft's merge differ by"):
        merge_adapters(tmp_path / "adapters", tmp_path / "out")


def test_adapters_that_do_not_fit_their_base_are_told(tmp_path: Path) -> None:
    """Weights that are not there would be random, or zero."""
    source = base(tmp_path / "base", tied=False)
    trained_adapters(source, MERGED["plain"], tmp_path / "adapters")
    weights = load_file(tmp_path / "adapters" / "adapter_model.safetensors")
    first = next(iter(weights))
    for changed in (
        {k: v for k, v in weights.items() if k != first},
        {**weights, first: weights[first][:, :5].clone()},
    ):
        save_file(changed, tmp_path / "adapters" / "adapter_model.safetensors")
        with pytest.raises(UserError, match="adapters do not fit"):
            merge_adapters(tmp_path / "adapters", tmp_path / "out")
    (tmp_path / "adapters" / "adapter_model.safetensors").write_bytes(b"cut short")
    with pytest.raises(UserError, match="adapters cannot be read"):
        merge_adapters(tmp_path / "adapters", tmp_path / "out")
    (tmp_path / "adapters" / "adapter_config.json").write_text("{")
    with pytest.raises(UserError, match=r"adapter_config.json cannot be read"):
        merge_adapters(tmp_path / "adapters", tmp_path / "out")


def test_a_base_in_16_bits_gives_a_model_in_16_bits_with_its_generation_settings(tmp_path: Path) -> None:
    """Settings that transformers loads and refuses to save."""
    source = base(tmp_path / "base", tied=True, dtype=torch.bfloat16)
    settings = {"do_sample": False, "temperature": 0.6}
    (Path(source) / "generation_config.json").write_text(json.dumps(settings))
    trained_adapters(source, MERGED["plain"], tmp_path / "adapters")
    out = merge_adapters(tmp_path / "adapters", tmp_path / "out")
    assert {t.dtype for t in load_file(out / "model.safetensors").values()} == {torch.bfloat16}
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"
    assert settings.items() <= json.loads((out / "generation_config.json").read_text()).items()
