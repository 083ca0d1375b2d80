"""Adapters on a base in 4 bits: what is trained, delivered and merged is the rounded base's, not the exact one's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from rewards.errors import UserError
from rewards.math_answer import MathVerifier
from rl.capacity.cost import ModelCost
from rl.forward.forward import plain_forward
from rl.policy.load import load_pretrained
from rl.policy.lora import LoraPolicy, add_adapters
from rl.policy.merge import merge_adapters, merged_tensors
from rl.policy.policy import Policy
from rl.run.loop import train
from rl.run.tiny import tiny_tokenizer
from rl.settings.config import RunConfig
from rollout.rounding import in_float32
from tests.rl.models import make, random_batch
from tests.rl.test_deliver import move
from tests.rl.test_loop import final_weights, odd_lengths, options

pytest.importorskip("bitsandbytes", reason="pip install 'plumbline-rl[qlora]'")
CPU = torch.device("cpu")
(MICRO,) = random_batch().micro_batches(10_000)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make("qwen2").save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def quantized(folder: Path) -> LoraPolicy:
    model, _ = load_pretrained(folder, CPU, nf4=torch.float32)
    policy = LoraPolicy.of(add_adapters(model, rank=4, alpha=8.0, targets=("all-linear",), seed=0))
    move(policy, 0.02)
    return policy


def dense_twin(folder: Path, policy: LoraPolicy) -> Policy:
    """A plain model with the merged weights."""
    model, _ = load_pretrained(folder, CPU)
    with torch.no_grad():
        for name, tensor in merged_tensors(policy.model):
            model.get_parameter(name).copy_(tensor)
    return Policy.of(model)


def test_in_float32_layers_in_4_bits_round_nothing(folder: Path) -> None:
    """Though they were loaded to multiply in bfloat16: else no other way of computing could be held against the model."""
    exact, rounds = (load_pretrained(folder, CPU, nf4=dtype)[0] for dtype in (torch.float32, torch.bfloat16))
    with torch.no_grad():
        with in_float32(rounds):
            found = plain_forward.score(rounds, MICRO, 1.0).logprobs
        assert torch.equal(found, plain_forward.score(exact, MICRO, 1.0).logprobs)
        assert not torch.equal(found, plain_forward.score(rounds, MICRO, 1.0).logprobs)


def test_scores_and_gradients_are_those_of_the_merged_weights(folder: Path) -> None:
    """dL/dB = scale dL/dW A^T and dL/dA = scale B^T dL/dW, with dL/dW of the plain model."""
    policy = quantized(folder)
    twin = dense_twin(folder, policy)
    losses = []
    for scorer in (policy, twin):
        states = scorer.hidden_states(MICRO)
        loss, scores = scorer.head.loss(
            states, MICRO.targets, 1.0, lambda s, part: (s.logprobs**2).sum(), token_level=True
        )
        loss.backward()
        losses.append(scores.logprobs.detach())
    assert (losses[0] - losses[1]).abs().max() < 1e-4
    layer, plain = (p.model.get_submodule("model.layers.1.mlp.up_proj") for p in (policy, twin))
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight  # pyright: ignore
    whole = plain.weight.grad
    assert (b.grad - 2 * whole @ a.T).norm() < 1e-4 * b.grad.norm()  # float32 sums in another order
    assert (a.grad - 2 * b.T @ whole).norm() < 1e-4 * a.grad.norm()


def test_the_merged_model_stands_on_the_rounded_base(folder: Path, tmp_path: Path) -> None:
    """The exact base with the same adapters is another model: 4 bits have 16 values."""
    policy = quantized(folder)
    policy.save(tmp_path / "saved")
    tiny_tokenizer().save_pretrained(tmp_path / "saved")
    merge_adapters(tmp_path / "saved", tmp_path / "merged")
    tokens = torch.arange(1, 12)[None]
    with torch.no_grad():
        expected = policy.model(tokens).logits
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
        assert (merged(tokens).logits - expected).abs().max() < 1e-4
        (tmp_path / "saved" / "base-is-nf4").unlink()
        merge_adapters(tmp_path / "saved", tmp_path / "wrong")
        wrong = AutoModelForCausalLM.from_pretrained(tmp_path / "wrong").eval()
        assert (wrong(tokens).logits - expected).abs().max() > 1e-2


def test_parameters_are_counted_as_what_they_stand_for(folder: Path) -> None:
    assert ModelCost.of(load_pretrained(folder, CPU, nf4=torch.float32)[0]) == ModelCost.of(make("qwen2"))


def test_a_run_trains_saves_and_resumes(
    model: Path, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The base stays the bits it was: only adapters are saved, and the resumed run ends where the whole one does."""
    monkeypatch.setattr(MathVerifier, "verify_batch", odd_lengths)
    asked = {"lora_rank": 4, "lora_base": "nf4", "save_every": 2}
    whole = train(options(model, digits, tmp_path / "whole", **asked))
    parted = train(options(model, digits, tmp_path / "parted", num_steps=2, **asked))
    train(options(model, digits, parted, resume=True, **asked))
    ours, theirs = final_weights(parted, 3), final_weights(whole, 3)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert {name.rpartition("/")[0] for name in ours} == {"adapter_model.safetensors"}


def test_what_it_needs_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"lora_base is 'nf4': there are no adapters; set lora_rank"):
        RunConfig(lora_base="nf4")
    monkeypatch.setattr("rl.policy.load.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs bitsandbytes, which is not installed; pip install"):
        load_pretrained(folder, CPU, nf4=torch.float32)


def test_a_layer_in_four_bits_has_a_gradient_after_it_was_evaluated(folder: Path) -> None:
    """bitsandbytes packs weights for CPUs at the first call without gradient, and then has none."""
    policy = quantized(folder)
    with torch.no_grad():
        policy.model(torch.arange(1, 12)[None])
    policy.model(torch.arange(1, 12)[None]).logits.sum().backward()
    assert all(p.grad is not None for p in policy.trainable_parameters())
