"""The one forward: log-probs and entropies of a micro-batch's completions, without padding and with each prompt run once.

Every layer but attention works on the packed row of rl/batch.py as it is. The attention function registered here gives each
completion the keys and values of its own prompt followed by its own; they are gathered, so gradients flow back into the prompt.
A model whose attention is something else takes the plain padded forward.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from rl.batch import MicroBatch, TrainGroup, TrainSequence, lay_out
from rollout.attention import attention_implementation, grouped_attention, has_only_attention_layers

log = logging.getLogger(__name__)

LOGITS_PER_CHUNK = 1 << 24  # 64 MiB in float32


class TokenScores(NamedTuple):
    logprobs: Float[Tensor, " S"]
    entropies: Float[Tensor, " S"]  # of the whole distribution, in nats


Forward = Callable[[PreTrainedModel, MicroBatch, float], TokenScores]


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    micro: MicroBatch,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Prompts attend to themselves, completions to their prompt and to themselves. [1, H, N, D] -> [1, N, H, D]."""
    outputs = []
    for block in (micro.prompts, micro.completions):
        if len(block.filled) > 0:
            visible = block.ago >= 0
            if sliding_window is not None:
                visible &= block.ago < sliding_window
            out = grouped_attention(
                _gather(query, block.query_slots),
                _gather(key, block.key_slots),
                _gather(value, block.key_slots),
                mask=visible[:, None],
                causal=False,
                scale=scaling,
            )
            outputs.append(out.flatten(0, 1).index_select(0, block.filled))
    return torch.cat(outputs)[None], None


def _gather(states: Tensor, slots: Int[Tensor, "B C"]) -> Tensor:
    """[1, H, N, D] -> [B, H, C, D]. By `embedding`, whose backward adds up repeated rows fast on every device."""
    _, heads, num_tokens, size = states.shape
    rows = states[0].transpose(0, 1).reshape(num_tokens, heads * size)
    return F.embedding(slots, rows).unflatten(-1, (heads, size)).transpose(1, 2)


PACKED = "plumbline_packed"
AttentionInterface.register(PACKED, packed_attention)


def enable_gradient_checkpointing(model: PreTrainedModel) -> None:
    """Layers run once more in the backward pass, by the same attention function as in the forward."""
    model.gradient_checkpointing_enable(
        {
            "use_reentrant": False,
            "context_fn": lambda: (nullcontext(), attention_implementation(model, PACKED)),
        }
    )
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.training = True  # the condition to checkpoint; its children stay in eval mode: no dropout


def packed_forward(model: PreTrainedModel, micro: MicroBatch, temperature: float) -> TokenScores:
    """log softmax(z / temperature) of each target and the entropy of that distribution, in float32."""
    decoder, head = model.get_decoder(), model.get_output_embeddings()
    assert isinstance(decoder, nn.Module)
    assert isinstance(head, nn.Module)
    with attention_implementation(model, PACKED):
        out = decoder(
            input_ids=micro.input_ids[None], position_ids=micro.position_ids[None], use_cache=False, micro=micro
        )
    hidden = out.last_hidden_state[0].index_select(0, micro.score_from)
    return _score_by_chunks(head, hidden, micro.targets, temperature)


def padded_forward(model: PreTrainedModel, micro: MicroBatch, temperature: float) -> TokenScores:
    """The same numbers by the model's own forward over whole sequences, padded on the right: for every causal model."""
    contexts = micro.completions.key_slots  # of each completion: its prompt and itself, places in the row
    logits = model(input_ids=micro.input_ids[contexts], use_cache=False).logits
    scored = micro.sequence_of * contexts.shape[1] + micro.position_ids[micro.score_from]
    return _score_by_chunks(lambda z: z, logits.flatten(0, 1).index_select(0, scored), micro.targets, temperature)


def _score_by_chunks(
    to_logits: Callable[[Tensor], Tensor], states: Float[Tensor, "S H"], targets: Int[Tensor, " S"], temperature: float
) -> TokenScores:
    """Logits exist for one chunk of tokens at a time; the backward pass makes them again."""

    def score(states: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        logprobs = (to_logits(states).float() / temperature).log_softmax(-1)
        entropies = -(logprobs.exp() * logprobs).sum(-1)
        return logprobs.gather(-1, targets[:, None])[:, 0], entropies

    vocab_size = to_logits(states[:1].detach()).shape[-1]
    chunk = max(1, LOGITS_PER_CHUNK // vocab_size)
    if len(states) <= chunk:  # to make the only chunk again would save nothing
        return TokenScores(*score(states, targets))
    parts = [
        checkpoint(score, s, t, use_reentrant=False)
        for s, t in zip(states.split(chunk), targets.split(chunk), strict=True)
    ]
    logprobs, entropies = zip(*parts, strict=True)  # pyright: ignore[reportArgumentType]
    return TokenScores(torch.cat(logprobs), torch.cat(entropies))


@torch.no_grad()
def choose_forward(model: PreTrainedModel) -> Forward:
    """packed_forward where it gives this model's own log-probs, else padded_forward, which is said once.

    It is tried rather than looked up: families differ in soft-caps, logit scales and attention sinks.
    """
    if has_only_attention_layers(model):
        micro = _example(model.config.get_text_config().vocab_size).to(model.device)
        plain = padded_forward(model, micro, 1.0)
        packed = packed_forward(model, micro, 1.0)
        tolerance = 1e-4 if model.dtype == torch.float32 else 0.25  # bf16 keeps 8 bits: logits near 10 round to 0.06
        if (plain.logprobs - packed.logprobs).abs().max() < tolerance:
            return packed_forward
    log.warning("%s takes the padded forward: its attention is not the plain one", type(model).__name__)
    return padded_forward


def _example(vocab_size: int) -> MicroBatch:
    """Two groups of ragged lengths, any tokens."""

    def sequence(start: int, length: int) -> TrainSequence:
        tokens = tuple((start + 7 * i) % vocab_size for i in range(length))
        return TrainSequence(
            token_ids=tokens, sampler_logprobs=(0.0,) * length, advantages=torch.zeros(length), weight=0.0
        )

    prompts = [tuple((3 * i + n) % vocab_size for i in range(n)) for n in (3, 5)]
    return lay_out([TrainGroup(p, (sequence(len(p), 4), sequence(2, 2))) for p in prompts])
