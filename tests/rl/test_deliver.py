"""The proof of delivery: what arrives damaged, late, twice or not at all stops the run, and the message says what is wrong."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Iterator, Sequence

import pytest
import torch
from torch import Tensor

from rl.policy.lora import LoraPolicy, add_adapters
from rl.policy.policy import Policy
from rl.update.delivery import Delivery, DeliveryError
from rl.update.fingerprint import Fingerprint
from rollout.sampler import Text
from rollout.torch_sampler import TorchSampler
from tests.rl.models import make
from tests.rl.test_step import NoTokenizer

Tensors = Iterable[tuple[str, Tensor]]


class Plain(TorchSampler):
    """An engine with weights of its own, of a plain model; `fault` changes what it is sent from the second delivery on."""

    takes_adapters = False
    fault: Callable[[Tensors], Tensors] = staticmethod(iter)

    def update_weights(self, named_tensors: Tensors, version: int) -> None:
        super().update_weights(self.fault(named_tensors) if version > 0 else named_tensors, version)


def plain(fault: Callable[[Tensors], Tensors] | None = None) -> Plain:
    sampler = Plain(copy.deepcopy(make("llama")), NoTokenizer())  # pyright: ignore[reportArgumentType]
    if fault is not None:
        sampler.fault = fault
    return sampler


def lora_policy() -> LoraPolicy:
    return LoraPolicy.of(add_adapters(make("llama"), rank=4, alpha=8.0, targets=("all-linear",), seed=0))


def move(policy: Policy, size: float, seed: int = 0) -> None:
    """Every trained tensor a little, as an update does."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.trainable_parameters():
            parameter += size * torch.randn_like(parameter)


@pytest.mark.parametrize("made", [lambda: Policy.of(make("llama")), lora_policy])
def test_what_arrives_is_let_through(made: Callable[[], Policy]) -> None:
    """Forty short steps, each delivered, some twice."""
    policy, sampler = made(), plain()
    delivery = Delivery(policy, sampler, tolerance=1e-3)
    for version in range(40):
        assert delivery.deliver(version) < 1e-4
        if version % 10 == 0:
            delivery.deliver(version)
        move(policy, 1e-4, version)


def test_a_single_token_may_be_as_far_off_as_it_was_at_first() -> None:
    """In float32 the largest difference is bounded by 30 times the first largest one, not by the first mean."""
    policy, sampler = Policy.of(make("llama")), plain()
    delivery, probe, off = Delivery(policy, sampler, tolerance=1e-3), sampler.probe, 2e-4

    def one_is_off(texts: Sequence[Text]) -> dict[str, list[list[float]]]:
        ((engine, ((first, *rest),)),) = probe(texts).items()
        return {engine: [[first + off, *rest]]}

    sampler.probe = one_is_off
    delivery.deliver(0)
    assert delivery.tolerance == 1e-3
    off = 8e-4
    delivery.deliver(1)
    off = 2e-3
    with pytest.raises(DeliveryError, match=r"by 0\.002 at most"):
        delivery.deliver(2)


@pytest.mark.parametrize("sharpened", [False, True])
def test_a_surer_model_may_be_further_off(sharpened: bool) -> None:
    """Logits twenty times as large are rounded twenty times as much, in float32 as in 16 bits: then 0.0005 nats are no fault."""
    policy, sampler = Policy.of(make("llama")), plain()
    delivery, probe = Delivery(policy, sampler, tolerance=1e-3), sampler.probe
    delivery.deliver(0)
    assert delivery.tolerance < 4e-4

    def one_is_off(texts: Sequence[Text]) -> dict[str, list[list[float]]]:
        ((engine, ((first, *rest),)),) = probe(texts).items()
        return {engine: [[first + 5e-4, *rest]]}

    sampler.probe = one_is_off
    if sharpened:
        with torch.no_grad():
            policy.model.get_output_embeddings().weight *= 20  # pyright: ignore
        delivery.deliver(1)
        return
    move(policy, 1e-4)
    with pytest.raises(DeliveryError, match=r"at most \(rounding explains 0\.0001\d?\)"):
        delivery.deliver(1)


def test_a_damaged_tensor_is_named() -> None:
    damaged = "model.layers.1.mlp.up_proj.weight"

    def fault(tensors: Tensors) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in tensors:
            yield name, tensor.clone().index_fill_(0, torch.tensor(3), 0.0) if name == damaged else tensor

    policy = Policy.of(make("llama"))
    delivery = Delivery(policy, plain(fault), tolerance=1e-3)
    delivery.deliver(0)
    move(policy, 1e-3)
    with pytest.raises(
        DeliveryError, match=rf"differ from the trainer's by .*Tensors that differ: {re.escape(damaged)}$"
    ):
        delivery.deliver(1)


def test_a_tensor_that_never_takes_what_is_sent_is_named() -> None:
    """As an engine does with an output head of its own where the checkpoint, tied, has none."""
    head = "lm_head.weight"
    policy = Policy.of(make("llama"))
    sampler = plain(lambda tensors: ((name, tensor) for name, tensor in tensors if name != head))
    delivery = Delivery(policy, sampler, tolerance=1e-3)
    delivery.deliver(0)
    move(policy, 1e-2)
    with pytest.raises(DeliveryError, match=rf"Tensors that differ: {re.escape(head)}$"):
        delivery.deliver(1)


@pytest.mark.parametrize(("factor", "said"), [(1.01, r"rounding explains 0\.0001"), (float("nan"), "by nan")])
def test_the_first_delivery_tells_what_rounding_is(factor: float, said: str) -> None:
    """Within the 0.25 that bfloat16 may need, but far from what the first, exact delivery was off by; and what is no number."""
    damaged = "model.layers.1.mlp.up_proj.weight"
    engine = plain(lambda tensors: ((name, t * factor if name == damaged else t) for name, t in tensors))
    delivery = Delivery(Policy.of(make("llama")), engine, tolerance=0.25)
    assert delivery.deliver(0) < 1e-5
    with pytest.raises(DeliveryError, match=said):
        delivery.deliver(1)


@pytest.mark.parametrize("size", [1e-2, 1e-5])
def test_late_weights_are_caught_however_short_the_step(size: float) -> None:
    """One delivery behind; a step of 1e-5 moves log-probs by less than the tolerance."""
    policy = Policy.of(make("llama"))
    waiting: list[list[tuple[str, Tensor]]] = [[(n, t.detach().clone()) for n, t in policy.named_tensors()]]

    def late(tensors: Tensors) -> Tensors:
        waiting.append([(n, t.detach().clone()) for n, t in tensors])
        return waiting.pop(0)

    delivery = Delivery(policy, plain(late), tolerance=1e-3)
    delivery.deliver(0)
    move(policy, size)
    said = (
        "arrive late|differ from the trainer's" if size > 1e-3 else "are those of delivery 0: the weights arrive late"
    )
    with pytest.raises(DeliveryError, match=said):
        delivery.deliver(1)


def test_the_same_weights_twice_are_not_late_by_what_rounding_makes_of_their_sums(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A step without signal delivers what was there, perhaps from a copy elsewhere in memory, whose products float32 sums in another order:
    here the engine's equal those of the first delivery to the bit."""
    add = Fingerprint.add

    def in_another_order(self: Fingerprint, name: str, tensor: Tensor) -> None:
        add(self, name, tensor)
        self.fingerprints[name] *= 1 + 1e-7 * torch.randn_like(self.fingerprints[name])

    delivery = Delivery(Policy.of(make("llama")), plain(), tolerance=1e-3)
    delivery.deliver(0)
    monkeypatch.setattr(Fingerprint, "add", in_another_order)
    assert delivery.deliver(1) < 1e-5


def test_a_dropped_adapter_is_caught() -> None:
    """The base alone: near to the policy in the first steps, and the same as what was delivered first."""
    policy = lora_policy()
    base = [(n, t.detach().clone()) for n, t in policy.named_tensors(merged=True)]
    delivery = Delivery(policy, plain(lambda tensors: base), tolerance=1e-3)
    delivery.deliver(0)
    move(policy, 1e-4)
    with pytest.raises(DeliveryError, match="those of delivery 0"):
        delivery.deliver(1)


def test_an_adapter_that_is_added_twice_is_caught() -> None:
    policy, original = lora_policy(), {n: t.detach().clone() for n, t in lora_policy().named_tensors(merged=True)}
    twice = plain(lambda tensors: ((n, 2 * t - original[n]) for n, t in tensors))
    delivery = Delivery(policy, twice, tolerance=1e-3)
    delivery.deliver(0)
    move(policy, 1e-2)
    with pytest.raises(DeliveryError, match="differ from the trainer's"):
        delivery.deliver(1)


def test_the_base_of_adapters_is_the_same_bits_after_many_deliveries() -> None:
    """Merging is W + (alpha / rank) B A made anew: nothing is added to W and taken off again, which rounds."""
    policy, sampler = lora_policy(), plain()
    base = {n: t.detach().clone() for n, t in policy.named_tensors() if ".lora_" not in n}
    delivery = Delivery(policy, sampler, tolerance=1e-3)
    for version in range(200):
        delivery.deliver(version)
        move(policy, 1e-3, version)
    assert all(torch.equal(t, base[n]) for n, t in policy.named_tensors() if n in base)
    merged = dict(policy.named_tensors(merged=True))
    layer = "model.layers.0.self_attn.q_proj"
    a, b = (p for n, p in policy.model.named_parameters() if n.startswith(layer) and ".lora_" in n)
    expected = base[f"{layer}.base_layer.weight"] + 8.0 / 4 * (b @ a)
    assert torch.allclose(merged[f"{layer}.weight"], expected, atol=1e-6, rtol=0)  # float32 sums of four products


class Two:
    """Two engines, as two servers are; the second one is never sent anything again."""

    takes_adapters = False

    def __init__(self) -> None:
        self.engines = {"first": plain(), "second": plain(lambda tensors: [])}

    def __getattr__(self, name: str) -> object:
        return getattr(self.engines["first"], name)

    def update_weights(self, named_tensors: Tensors, version: int) -> None:
        for engine in self.engines.values():
            engine.update_weights(named_tensors, version)

    def probe(self, texts: list[Text]) -> dict[str, list[list[float]]]:
        return {name: next(iter(engine.probe(texts).values())) for name, engine in self.engines.items()}

    def fingerprints(self) -> dict[str, dict[str, Tensor]]:
        return {name: next(iter(engine.fingerprints().values())) for name, engine in self.engines.items()}


@pytest.mark.parametrize("tells", [True, False])
@pytest.mark.parametrize("size", [1e-2, 1e-5])
def test_of_several_engines_the_stale_one_is_named(size: float, tells: bool) -> None:
    """Whether or not it tells what it holds."""
    policy, engines = Policy.of(make("llama")), Two()
    if not tells:
        engines.fingerprints = dict  # pyright: ignore[reportAttributeAccessIssue]
    delivery = Delivery(policy, engines, tolerance=1e-3)  # pyright: ignore[reportArgumentType]
    delivery.deliver(0)
    move(policy, size)
    with pytest.raises(DeliveryError, match="second's weights are those of delivery 0"):
        delivery.deliver(1)
