"""Frozen weights in 16 bits: the same bits as a float32 base under autocast, family by family."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from rewards.errors import UserError
from rewards.math_answer import MathVerifier
from rl.forward.choose_forward import ForwardChoice
from rl.forward.forward import padded_forward
from rl.policy.families import CAUSAL
from rl.policy.load import load_pretrained
from rl.policy.lora import LoraPolicy, add_adapters
from rl.policy.merge import load_merged
from rl.policy.policy import Policy
from rl.policy.precision import round_frozen, roundable
from rl.run.loop import train
from rl.run.tiny import tiny_tokenizer
from rl.settings.config import RunConfig
from rl.settings.resolve import resolve
from tests.rl.families import FAMILIES, of_family
from tests.rl.models import random_batch
from tests.rl.test_loop import final_weights, odd_lengths, options

autocast = partial(torch.autocast, "cpu", torch.bfloat16)
(MICRO,) = random_batch().micro_batches(10_000)
# peft says so of every fused mixture of experts, and does target what it says it does not.
pytestmark = pytest.mark.filterwarnings("ignore:The following .*_pattern keys did not match:RuntimeWarning")
RECURRENT = ("Mamba", "Mamba-2", "Falcon-H1")  # peft refuses adapters of some of their layers

PADDED = replace(CAUSAL, choose_forward=lambda *_: ForwardChoice(padded_forward))


def stored_in_16_bits(family: str) -> PreTrainedModel:
    model = of_family(family)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16())
    return model


def adapted(model: PreTrainedModel) -> LoraPolicy:
    policy = LoraPolicy.of(add_adapters(model, rank=4, alpha=6.0, targets=("all-linear",), seed=0), autocast=autocast)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in policy.trainable_parameters():
            parameter.copy_(0.1 * torch.randn_like(parameter))
    return policy


def scored(policy: Policy) -> list[Tensor]:
    """Log-probs, entropies, and the gradients of what is trained."""
    scores = policy.score(MICRO, 0.7)
    if policy.trainable_parameters():
        (MICRO.weights * (MICRO.advantages * scores.logprobs + 0.3 * scores.entropies)).sum().backward()
    found = [p.grad for p in policy.trainable_parameters() if p.grad is not None]
    return [scores.logprobs.detach(), scores.entropies.detach(), *found]


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_and_gradients_are_those_of_a_base_in_float32(family: str) -> None:
    """Bit for bit. What is in 16 bits is most of every model but experts, whose stacks are no linear layers."""
    exact = stored_in_16_bits(family)
    rounded = copy.deepcopy(exact)
    round_frozen(rounded)
    policies = [
        # Mamba itself rounds the states that its output layer reads, where that is in 16 bits; a reference is run as its policy.
        Policy.of(m.requires_grad_(False), autocast=autocast, family=PADDED) if family in RECURRENT else adapted(m)
        for m in (exact, rounded)
    ]
    for ours, theirs in zip(*map(scored, policies), strict=True):
        assert torch.equal(ours, theirs)
    kinds = {p.dtype for n, p in policies[1].model.named_parameters() if ".lora_" not in n}
    assert torch.bfloat16 in kinds


def test_a_linear_layer_is_rounded_anyway_and_a_table_is_not() -> None:
    """Weights with all bits of float32: rounding layers and the head changes nothing, rounding the embeddings does."""
    model = of_family("Llama")
    layers = copy.deepcopy(model)
    tables = {m.weight for m in layers.modules() if type(m) is torch.nn.Embedding}
    for parameter in roundable(layers):
        if parameter not in tables:
            parameter.data = parameter.data.bfloat16()
    all_of_it = copy.deepcopy(model)
    round_frozen(all_of_it)
    expected, same, other = (
        scored(Policy.of(m.requires_grad_(False), autocast=autocast)) for m in (model, layers, all_of_it)
    )
    assert torch.equal(expected[0], same[0]) and not torch.equal(expected[0], other[0])
    hidden = all_of_it.get_input_embeddings()(torch.arange(3))
    assert hidden.dtype == torch.float32  # the sum of the layers' outputs stays in float32


def test_a_tied_head_is_the_table_still() -> None:
    for rounded in (stored_in_16_bits("Qwen2"), Policy.of(stored_in_16_bits("Qwen2")).frozen_copy(rounded=True).model):
        if rounded.dtype == torch.float32:
            round_frozen(rounded)
        assert rounded.get_output_embeddings().weight is rounded.get_input_embeddings().weight  # pyright: ignore
        assert rounded.get_output_embeddings().weight.dtype == torch.bfloat16  # pyright: ignore


@pytest.mark.parametrize("family", ["Qwen2", "Llama", "GPT-2", "Gemma 3", "Qwen3-MoE"])
def test_a_reference_in_16_bits_is_the_policy_as_it_was(family: str) -> None:
    """Of a checkpoint in 16 bits the very scores; after a refresh those of the policy but for the rounding of its weights."""
    policy = Policy.of(stored_in_16_bits(family), autocast=autocast)
    reference = policy.frozen_copy(rounded=True)
    assert not any(p.requires_grad for p in reference.model.parameters())
    with torch.no_grad():
        expected = policy.score(MICRO, 1.0).logprobs
        assert torch.equal(reference.score(MICRO, 1.0).logprobs, expected)
        torch.manual_seed(1)
        for parameter in policy.model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        moved = policy.score(MICRO, 1.0).logprobs
        assert torch.equal(reference.score(MICRO, 1.0).logprobs, expected)
        refreshed = policy.copy_weights_to(reference)
        assert refreshed is reference
        # Rounding of a table moves scores by as much as other roundings of bfloat16, 2^-8 of logits near 10; the step is far more.
        assert (refreshed.score(MICRO, 1.0).logprobs - moved).abs().mean() < 0.2 < (moved - expected).abs().mean()
        assert all(
            torch.equal(t, p.to(t.dtype)) for t, p in zip(refreshed.model.parameters(), policy.model.parameters())
        )


def test_what_is_merged_and_delivered_is_the_base_with_its_adapters(tmp_path: Path) -> None:
    model = stored_in_16_bits("Qwen2")
    model.save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "saved")
    policies = []
    for rounded in (False, True):
        loaded, _ = load_pretrained(tmp_path / "base", torch.device("cpu"), rounded=rounded)
        policies.append(adapted(loaded))
    exact, rounded = (dict(p.named_tensors(merged=True)) for p in policies)
    assert exact.keys() == rounded.keys() and all(torch.equal(exact[name], rounded[name].float()) for name in exact)
    policies[1].save(tmp_path / "saved")
    merged = dict(load_merged(tmp_path / "saved")[0].named_parameters(remove_duplicate=False))
    assert all(torch.equal(merged[name], exact[name]) for name in merged)


def test_a_run_on_a_base_in_16_bits_trains_saves_and_resumes(
    model: Path, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also with a reference that is refreshed, and against a base in float32 whose embeddings are representable: the same bits."""
    monkeypatch.setattr(MathVerifier, "verify_batch", odd_lengths)
    loaded, tokenizer = load_pretrained(model, torch.device("cpu"))
    with torch.no_grad():
        for parameter in loaded.parameters():
            parameter.copy_(parameter.bfloat16())
    loaded.save_pretrained(tmp_path / "stored")
    tokenizer.save_pretrained(tmp_path / "stored")
    asked = {
        "lora_rank": 4,
        "lora_base": "bfloat16",
        "dtype": "bfloat16",
        "save_every": 2,
        "algorithm": "grpo-iterative",
    }
    whole = train(options(tmp_path / "stored", digits, tmp_path / "whole", **asked))
    parted = train(options(tmp_path / "stored", digits, tmp_path / "parted", num_steps=2, **asked))
    train(options(tmp_path / "stored", digits, parted, resume=True, **asked))
    ours, theirs = final_weights(parted, 3), final_weights(whole, 3)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"lora_base": "bfloat16"}, "lora_base is 'bfloat16': there are no adapters; set lora_rank"),
        (
            {"lora_rank": 4, "lora_base": "bfloat16"},
            "lora_base is 'bfloat16': the run computes in float32.*--dtype bfloat16",
        ),
        (
            {"reference_dtype": "bfloat16"},
            "reference_dtype is 'bfloat16': the run computes in float32.*--dtype bfloat16",
        ),
        (
            {"lora_rank": 4, "reference_dtype": "float32"},
            "reference_dtype is 'float32': with lora_rank .* use lora_base",
        ),
    ],
)
def test_what_cannot_be_is_said(asked: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=said):
        RunConfig(**{"dtype": "float32", **asked})  # pyright: ignore[reportArgumentType]


def test_auto_is_16_bits_only_where_a_gpu_computes_in_them() -> None:
    for dtype, device, expected in (
        ("bfloat16", "cuda", "bfloat16"),
        ("float32", "cuda", "float32"),
        ("bfloat16", "cpu", "float32"),
    ):
        assert resolve(RunConfig(dtype=dtype, lora_rank=4), device).lora_base == expected  # pyright: ignore
        assert resolve(RunConfig(dtype=dtype), device).reference_dtype == expected  # pyright: ignore
        assert resolve(RunConfig(dtype=dtype), device).lora_base == "float32"  # pyright: ignore
    assert resolve(RunConfig(dtype="bfloat16"), "cuda", shards=True).reference_dtype == "float32"
