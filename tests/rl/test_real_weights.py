"""bfloat16 with weights that were trained: what rounding explains passes, what it does not is caught.

On the stand-in, and on a real model where PLUMBLINE_REAL_MODEL names the folder of one (python -m benchmarks.real_model OUT).
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from rl.forward.choose_forward import _difference_in_16_bits, _example, explain_forward
from rl.forward.forward import packed_forward, packed_states
from rl.forward.packed_attention import dense
from rl.policy.load import load_pretrained
from rl.policy.lora import LoraPolicy, add_adapters
from rl.policy.policy import Policy
from rl.run.tiny import tiny_tokenizer
from rl.update.delivery import BFLOAT16_TOLERANCE, Delivery, DeliveryError
from rollout.engine.decoders import CachedDecoder
from rollout.engine.fused_decoder import FusedDecoder
from rollout.problems import load_problems
from rollout.processes import SingleProcess
from rollout.sampler import SampleRequest, SamplingParams, Text
from rollout.torch_sampler import TorchSampler
from tests.rl.stand_in import stand_in
from tests.rl.test_deliver import Tensors, move

REAL = os.environ.get("PLUMBLINE_REAL_MODEL")
# Questions as it was not taught them: of its own task it is too sure for rounding to show.
QUESTIONS = [f"Tell me, what is {p.messages[0]['content']}?\n" for p in load_problems("arithmetic")[:16]]


def bfloat16() -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16)


def loaded(which: str) -> tuple[PreTrainedModel, object]:
    if which == "stand-in":
        return stand_in(), tiny_tokenizer()
    assert REAL is not None
    return AutoModelForCausalLM.from_pretrained(REAL, dtype=torch.float32).eval(), AutoTokenizer.from_pretrained(REAL)


class Engine(TorchSampler):
    """An engine in bfloat16 with weights of its own; `fault` changes what it is sent from the second delivery on."""

    takes_adapters = False
    fault: Callable[[Tensors], Tensors] = staticmethod(iter)

    def update_weights(self, named_tensors: Tensors, version: int) -> None:
        super().update_weights(self.fault(named_tensors) if version > 0 else named_tensors, version)


def engine_of(which: str) -> tuple[Engine, list[Text]]:
    """And samples of its own."""
    model, tokenizer = loaded(which)
    engine = Engine(model, tokenizer, decode_dtype=torch.bfloat16, autocast=bfloat16)  # pyright: ignore
    asked = [SampleRequest(tuple(tokenizer(q).input_ids), (i,)) for i, q in enumerate(QUESTIONS)]  # pyright: ignore
    found = engine.sample(asked, SamplingParams(max_tokens=16))
    return engine, [(request.prompt_ids, c.token_ids) for request, (c,) in zip(asked, found, strict=True)]


def policy_of(which: str, *, lora: bool = False) -> Policy:
    model, _ = loaded(which)
    if not lora:
        return Policy.of(model, autocast=bfloat16)
    return LoraPolicy.of(add_adapters(model, rank=4, alpha=8.0, targets=("all-linear",), seed=0), autocast=bfloat16)


def delivery_of(policy: Policy, which: str) -> tuple[Delivery, Engine]:
    engine, texts = engine_of(which)
    return Delivery(policy, engine, tolerance=BFLOAT16_TOLERANCE, texts=texts), engine


MODELS = ["stand-in", pytest.param("real", marks=pytest.mark.skipif(REAL is None, reason="no PLUMBLINE_REAL_MODEL"))]


def changed(tensors: Iterable[tuple[str, Tensor]], wrong: Tensor, factor: float) -> Iterator[tuple[str, Tensor]]:
    """Under all of its names, where it is tied."""
    for name, tensor in tensors:
        yield name, tensor.detach() * factor if tensor is wrong else tensor


@pytest.mark.parametrize("which", MODELS)
@pytest.mark.parametrize("size", [1e-6, 1e-4])
def test_a_hundred_right_deliveries_pass(which: str, size: float) -> None:
    policy = policy_of(which)
    delivery, _ = delivery_of(policy, which)
    for version in range(100 if which == "stand-in" else 10):
        delivery.deliver(version)
        move(policy, size, version)


@pytest.mark.parametrize("which", MODELS)
@pytest.mark.parametrize("factor", [0.0, 0.9])
def test_every_tensor_that_arrives_changed_is_named(which: str, factor: float) -> None:
    policy = policy_of(which)
    delivery, engine = delivery_of(policy, which)
    delivery.deliver(0)
    names = {n: p for n, p in policy.model.named_parameters() if p.any()}  # a bias that is 0 has nothing to lose
    assert len(names) > 30
    for version, name in enumerate(list(names)[:: 1 if which == "stand-in" else 30], start=1):
        engine.fault = partial(changed, wrong=names[name], factor=factor)
        with pytest.raises(DeliveryError, match=name):
            delivery.deliver(version)


def test_log_probs_alone_show_a_tensor_that_is_missing() -> None:
    """Where an engine cannot tell what it holds: of the matrices of the layers nearly all."""
    policy = policy_of("stand-in")
    delivery, engine = delivery_of(policy, "stand-in")
    engine.fingerprints = dict
    delivery.deliver(0)
    matrices, caught = [p for p in policy.model.parameters() if p.dim() == 2], 0
    for version, matrix in enumerate(matrices, start=1):
        engine.fault = partial(changed, wrong=matrix, factor=0.0)
        with suppress(DeliveryError):
            delivery.deliver(version)
            continue
        caught += 1
    assert caught >= 0.9 * len(matrices)


@pytest.mark.parametrize("size", [1e-3, 1e-5])
def test_weights_that_are_one_step_late_are_caught(size: float) -> None:
    """A step of 1e-5 changes few of the rounded weights, and no log-prob beyond what rounding does."""
    policy = policy_of("stand-in")
    waiting = [[(n, t.detach().clone()) for n, t in policy.named_tensors()]]

    def late(tensors: Tensors) -> Tensors:
        waiting.append([(n, t.detach().clone()) for n, t in tensors])
        return waiting.pop(0)

    delivery, engine = delivery_of(policy, "stand-in")
    engine.fault = late
    delivery.deliver(0)
    move(policy, size)
    with pytest.raises(DeliveryError, match="those of delivery 0: the weights arrive late"):
        delivery.deliver(1)


def test_adapters_that_are_dropped_are_caught() -> None:
    policy = policy_of("stand-in", lora=True)
    base = [(n, t.detach().clone()) for n, t in policy.named_tensors(merged=True)]
    delivery, engine = delivery_of(policy, "stand-in")
    engine.fault = lambda tensors: base
    delivery.deliver(0)
    move(policy, 1e-3)
    with pytest.raises(DeliveryError, match="those of delivery 0"):
        delivery.deliver(1)


def test_what_the_engine_decodes_with_is_looked_at_and_not_the_trainers_module() -> None:
    """Sampling with the trainer's own module, in a bfloat16 copy of its weights that was not made anew."""
    policy = policy_of("stand-in")
    engine = TorchSampler(policy.model, tiny_tokenizer(), decode_dtype=torch.bfloat16, autocast=bfloat16)
    _, texts = engine_of("stand-in")
    delivery = Delivery(policy, engine, tolerance=BFLOAT16_TOLERANCE, texts=texts)
    delivery.deliver(0)
    assert engine.fused is not None
    engine.fused.refresh = lambda: True
    move(policy, 1e-4)
    with pytest.raises(DeliveryError, match="those of delivery 0"):
        delivery.deliver(1)


class OfTwo(SingleProcess):
    """The first of two processes, whose other one always answers yes."""

    def gather(self, mine: list) -> list:
        return [*mine, True]


def test_processes_measure_the_noise_together() -> None:
    """Sharded weights are put together by all at once: one that measured alone, as its engine rounds otherwise, would wait forever."""
    delivery, _ = delivery_of(policy_of("stand-in"), "stand-in")
    delivery.deliver(0)
    delivery.noise, delivery.processes = 1.0, OfTwo()  # which would explain whatever this process finds
    delivery.deliver(1)
    assert delivery.noise < 0.05


@pytest.mark.parametrize("which", MODELS)
def test_the_fast_paths_are_taken_in_bfloat16(which: str) -> None:
    model, tokenizer = loaded(which)
    with bfloat16():
        choice = explain_forward(model)
    assert choice.forward is packed_forward and "not varlen: it needs a GPU" in str(choice)
    engine = TorchSampler(model, tokenizer, decode_dtype=torch.bfloat16)  # pyright: ignore
    assert engine.decoder_class is FusedDecoder and engine.path.startswith("embedded engine, bfloat16: fused")


@pytest.mark.parametrize("bits", [16, 4])
def test_they_are_taken_over_a_base_of_fewer_bits(bits: int, tmp_path: Path) -> None:
    """Whether a way of computing is the model's is asked in float32, though the base rounds what it multiplies."""
    if bits == 4:
        pytest.importorskip("bitsandbytes")
    stand_in().save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    nf4 = torch.bfloat16 if bits == 4 else None
    model, tokenizer = load_pretrained(tmp_path, torch.device("cpu"), nf4=nf4, rounded=bits == 16)
    adapted = add_adapters(model, rank=4, alpha=8.0, targets=("all-linear",), seed=0)
    policy = LoraPolicy.of(adapted, autocast=bfloat16)
    assert policy.forward.name.startswith(packed_forward.name)
    engine = TorchSampler(policy.model, tokenizer, decode_dtype=torch.bfloat16, autocast=bfloat16)
    assert engine.decoder_class is (FusedDecoder if bits == 16 else CachedDecoder)
    assert engine.path.startswith("embedded engine, bfloat16: ")


def test_a_kernel_of_16_bits_is_held_against_what_these_explain() -> None:
    """One that scales scores by 1.1 is no rounding; the right one is."""
    model = stand_in()
    micro = _example(model.config.vocab_size)

    def off(block, query, key, value, scale, window):
        return dense(block, query, key, value, 1.1 * (scale or query.shape[-1] ** -0.5), window)

    with bfloat16(), torch.no_grad():
        assert _difference_in_16_bits(packed_forward, model, micro) is None
        wrong = _difference_in_16_bits(replace(packed_forward, states=partial(packed_states, kernel=off)), model, micro)
    assert wrong is not None and "on average" in wrong


def test_the_stand_in_rounds_as_a_real_model_does() -> None:
    """Its own samples move by about 0.02 nats; those of a random model of its shape by a tenth of that."""
    delivery, _ = delivery_of(policy_of("stand-in"), "stand-in")
    noise = delivery.policy.rounding_noise(delivery.micro)
    random = copy.deepcopy(delivery.policy.model)
    random.apply(random._init_weights)
    assert 0.01 < noise < 0.05
    assert Policy.of(random, autocast=bfloat16).rounding_noise(delivery.micro) < noise / 3
