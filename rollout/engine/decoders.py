"""The three ways to decode a model, and which of them is right for it: each is tried against the plain forward.

FusedDecoder for models of Llama's shape; CachedDecoder, the model's own forward with keys in slots, for others that are all
attention; RecomputingDecoder, without a cache, for every other causal model: right and slow.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from rollout.attention import (
    BFLOAT16_ROUNDING,
    FLOAT32_ROUNDING,
    attention_implementation,
    has_only_attention_layers,
    narrow_windows,
)
from rollout.engine.fused_decoder import Capacity, FusedDecoder, causal_attention
from rollout.engine.fused_model import FusedModel, has_llamas_shape
from rollout.engine.slots import SLOT_ATTENTION, KeyValueSlots

log = logging.getLogger(__name__)

Context = Callable[[], AbstractContextManager[Any]]


class Decoder(Protocol):
    """Next-token logits of the rows in the batch. Rows are numbered 0..N-1; a new row joins at the end."""

    def admit(self, rows: Tensor, prompts: list[Tensor], source: Tensor) -> None:
        """Run the prompts, of which row rows[i] gets prompts[source[i]]: all but the last token, which the step runs."""
        ...

    def logits(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """tokens: the newest token of each row, at `positions`. -> [N, V]"""
        ...

    def move(self, sources: Tensor, targets: Tensor, num_rows: int) -> None:
        """Rows take others' places; num_rows are left."""
        ...


class CachedDecoder:
    """context: makes the context for each run of the model's forward."""

    def __init__(self, model: PreTrainedModel, context: Context, capacity: Capacity) -> None:
        self.model, self.context = model, context
        width = capacity.shared_width + capacity.width
        self.slots = KeyValueSlots(capacity.rows, width)
        self.columns = torch.arange(width, device=model.device)

    def admit(self, rows: Tensor, prompts: list[Tensor], source: Tensor) -> None:
        block = pad_sequence([prompt[:-1] for prompt in prompts], batch_first=True)  # right-padded: causal hides it
        if block.shape[1] == 0:
            return
        self.slots.at_prefill(rows, source)
        self._forward(block, self.columns[: block.shape[1]].expand_as(block), mask=None)

    def logits(self, tokens: Tensor, positions: Tensor) -> Tensor:
        self.slots.at_step(positions)
        filled = self.columns[: self.slots.width] <= positions[:, None]
        return self._forward(tokens[:, None], positions[:, None], mask=filled[:, None, None])

    def _forward(self, token_ids: Tensor, positions: Tensor, mask: Tensor | None) -> Tensor:
        with self.context(), attention_implementation(self.model, SLOT_ATTENTION):
            out = self.model(
                input_ids=token_ids,
                position_ids=positions,
                attention_mask=mask,
                past_key_values=self.slots,
                use_cache=True,
                logits_to_keep=1,
            )
        return out.logits[:, -1]

    def move(self, sources: Tensor, targets: Tensor, num_rows: int) -> None:
        self.slots.move(sources, targets)


class RecomputingDecoder:
    """No cache: every step runs the whole sequences, padded on the right, which no causal model can see."""

    def __init__(self, model: PreTrainedModel, context: Context, capacity: Capacity) -> None:
        self.model, self.context = model, context
        width = capacity.shared_width + capacity.width
        self.tokens = torch.zeros(capacity.rows, width, dtype=torch.long, device=model.device)

    def admit(self, rows: Tensor, prompts: list[Tensor], source: Tensor) -> None:
        block = pad_sequence(prompts, batch_first=True)
        self.tokens[rows, : block.shape[1]] = block[source]

    def logits(self, tokens: Tensor, positions: Tensor) -> Tensor:
        rows = torch.arange(len(tokens), device=tokens.device)
        self.tokens[rows, positions] = tokens
        texts = self.tokens[: len(rows), : int(positions.max()) + 1]
        with self.context():
            return self.model(texts, use_cache=False).logits[rows, positions]

    def move(self, sources: Tensor, targets: Tensor, num_rows: int) -> None:
        self.tokens[targets] = self.tokens[sources]


@torch.no_grad()
def choose_decoder(model: PreTrainedModel) -> type[FusedDecoder] | type[CachedDecoder] | type[RecomputingDecoder]:
    """The fastest that gives this model's own log-probs. It is said if that is not the first.

    They are tried rather than looked up: families differ in soft-caps, multipliers, norms and attention sinks.
    """
    name = type(model).__name__
    with evaluating(model):
        if has_llamas_shape(model) and _agrees(model, partial(_fused, model)) and _agrees_far_out(model):
            return FusedDecoder
        if has_only_attention_layers(model) and _agrees(model, partial(CachedDecoder, model, nullcontext)):
            log.warning("%s is decoded by its own forward, at about half the speed: it is no Llama", name)
            return CachedDecoder
    log.warning("%s is decoded without a cache: its layers keep no plain keys and values", name)
    return RecomputingDecoder


def _fused(model: PreTrainedModel, capacity: Capacity) -> FusedDecoder:
    return FusedDecoder(FusedModel(model, model.dtype), capacity)


def _agrees(model: PreTrainedModel, make: Callable[[Capacity], Decoder]) -> bool:
    """Over a short text, and with windows narrower than it however wide the model's are."""
    tokens = _text(model)
    for window in (nullcontext(), narrow_windows(model, 3)):
        with window:
            plain = model(tokens[None], use_cache=False).logits[0, 3:]
            decoder = make(Capacity(rows=1, groups=1, shared_width=3, width=len(tokens)))
            zero = tokens.new_zeros(1)
            decoder.admit(zero, [tokens[:4]], zero)
            steps = [decoder.logits(tokens[i : i + 1], tokens.new_tensor([i]))[0] for i in range(3, len(tokens))]
        if not _are_close(torch.stack(steps), plain):
            return False
    return True


def _agrees_far_out(model: PreTrainedModel) -> bool:
    """At the end of the model's context: what grows with the position would not show at its beginning."""
    tokens = _text(model)
    positions = torch.arange(len(tokens), device=tokens.device) + model.config.max_position_embeddings - len(tokens)
    plain = model(tokens[None], position_ids=positions[None], use_cache=False).logits[0]
    fused = FusedModel(model, model.dtype)
    states = fused.states(tokens, positions, partial(causal_attention, num_texts=1))
    return _are_close(fused.logits(states), plain)


def _text(model: PreTrainedModel) -> Tensor:
    return torch.arange(9, device=model.device) * 31 % model.config.get_text_config().vocab_size


def _are_close(logits: Tensor, plain: Tensor) -> bool:
    tolerance = FLOAT32_ROUNDING if plain.dtype == torch.float32 else BFLOAT16_ROUNDING
    difference = logits.float().log_softmax(-1) - plain.float().log_softmax(-1)
    return bool(difference.abs().max() < tolerance)


@contextmanager
def evaluating(model: PreTrainedModel) -> Iterator[None]:
    """No dropout and no gradient checkpointing, which drops the cache; afterwards every module is as the trainer had it."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
