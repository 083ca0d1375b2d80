"""The packed forward gives the plain forward's numbers and gradients, on every path that reaches it."""

from __future__ import annotations

import pytest
import torch
from transformers import MambaConfig, MambaForCausalLM

import rl.head
from rl.batch import Batch
from rl.forward import choose_forward, enable_gradient_checkpointing, packed_forward, padded_forward, plain_forward
from tests.rl.models import FAMILIES, SIZES, make, random_batch

# Two float32 forwards that sum in another order; the largest difference seen over the families is 3e-6 (log-probs of size 10).
LOGPROB_TOLERANCE = 3e-5
GRADIENT_TOLERANCE = 1e-4  # relative to the largest entry of the parameter's gradient


def gradients(model, forward, batch: Batch, budget: int = 10_000) -> dict[str, torch.Tensor]:
    """Of a loss in which log-probs and entropies both count."""
    model.zero_grad()
    for micro in batch.micro_batches(budget):
        scores = forward(model, micro, 0.7)
        (micro.weights * (micro.advantages * scores.logprobs + 0.3 * scores.entropies)).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same_gradients(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    # A key's bias shifts all scores of a query alike: its gradient is zero but for rounding, so the scale is the model's.
    overall = max(g.abs().max() for g in theirs.values())
    for name, gradient in theirs.items():
        scale = max(gradient.abs().max(), 1e-3 * overall)
        assert (ours[name] - gradient).abs().max() < GRADIENT_TOLERANCE * scale, name


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_log_probs_and_gradients_are_the_padded_ones(family: str) -> None:
    """Masks, positions, the shared prompt, grouped heads, sliding windows: an error in any of them shows here."""
    model, batch = make(family), random_batch()
    (micro,) = batch.micro_batches(10_000)
    packed, padded = packed_forward(model, micro, 0.7), plain_forward(model, micro, 0.7)
    assert (packed.logprobs - padded.logprobs).abs().max() < LOGPROB_TOLERANCE
    assert (packed.entropies - padded.entropies).abs().max() < LOGPROB_TOLERANCE
    assert_same_gradients(gradients(model, packed_forward, batch), gradients(model, plain_forward, batch))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_usual_families_take_the_packed_forward(family: str) -> None:
    assert choose_forward(make(family)) is packed_forward


def test_plain_forward_scores_each_sequence_as_if_alone() -> None:
    """The yardstick itself, against log_softmax of one unpadded sequence at a time."""
    model, batch = make("qwen2"), random_batch()
    (micro,) = batch.micro_batches(10_000)
    scored = plain_forward(model, micro, 0.7).logprobs.split(torch.bincount(micro.sequence_of).tolist())
    by_length = sorted(batch.groups, key=lambda g: g.num_tokens / len(g.sequences))
    alone = [
        (g.prompt_ids, s.token_ids) for g in by_length for s in sorted(g.sequences, key=lambda s: len(s.token_ids))
    ]
    for ours, (prompt, completion) in zip(scored, alone, strict=True):
        logits = model(torch.tensor([[*prompt, *completion]])).logits[0, len(prompt) - 1 : -1] / 0.7
        expected = logits.log_softmax(-1).gather(-1, torch.tensor(completion)[:, None])[:, 0]
        assert (ours - expected).abs().max() < LOGPROB_TOLERANCE


def test_chunks_of_logits_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = make("qwen2"), random_batch()
    whole = gradients(model, packed_forward, batch)
    monkeypatch.setattr(rl.head, "LOGITS_PER_CHUNK", 7 * SIZES["vocab_size"])
    assert_same_gradients(gradients(model, packed_forward, batch), whole)


def test_gradient_checkpointing_recomputes_with_the_packed_attention() -> None:
    """The backward pass runs the layers again, after the forward has put the model's own attention back."""
    model, batch = make("qwen2"), random_batch()
    plain = gradients(model, packed_forward, batch)
    enable_gradient_checkpointing(model)
    calls = []
    model.model.layers[0].self_attn.register_forward_hook(lambda *_: calls.append(1))
    assert_same_gradients(gradients(model, packed_forward, batch), plain)
    assert len(calls) == 2  # once in the forward, once in the backward


def test_models_with_other_attention_take_the_padded_forward(caplog: pytest.LogCaptureFixture) -> None:
    """Mamba has none: the packed forward would be wrong, and is not taken."""
    recurrent = MambaForCausalLM(MambaConfig(vocab_size=61, hidden_size=16, num_hidden_layers=1, state_size=4)).eval()
    assert choose_forward(recurrent) is padded_forward
    assert "padded forward" in caplog.text
