"""The decoder's weights are the trainer's: its own memory, or a copy that each delivery refreshes."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, PreTrainedModel

from rollout.engine.decode_weights import DecodeWeight
from rollout.engine.decoders import CachedDecoder
from rollout.engine.fused_decoder import FusedDecoder
from rollout.engine.fused_model import is_llama_like
from rollout.sampler import SampleRequest, SamplingParams
from rollout.torch_sampler import TorchSampler
from tests.rollout.families import FUSED, model_of, tiny_model
from tests.rollout.sampler_contract import TOLERANCE
from tests.rollout.tiny import plain_logprobs, tokenizer

PROMPT, COMPLETION = (5, 9, 2, 11), (4, 3, 8, 30, 2)
BF16_TOLERANCE = 0.25  # 8 bits of logits up to 10, and of the states before them; over 60 texts up to 0.20


def sampler_of(model: PreTrainedModel, dtype: torch.dtype | None = None) -> TorchSampler:
    sampler = TorchSampler(model, tokenizer(), decode_dtype=dtype)
    assert sampler.fused is not None
    return sampler


def error(sampler: TorchSampler, model: PreTrainedModel) -> float:
    scored = torch.tensor(sampler.score(PROMPT, COMPLETION), dtype=torch.float64)
    return (scored - plain_logprobs(model, PROMPT, COMPLETION)).abs().max().item()


def trained(model: PreTrainedModel, optimizer: torch.optim.Optimizer) -> PreTrainedModel:
    """One training step, which changes log-probs by tenths."""
    tokens = torch.tensor([[*PROMPT, *COMPLETION]])
    model(tokens, labels=tokens).loss.backward()
    optimizer.step()
    return model


def adamw(model: PreTrainedModel) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05, fused=True)


@pytest.mark.parametrize("family", FUSED)
def test_an_optimizer_step_takes_effect_without_delivery(family: str) -> None:
    """Also with an optimizer that was made before the sampler. A second sampler does not take the weights from the first."""
    model = copy.deepcopy(tiny_model(family, 0))
    optimizer = adamw(model)
    first = sampler_of(model)
    second = sampler_of(model)
    trained(model, optimizer)
    assert error(first, tiny_model(family, 0)) > 0.05
    assert max(error(first, model), error(second, model)) < TOLERANCE


def test_delivery_of_the_trainers_own_tensors_copies_nothing() -> None:
    model = copy.deepcopy(tiny_model("qwen2", 0))
    sampler = sampler_of(model)
    assert sampler.fused is not None
    memory = {p.untyped_storage().data_ptr() for p in model.parameters()}
    assert all(weight.tensor.untyped_storage().data_ptr() in memory for weight in sampler.fused.weights())
    assert sampler.fused.refresh()  # no address has changed
    assert all(weight.copy is None for weight in sampler.fused.weights())


def test_a_sampled_model_is_saved_loaded_and_copied_like_any_other(tmp_path: Path) -> None:
    """Its parameters share memory: a file must contain each of them, and a copy must share no memory with it."""
    model = copy.deepcopy(tiny_model("qwen2", 0))
    sampler = sampler_of(model)
    model.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "state.pt")
    frozen, loaded = copy.deepcopy(model), AutoModelForCausalLM.from_pretrained(tmp_path)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    expected = dict(tiny_model("qwen2", 0).named_parameters())
    for other in (dict(frozen.named_parameters()), dict(loaded.named_parameters()), state):
        assert all(torch.equal(other[name], value) for name, value in expected.items())
    trained(model, adamw(model))
    assert all(torch.equal(dict(frozen.named_parameters())[name], value) for name, value in expected.items())
    model.load_state_dict(state)
    assert error(sampler, tiny_model("qwen2", 0)) < TOLERANCE


def test_the_next_delivery_finds_weights_at_new_addresses() -> None:
    """load_state_dict(assign=True) and .to() replace the memory of a parameter."""
    model = copy.deepcopy(tiny_model("qwen2", 0))
    sampler = sampler_of(model)
    for parameter in model.parameters():
        parameter.data = 1.1 * parameter.data
    assert error(sampler, model) > 0.01
    sampler.update_weights(model.named_parameters(), version=1)
    assert error(sampler, model) < TOLERANCE


def test_each_delivery_refreshes_a_bfloat16_copy() -> None:
    model = copy.deepcopy(tiny_model("qwen2", 0))
    sampler = sampler_of(model, torch.bfloat16)
    assert TOLERANCE < error(sampler, model) < BF16_TOLERANCE
    trained(model, adamw(model))
    assert error(sampler, model) > 2 * BF16_TOLERANCE
    sampler.update_weights(model.named_parameters(remove_duplicate=False), version=1)
    assert error(sampler, model) < BF16_TOLERANCE
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_packed_weights_are_those_of_the_call_and_released_after_it() -> None:
    """However the call ends; a delivery during the call takes effect at once."""
    model = copy.deepcopy(tiny_model("qwen2", 0))
    sampler = sampler_of(model)
    assert sampler.fused is not None

    def packed() -> list[bool]:
        assert sampler.fused is not None
        return [projection.packed is not None for projection in sampler.fused.projections()]

    requests = [SampleRequest(PROMPT, (seed,)) for seed in range(3)]
    for step in range(2):
        (completion,) = sampler.sample(requests[:1], SamplingParams(max_tokens=8))[0]
        expected = plain_logprobs(model, PROMPT, completion.token_ids)
        assert torch.allclose(torch.tensor(completion.sampler_logprobs).double(), expected, atol=TOLERANCE, rtol=0), (
            step
        )
        trained(model, adamw(model))

    stream = sampler.stream(requests, SamplingParams(max_tokens=8))
    next(stream)
    assert all(packed())
    sampler.update_weights([], version=1)
    assert not any(packed())
    stream = sampler.stream(requests, SamplingParams(max_tokens=8))
    next(stream)
    stream.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert not any(packed())


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_each_delivery_merges_adapters(dtype: torch.dtype | None) -> None:
    """On any linear layer, also if only a part of a fused group has them; a disabled adapter has no effect."""
    model = copy.deepcopy(tiny_model("qwen2", 0))
    targets = ["q_proj", "v_proj", "up_proj", "down_proj", "o_proj"]
    adapted = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=targets))  # pyright: ignore
    bound = TOLERANCE if dtype is None else BF16_TOLERANCE
    sampler = sampler_of(model, dtype)
    optimizer = adamw(model)
    for version in (1, 2):
        trained(model, optimizer)
        assert error(sampler, model) > 2 * BF16_TOLERANCE
        sampler.update_weights(model.named_parameters(remove_duplicate=False), version)
        assert error(sampler, model) < bound
    with adapted.disable_adapter():
        sampler.update_weights([], version=3)
        assert error(sampler, tiny_model("qwen2", 0)) < bound


def test_adapters_on_a_16_bit_base_are_not_merged() -> None:
    """The base is used without a copy; log-probs are those of merged weights within rounding. Norms and adapters are float32."""
    model = copy.deepcopy(tiny_model("qwen3", 0)).bfloat16()
    for name, parameter in model.named_parameters():
        parameter.data = parameter.data.float() if "norm" in name else parameter.data
    targets = ["q_proj", "v_proj", "up_proj", "down_proj", "o_proj"]
    adapted = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=targets))  # pyright: ignore
    autocast = partial(torch.autocast, "cpu", torch.bfloat16)
    sampler = TorchSampler(model, tokenizer(), autocast=autocast)
    assert sampler.fused is not None and sampler.fused.dtype == torch.bfloat16
    memory = {p.untyped_storage().data_ptr() for p in model.parameters()}
    assert all(weight.tensor.untyped_storage().data_ptr() in memory for weight in sampler.fused.weights())

    optimizer = adamw(model)
    for version in (1, 2):
        with autocast():
            trained(model, optimizer)
        merged = copy.deepcopy(adapted).merge_and_unload().float()
        assert error(sampler, merged) > 2 * BF16_TOLERANCE
        before = sampler.fused.layers[0].qkv.adapters.tensors()
        sampler.update_weights(model.named_parameters(remove_duplicate=False), version)
        assert error(sampler, merged) < BF16_TOLERANCE
        assert version == 1 or before == sampler.fused.layers[0].qkv.adapters.tensors()
    with adapted.disable_adapter():
        assert not sampler.fused.refresh()
        assert error(sampler, tiny_model("qwen3", 0)) < BF16_TOLERANCE


@pytest.mark.parametrize(
    ("own", "is_trusted"),
    [
        ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, False),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}}, True),
        ({"hidden_act": "gelu"}, True),
    ],
)
def test_rotary_types_that_a_short_text_cannot_test_are_refused(own: dict, is_trusted: bool) -> None:
    """Dynamic rotary positions change with the length of the text; a trial over a few tokens shows everything else."""
    assert is_llama_like(model_of("llama", own)) is is_trusted


def test_attention_that_changes_with_the_position_is_noticed() -> None:
    """Ministral 3 scales queries by their position from the end of the original context on, without any parameter for it."""
    rope = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}
    model = model_of("ministral3", {"rope_parameters": {**rope, "llama_4_scaling_beta": 2.0}})
    assert is_llama_like(model)
    assert TorchSampler(model, tokenizer()).decoder_class is not FusedDecoder


def test_low_rank_layers_that_are_no_plain_product_are_left_to_the_model() -> None:
    """DoRA initially computes the same as the base, so that a trial would not show it."""
    model = copy.deepcopy(tiny_model("qwen2", 0))
    get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj"], use_dora=True))  # pyright: ignore
    assert not is_llama_like(model)


def test_parameters_that_share_memory_are_one_tensor_only_if_they_adjoin() -> None:
    """Views in the wrong order, or with a gap between them, are copied together."""
    parent, memory = torch.nn.Module(), torch.arange(12.0).view(6, 2)
    for name, rows in (("a", slice(2, 4)), ("b", slice(0, 2)), ("c", slice(4, 6))):
        child = torch.nn.Linear(2, 2)
        child.weight.data = memory[rows]
        parent.add_module(name, child)
    weight = DecodeWeight(parent, ("a", "b", "c"), "weight", torch.float32)
    assert weight.tensor[:, 0].tolist() == [4, 6, 0, 2, 8, 10]


def biased_model() -> PreTrainedModel:
    """A model like Qwen2 whose scores contain a constant 24 x 32 x 2 / 8 = 192, from biases of keys and queries that rotary positions do
    not change: it is exact in 16 bits and cancels in the softmax."""
    rope = {"rope_type": "default", "rope_theta": 1e30}
    sizes = {"hidden_size": 128, "num_attention_heads": 2, "num_key_value_heads": 1, "rope_parameters": rope}
    model = model_of("qwen2", sizes)
    for name, module in model.named_modules():
        if name.endswith(("q_proj", "k_proj")):
            heads_weight, heads_bias = (
                module.weight.data.unflatten(0, (-1, 64)),
                module.bias.data.unflatten(0, (-1, 64)),
            )  # pyright: ignore
            for half in (slice(8, 32), slice(40, 64)):
                heads_weight[:, half] = 0
                heads_bias[:, half] = 1 if name.endswith("q_proj") else 32
    return model


@pytest.mark.parametrize("decode", ["fused", "slots"])
def test_scores_of_large_keys_are_not_rounded(decode: str) -> None:
    """Rounded to 16 bits, scores near 1,536 before scaling are multiples of 8, so wrong by up to 0.5 after it. Log-probs of 40 tokens then
    differ by 0.6 on average, and by 0.09 if only the factors are rounded."""
    model, chance = biased_model(), torch.Generator().manual_seed(0)
    tokens = torch.randint(2, 50, (60,), generator=chance).tolist()
    prompt, completion = tokens[:20], tokens[20:]
    expected = plain_logprobs(model, prompt, completion)
    sampler = sampler_of(model, torch.bfloat16)
    if decode == "slots":
        sampler.model, sampler.fused, sampler.decoder_class = copy.deepcopy(model).bfloat16(), None, CachedDecoder
    scored = torch.tensor(sampler.score(prompt, completion), dtype=torch.float64)
    assert (scored - expected).abs().mean() < 0.2
