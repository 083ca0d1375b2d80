"""--head-dtype float32: the output layer is exact in a model whose other layers compute in bfloat16, in trainer and engine."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rewards.errors import UserError
from rewards.math_answer import MathVerifier
from rl.forward.micro_batch import MicroBatch
from rl.forward.output_head import OutputHead
from rl.policy.families import CAUSAL
from rl.policy.policy import Policy
from rl.policy.precision import round_frozen
from rl.run.build import require_same_dtype
from rl.run.loop import train
from rl.settings.config import RunConfig
from rl.settings.resolve import resolve
from rollout.engine.fused_decoder import FusedDecoder
from rollout.float32_head import Float32Linear, compute_head_in_float32
from rollout.sampler import Text
from rollout.torch_sampler import TorchSampler
from tests.rl.families import FAMILIES, of_family
from tests.rl.test_head import HEADS, assert_same, by_one_pass, by_two_passes, data, make, naively, tensors
from tests.rl.test_loop import final_weights, odd_lengths, options
from tests.rollout.test_vllm_server import MadeUp, client
from tests.rollout.tiny import tokenizer

autocast = partial(torch.autocast, "cpu", torch.bfloat16)
# Float32 rounds a sum of 32 products of size 10 by some 1e-6 each; bfloat16 by 2^-9 of 10, which is 2e-2.
EXACT = 1e-4
# Each has the logits 256.5 and 256, which bfloat16, with its 8 bits, cannot hold, nor 1 + 1/512.
HAND_WORKED = {
    "weight": ([256.0, 0.0], [[1 + 1 / 512, 0.0], [1.0, 0.0]]),
    "states": ([1 + 1 / 512, 1.0], [[256.0, 0.0], [0.0, 256.0]]),
    "logits": ([256.0, 0.5], [[1.0, 1.0], [1.0, 0.0]]),
}
SPACING = 256 * 2**-23  # of float32 numbers there


def with_float32_head(family: str) -> PreTrainedModel:
    model = of_family(family)
    compute_head_in_float32(model)
    return model


@pytest.mark.parametrize("rounded", HAND_WORKED)
def test_log_probs_worked_by_hand(rounded: str) -> None:
    """log p = -log(1 + e^-0.5) = -0.474; where bfloat16 rounds the half away, -log 2 = -0.693. Products of 16-bit numbers are not rounded."""
    hidden, weight = (torch.tensor(numbers) for numbers in HAND_WORKED[rounded])
    states, target = hidden[None], torch.tensor([0])
    exact, plain = OutputHead(weight, dtype=torch.float32), OutputHead(weight)
    layer = nn.Linear(2, 2, bias=False)
    layer.weight = nn.Parameter(weight)
    with autocast():
        found = [exact.score(states, target, 1.0).logprobs, exact.logprobs(states, target, 1.0)]
        found += [Float32Linear.of(layer)(states).log_softmax(-1)[:, 0]]
        of_plain = plain.logprobs(states, target, 1.0).item()
    unrounded = -math.log1p(math.exp(-0.5))
    assert of_plain == pytest.approx(unrounded if rounded == "logits" else -math.log(2), abs=SPACING)
    assert [x.item() for x in found] == pytest.approx([unrounded] * 3, abs=SPACING)


@pytest.mark.parametrize("way", [by_one_pass, by_two_passes])
@pytest.mark.parametrize("kind", HEADS)
def test_gradients_are_those_of_the_float32_formula(kind: str, way) -> None:
    """Under autocast as without it: the states', the weight's and the bias's."""
    torch.manual_seed(0)
    head, (hidden, targets) = make(**HEADS[kind]), data()
    head = replace(head, dtype=torch.float32)
    with autocast():
        loss = way(head, hidden, targets)
    loss.backward()
    expected, gradients = naively(head, hidden, targets)
    assert_same([loss], [expected])
    assert_same([t.grad for t in (hidden, *tensors(head))], gradients)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("family", FAMILIES)
def test_each_familys_own_forward_has_it(family: str) -> None:
    """The logits that an engine reads of a model that it runs by its own forward, and those of the update."""
    model, read = with_float32_head(family), list[Tensor]()
    layer = model.get_output_embeddings()
    assert type(layer) is Float32Linear
    layer.register_forward_hook(lambda module, inputs, logits: read.extend([inputs[0], torch.as_tensor(logits)]))
    with torch.no_grad(), autocast():
        model(torch.arange(2, 9)[None], use_cache=False)
    states, logits = read[-2:]
    bias = 0 if layer.bias is None else layer.bias.double()
    assert (logits - (states.double() @ layer.weight.double().T + bias)).abs().max() < EXACT
    head = CAUSAL.choose_forward(model, "auto", "auto").forward.head(model)
    assert not isinstance(head, OutputHead) or head.dtype == torch.float32


@pytest.mark.parametrize("family", ["Qwen2", "Llama"])
def test_frozen_weights_in_16_bits_leave_the_output_layer_exact(family: str) -> None:
    """With tied embeddings these too: they are its weights."""
    policy = Policy.of(with_float32_head(family), autocast=autocast)
    rounded = copy.deepcopy(policy.model)
    round_frozen(rounded)
    for model in (rounded, policy.frozen_copy(rounded=True).model):
        head = model.get_output_embeddings()
        assert type(head) is Float32Linear and head.weight.dtype == torch.float32
        assert (head.weight is model.get_input_embeddings().weight) == (family == "Qwen2")
        assert {p.dtype for p in model.parameters()} == {torch.float32, torch.bfloat16}


def texts() -> list[Text]:
    """Enough tokens for a mean: 40 texts of 12."""
    drawn = torch.randint(2, 60, (40, 16), generator=torch.Generator().manual_seed(0)).tolist()
    return [(tuple(row[:4]), tuple(row[4:])) for row in drawn]


def mismatch(model: PreTrainedModel) -> float:
    """The mean difference of the engine's log-probs from the trainer's, both in bfloat16."""
    policy = Policy.of(model, autocast=autocast)
    sampler = TorchSampler(model, tokenizer(), decode_dtype=torch.bfloat16, autocast=autocast)
    micro = MicroBatch.of(CAUSAL.probe(texts()))
    with torch.no_grad():
        ours = policy.score(micro, 1.0).logprobs
    (theirs,) = sampler.probe(texts()).values()
    return (ours - torch.tensor([x for row in theirs for x in row])).abs().mean().item()


@torch.no_grad()
def with_quiet_layers(model: PreTrainedModel) -> PreTrainedModel:
    """The model with little rounding in front of its output layer: its layers add a thousandth, and its embeddings have 16 bits."""
    for name, parameter in model.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            parameter.mul_(0.001)
    table = model.get_input_embeddings().weight
    assert isinstance(table, Tensor)
    table.copy_(table.bfloat16())
    return model


@pytest.mark.parametrize("family", ["Qwen2", "Llama", "Gemma"])
def test_sampler_and_trainer_are_closer(family: str) -> None:
    """Decoded by fused layers, and by the model's own forward. What is left is the rounding of the layers."""
    exact, rounded = (mismatch(with_quiet_layers(made(family))) for made in (with_float32_head, of_family))
    assert exact < 2e-4 and exact < rounded / 4


@pytest.mark.parametrize("family", ["Qwen2", "Llama"])
def test_the_engines_head_is_the_trainers_after_each_delivery(family: str) -> None:
    """Its weights are the trainer's own memory, its input is not rounded, and the other matrices are a copy in 16 bits."""
    model, other = with_float32_head(family), with_float32_head(family)
    sampler = TorchSampler(model, tokenizer(), decode_dtype=torch.bfloat16)
    assert sampler.decoder_class is FusedDecoder and sampler.fused is not None
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1 + 0.1 * torch.randn(parameter.shape, generator=generator))
        states = torch.randn(5, model.config.hidden_size, generator=generator)
        for version, source in enumerate((model, other)):
            sampler.update_weights(source.named_parameters(remove_duplicate=False), version)
            expected = source.model.norm(states).double() @ source.lm_head.weight.double().T  # pyright: ignore
            with sampler.fused.packed():
                assert (sampler.fused.logits(states) - expected).abs().max() < EXACT
            assert sampler.fused.head.weight.tensor.data_ptr() == model.lm_head.weight.data_ptr()  # pyright: ignore
    assert sampler.fused.layers[0].qkv.weight.tensor.dtype == torch.bfloat16


def test_an_output_layer_that_is_not_linear_is_refused() -> None:
    model = of_family("Llama")
    model.set_output_embeddings(nn.Sequential(nn.Linear(32, 61)))
    with pytest.raises(
        UserError, match=r"head_dtype is 'float32': the output layer of .* is no plain linear layer \(Seq"
    ):
        compute_head_in_float32(model)


def test_it_is_refused_where_the_whole_run_is_in_float32() -> None:
    for asked in ({"dtype": "float32"}, {"dtype": "auto"}):
        with pytest.raises(
            UserError, match="head_dtype is 'float32': the whole run computes in float32, so it has no effect"
        ):
            resolve(RunConfig(head_dtype="float32", device="cpu", **asked), "cpu")  # pyright: ignore
    for asked in ({"dtype": "bfloat16"}, {"dtype": "float32", "sampler_dtype": "bfloat16"}):
        assert resolve(RunConfig(head_dtype="float32", **asked), "cpu").head_dtype == "float32"  # pyright: ignore


def test_a_servers_output_layer_is_of_the_runs_type(tmp_path: Path) -> None:
    plain, exact = MadeUp(), MadeUp(head_dtype="float32")
    require_same_dtype(client(exact, transfer=tmp_path / "a"), "bfloat16", float32_head=True)
    require_same_dtype(client(plain, transfer=tmp_path / "b"), "bfloat16", float32_head=False)
    require_same_dtype(client(MadeUp(dtype="float32"), transfer=tmp_path / "c"), "float32", float32_head=True)
    with pytest.raises(
        UserError, match=r"head_dtype is 'float32': the output layer of .* in bfloat16; serve .* --head-dtype float32"
    ):
        require_same_dtype(client(plain, exact, transfer=tmp_path / "d"), "bfloat16", float32_head=True)
    with pytest.raises(
        UserError, match=r"head_dtype is 'auto': the output layer of .* in float32; give --head-dtype float32"
    ):
        require_same_dtype(client(plain, exact, transfer=tmp_path / "e"), "bfloat16", float32_head=False)


def test_a_run_with_it_resumes_to_the_bit(
    model: Path, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MathVerifier, "verify_batch", odd_lengths)
    asked = {"dtype": "bfloat16", "head_dtype": "float32", "save_every": 2}
    whole = train(options(model, digits, tmp_path / "whole", **asked))
    parted = train(options(model, digits, tmp_path / "parted", num_steps=2, **asked))
    train(options(model, digits, parted, resume=True, **asked))
    ours, theirs = final_weights(parted, 3), final_weights(whole, 3)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
