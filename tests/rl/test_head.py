"""The output layer: scores and every gradient are those of plain autograd in float64, and the logits never exist at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import rl.forward.output_head
from rl.forward.output_head import AnyHead, OutputHead, ValueHead
from rl.objective.tokens import TokenScores

TOKENS, HIDDEN, VOCAB = 50, 12, 97
TEMPERATURE = 0.7
SAME = 1e-5  # of the largest entry: logits near 17 keep 2e-6 in float32, and the loss is curved in their log-probs

HEADS = {
    "plain": {},
    "bias": {"bias": True},
    "scaled": {"scale": 0.3},
    "capped": {"soft_cap": 2.0, "scale": 1.5},
}


def leaf(*shape: int) -> Tensor:
    return torch.randn(shape).requires_grad_()


def make(bias: bool = False, **options: float) -> OutputHead:
    return OutputHead(leaf(VOCAB, HIDDEN), leaf(VOCAB) if bias else None, **options)


@pytest.fixture(autouse=True)
def _several_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(rl.forward.output_head, "LOGITS_PER_CHUNK", 0)
    monkeypatch.setattr(rl.forward.output_head, "LEAST_TOKENS_PER_CHUNK", 16)


def data() -> tuple[Tensor, Tensor]:
    return torch.randn(TOKENS, HIDDEN).requires_grad_(), torch.randint(VOCAB, (TOKENS,))


def loss_of(scores: TokenScores, part: slice) -> Tensor:
    """Terms that are curved in every score, weighted by token: a wrong part or a wrong sign shows."""
    weight = torch.linspace(0.5, 2.0, TOKENS)[part]
    terms = scores.logprobs.sin() + 0.3 * scores.entropies.square()
    return (weight * terms).sum()


def value_loss_of(values: Tensor) -> Tensor:
    return (torch.linspace(0.2, 1.0, TOKENS) * (values - 0.5).square()).sum()


def tensors(head: OutputHead, value: ValueHead | None = None) -> list[Tensor]:
    found = (head.weight, head.bias, *((value.weight, value.bias) if value else ()))
    return [t for t in found if t is not None]


def naively(
    head: OutputHead, hidden: Tensor, targets: Tensor, value: ValueHead | None = None
) -> tuple[Tensor, list[Tensor]]:
    """Loss and gradients in float64, all logits at once."""
    every = [t.detach().double().requires_grad_() for t in (hidden, *tensors(head, value))]
    hidden, weight, *others = every
    bias = 0 if head.bias is None else others[0]
    logits = hidden @ weight.T + bias
    logits = logits * head.scale
    if head.soft_cap is not None:
        logits = head.soft_cap * (logits / head.soft_cap).tanh()
    table = (logits / TEMPERATURE).log_softmax(-1)
    entropies = -(table.exp() * table).sum(-1)
    loss = loss_of(TokenScores(table.gather(-1, targets[:, None])[:, 0], entropies), slice(None))
    if value is not None:
        share = value.trunk_scale
        loss = loss + value_loss_of((share * hidden + (1 - share) * hidden.detach()) @ others[-2] + others[-1])
    return loss, list(torch.autograd.grad(loss, every))


def by_one_pass(head: OutputHead, hidden: Tensor, targets: Tensor) -> Tensor:
    return head.loss(hidden, targets, TEMPERATURE, loss_of, token_level=True)[0]


def by_two_passes(head: OutputHead, hidden: Tensor, targets: Tensor) -> Tensor:
    return head.loss(hidden, targets, TEMPERATURE, loss_of, token_level=False)[0]


def by_autograd(head: OutputHead, hidden: Tensor, targets: Tensor) -> Tensor:
    return AnyHead(lambda h: h @ head.weight.T).loss(hidden, targets, TEMPERATURE, loss_of, token_level=True)[0]


def assert_same(found: list[Tensor], expected: list[Tensor]) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours - theirs).abs().max() < SAME * max(1.0, theirs.abs().max().item())


@pytest.mark.parametrize("way", [by_one_pass, by_two_passes])
@pytest.mark.parametrize("kind", HEADS)
def test_loss_and_gradients(kind: str, way) -> None:
    head, (hidden, targets) = make(**HEADS[kind]), data()
    loss = way(head, hidden, targets)
    (3 * loss).backward()  # what comes from outside is multiplied in
    expected, gradients = naively(head, hidden, targets)
    assert_same([loss], [expected])
    assert_same([t.grad for t in (hidden, *tensors(head))], [3 * g for g in gradients])


@pytest.mark.parametrize("way", [by_one_pass, by_two_passes])
@pytest.mark.parametrize("trunk_scale", [1.0, 0.1])
def test_a_value_head_on_the_same_states(trunk_scale: float, way) -> None:
    """The states' gradient is the sum of what both heads send."""
    head, value, (hidden, targets) = make(bias=True), ValueHead(leaf(HIDDEN), leaf(), trunk_scale), data()
    loss = way(head, hidden, targets) + value_loss_of(value(hidden))
    (3 * loss).backward()
    expected, gradients = naively(head, hidden, targets, value)
    assert_same([loss], [expected])
    assert_same([t.grad for t in (hidden, *tensors(head, value))], [3 * g for g in gradients])


def test_any_output_layer_by_autograd() -> None:
    head, (hidden, targets) = make(), data()
    by_autograd(head, hidden, targets).backward()
    assert_same([hidden.grad, head.weight.grad], naively(head, hidden, targets)[1])


def test_the_scores_of_one_pass_are_those_of_two() -> None:
    """Bit for bit, and the log-probs alone too."""
    head, (hidden, targets) = make(), data()
    _, ours = head.loss(hidden, targets, TEMPERATURE, loss_of, token_level=True)
    theirs = head.score(hidden, targets, TEMPERATURE)
    assert all(torch.equal(a, b) and not a.requires_grad for a, b in zip(ours, theirs, strict=True))
    assert torch.equal(head.logprobs(hidden, targets, TEMPERATURE), ours.logprobs)


@pytest.mark.parametrize("way", [by_one_pass, by_two_passes])
def test_a_tied_weight_gets_both_its_gradients(way) -> None:
    """The hidden states come from the same matrix: its gradient is the sum of both ways."""
    head, (_, targets) = make(), data()
    tokens = torch.arange(TOKENS) % VOCAB
    way(head, head.weight[tokens], targets).backward()
    of_hidden, of_weight = naively(head, head.weight[tokens].detach(), targets)[1]
    assert_same([head.weight.grad], [of_weight.index_add(0, tokens, of_hidden)])


@contextmanager
def memory_taken(*known: Tensor) -> Iterator[list[int]]:
    """The number of elements of every tensor that an operation returns, views of the known ones aside."""
    taken: list[int] = []
    storages = {x.untyped_storage().data_ptr() for x in known}

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            made = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
            taken.extend(x.numel() for x in made if x.untyped_storage().data_ptr() not in storages)
            return out

    with Recorder():
        yield taken


@pytest.mark.parametrize("way", [by_one_pass, by_two_passes, by_autograd])
def test_no_more_logits_exist_than_those_of_a_chunk(way) -> None:
    head, (hidden, targets) = make(), data()
    with memory_taken() as taken:
        way(head, hidden, targets).backward()
    assert max(taken) == 16 * VOCAB


@pytest.mark.parametrize("way", [by_one_pass, by_two_passes])
def test_a_frozen_head_costs_no_gradient_of_its_weight(way, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the weight's size is made."""
    monkeypatch.setattr(rl.forward.output_head, "LEAST_TOKENS_PER_CHUNK", 2)
    head, (hidden, targets) = make(), data()
    frozen = replace(head, weight=head.weight.detach())
    with memory_taken(head.weight) as taken:
        way(frozen, hidden, targets).backward()
    assert VOCAB * HIDDEN not in taken
    with memory_taken(head.weight) as taken:
        way(head, *data()).backward()
    assert VOCAB * HIDDEN in taken


@pytest.mark.parametrize("way", [by_one_pass, by_two_passes])
def test_bfloat16_rounds_products_and_nothing_else(way) -> None:
    """Under autocast the products are in bfloat16, softmax and sums in float32: errors stay those of rounding once."""
    head, (hidden, targets) = make(), data()
    with torch.autocast("cpu", torch.bfloat16):
        loss = way(head, hidden, targets)
    loss.backward()
    expected, gradients = naively(head, hidden, targets)
    assert loss.dtype == head.weight.grad.dtype == hidden.grad.dtype == torch.float32
    assert abs(loss - expected) < 0.06 * abs(expected)
    for ours, theirs in zip((hidden.grad, head.weight.grad), gradients, strict=True):
        assert (ours - theirs).norm() < 0.06 * theirs.norm()  # logits near 17 round by 0.03, and the loss is a sine


def test_in_bfloat16_two_passes_round_as_one() -> None:
    """Also where the backward pass is begun outside of autocast, as it is in an update."""
    found = []
    for way in (by_one_pass, by_two_passes):
        torch.manual_seed(1)
        head, (hidden, targets) = make(), data()
        with torch.autocast("cpu", torch.bfloat16):
            loss = way(head, hidden, targets)
        loss.backward()
        found.append([hidden.grad, head.weight.grad])
    assert_same(*found)


@pytest.mark.parametrize("way", [by_one_pass, by_two_passes])
def test_the_weights_gradient_is_not_copied(way) -> None:
    """It is the largest tensor of the head, and autograd copies a gradient that somebody else holds."""
    head, (hidden, targets) = make(), data()
    made: list[int] = []

    class Addresses(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            made.extend(
                x.data_ptr() for x in tree_leaves(out) if isinstance(x, Tensor) and x.shape == head.weight.shape
            )
            return out

    with Addresses():
        way(head, hidden, targets).backward()
    assert head.weight.grad is not None
    assert set(made) - {head.weight.data_ptr()} == {head.weight.grad.data_ptr()}
