"""The packed forward gives the plain forward's numbers and gradients, on every path that reaches it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, OpenAIGPTConfig, PreTrainedModel

import rl.forward.output_head
from rewards.errors import UserError
from rl.forward.choose_forward import choose_forward
from rl.forward.forward import enable_gradient_checkpointing, packed_forward, padded_forward, plain_forward
from rl.forward.layouts import PackedRow
from rl.policy.lora import add_adapters
from rl.settings.options import ALL_LINEAR
from rl.update.batch import Batch
from tests.rl.families import FAMILIES, TABLE, of_family, table
from tests.rl.models import SIZES, VOCAB, make, random_batch

# float32 keeps 6e-8 of a number; the largest difference over the families is 4e-5, of a log-prob of 24 (Nemotron, squared ReLU).
LOGPROB_TOLERANCE = 1e-4
# peft says so of every fused mixture of experts, and does target what it says it does not.
MOE_WARNING = "ignore:The following .*_pattern keys did not match:RuntimeWarning"
GRADIENT_TOLERANCE = 1e-4  # relative to the largest entry of the parameter's gradient


def gradients(model, forward, batch: Batch, budget: int = 10_000) -> dict[str, torch.Tensor]:
    """Of a loss in which log-probs and entropies both count."""
    model.zero_grad()
    for micro in batch.micro_batches(budget):
        scores = forward.score(model, micro, 0.7)
        (micro.weights * (micro.advantages * scores.logprobs + 0.3 * scores.entropies)).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same_gradients(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    # A key's bias shifts all scores of a query alike: its gradient is zero but for rounding, so the scale is the model's.
    overall = max(g.abs().max() for g in theirs.values())
    for name, gradient in theirs.items():
        scale = max(gradient.abs().max(), 1e-2 * overall)
        assert (ours[name] - gradient).abs().max() < GRADIENT_TOLERANCE * scale, name


def alone(model: PreTrainedModel, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probs and entropies of one unpadded sequence at a time, in the order of the micro-batch, by nothing of ours."""
    logprobs, entropies = [], []
    for group in sorted(batch.groups, key=lambda g: g.num_tokens / len(g.sequences)):
        for sequence in sorted(group.sequences, key=lambda s: len(s.token_ids)):
            tokens = torch.tensor([[*group.prompt_ids, *sequence.token_ids]])
            logits = model(tokens, use_cache=False).logits[0, len(group.prompt_ids) - 1 : -1] / 0.7
            table = logits.log_softmax(-1)
            logprobs.append(table.gather(-1, torch.tensor(sequence.token_ids)[:, None])[:, 0])
            entropies.append(-(table.exp() * table).sum(-1))
    return torch.cat(logprobs), torch.cat(entropies)


def adapt(model: PreTrainedModel) -> None:
    """Adapters on every linear layer but the output layer and Mamba's out_proj, which peft refuses; none of them adds nothing."""
    layers = [name for name, m in model.named_modules() if isinstance(m, nn.Linear) and not name.endswith("lm_head")]
    mamba = model.config.model_type in ("mamba", "mamba2", "falcon_h1")
    targets = sorted({n.rpartition(".")[2] for n in layers} - {"out_proj"}) if mamba else [ALL_LINEAR]
    add_adapters(model, rank=4, alpha=6.0, targets=targets, seed=0)
    torch.manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.1 * torch.randn_like(p))


@contextmanager
def in_float64(model: PreTrainedModel) -> Iterator[None]:
    """Where the family's code does not insist on float32."""
    model.config._experts_implementation = "eager"  # the grouped matrix product has no float64
    model.double()
    torch.set_default_dtype(torch.float64)  # XGLM's mask is made in it
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.filterwarnings("ignore::UserWarning")  # transformers names the kernels it does without
@pytest.mark.filterwarnings(MOE_WARNING)
@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_scores_and_gradients_are_those_of_sequences_run_alone(family: str, lora: bool, checkpointed: bool) -> None:
    """Masks, positions, the shared prompt, grouped heads, windows, caps, sinks, scales of logits: an error in any shows here.

    And what layers do when they are run again in the backward pass.
    """
    model, batch = of_family(family), random_batch()
    if lora:
        adapt(model)
    forward = choose_forward(model)
    if checkpointed:
        enable_gradient_checkpointing(model)
    (micro,) = batch.micro_batches(10_000)
    scores, ours = forward.score(model, micro, 0.7), gradients(model, forward, batch)
    model.eval().zero_grad()  # and so no longer checkpointed
    with in_float64(model):
        logprobs, entropies = alone(model, batch)
        (micro.weights * (micro.advantages * logprobs + 0.3 * entropies)).sum().backward()
    assert (scores.logprobs - logprobs).abs().max() < LOGPROB_TOLERANCE
    assert (scores.entropies - entropies).abs().max() < LOGPROB_TOLERANCE
    assert_same_gradients(ours, {name: p.grad for name, p in model.named_parameters() if p.grad is not None})


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("family", FAMILIES)
def test_no_dropout_acts_under_gradient_checkpointing(family: str) -> None:
    """Every family here is given dropout wherever it has a place for it: OPT's layers, say, drop by a flag of their own."""
    model, batch = of_family(family), random_batch()
    forward = choose_forward(model)
    plain = gradients(model, forward, batch)
    enable_gradient_checkpointing(model)
    (micro,) = batch.micro_batches(10_000)
    first, second = (forward.score(model, micro, 0.7) for _ in range(2))
    assert torch.equal(first.logprobs, second.logprobs) and torch.equal(first.entropies, second.entropies)
    again = gradients(model, forward, batch)
    assert all(torch.equal(again[name], gradient) for name, gradient in plain.items())


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_table_in_the_docs_says_which_family_takes_which_path() -> None:
    assert TABLE.read_text(encoding="utf-8") == table(), "python -m tests.rl.families writes it anew"


def test_chunks_of_logits_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = make("qwen2"), random_batch()
    whole = gradients(model, packed_forward, batch)
    monkeypatch.setattr(rl.forward.output_head, "LOGITS_PER_CHUNK", 7 * SIZES["vocab_size"])
    assert_same_gradients(gradients(model, packed_forward, batch), whole)


@pytest.mark.parametrize("family", ["Qwen2", "Mistral, window"])
def test_pieces_of_very_different_lengths(family: str) -> None:
    """Short and long completions are attended apart and put back in their places."""
    model, batch = of_family(family), random_batch(longest=70)
    (micro,) = batch.micro_batches(10_000)
    assert (
        len(micro.laid_out(PackedRow.of).blocks) == 4
    )  # prompts; completions of up to 17 tokens, up to 43, longer ones
    assert (
        packed_forward.score(model, micro, 0.7).logprobs - plain_forward.score(model, micro, 0.7).logprobs
    ).abs().max() < 1e-4
    assert_same_gradients(gradients(model, packed_forward, batch), gradients(model, plain_forward, batch))


def test_autocast_rounds_no_more_than_the_plain_forward_does() -> None:
    """bfloat16: the packed forward's distance from float32 is about that of the model's own."""
    model, batch = of_family("Qwen2"), random_batch()
    (micro,) = batch.micro_batches(10_000)
    with torch.no_grad():
        exact = plain_forward.score(model, micro, 0.7).logprobs
        with torch.autocast("cpu", torch.bfloat16):
            plain, packed = (f.score(model, micro, 0.7).logprobs for f in (plain_forward, packed_forward))
    assert 0 < (packed - exact).square().mean() < 2 * (plain - exact).square().mean()


def test_gradient_checkpointing_recomputes_with_the_packed_attention() -> None:
    """The backward pass runs the layers again, after the forward has put the model's own attention back."""
    model, batch = make("qwen2"), random_batch()
    plain = gradients(model, packed_forward, batch)
    enable_gradient_checkpointing(model)
    calls = []
    model.model.layers[0].self_attn.register_forward_hook(lambda *_: calls.append(1))
    for _ in range(2):
        assert_same_gradients(gradients(model, packed_forward, batch), plain)
    assert len(calls) == 4  # each time once in the forward, once in the backward


def test_a_model_whose_layers_cannot_be_run_twice_is_refused() -> None:
    model = AutoModelForCausalLM.from_config(OpenAIGPTConfig(vocab_size=VOCAB, n_embd=32, n_layer=1, n_head=4))
    with pytest.raises(UserError, match=r"gradient_checkpointing is True.* OpenAIGPTLMHeadModel"):
        enable_gradient_checkpointing(model)


def test_a_padded_forward_is_said(caplog: pytest.LogCaptureFixture) -> None:
    assert choose_forward(of_family("Mamba")) is padded_forward
    assert "padded forward" in caplog.text
