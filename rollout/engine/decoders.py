"""Three decoders, and the choice of the fastest one that is correct for a model, by comparison with the model's plain forward.

FusedDecoder is for models of Llama's architecture; CachedDecoder, the model's own forward with a slot cache, for other models that
have only attention layers; RecomputingDecoder, without a cache, for every other causal model: correct but slow.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn, Protocol

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from rollout.attention import attention_implementation, has_only_attention_layers, narrow_windows
from rollout.engine.batch import Batch, enlarged
from rollout.engine.decode_weights import weights_dtype
from rollout.engine.fused_decoder import FusedDecoder
from rollout.engine.fused_model import FusedModel, causal_attention, is_llama_like
from rollout.engine.kept import Resumed
from rollout.engine.sizes import Capacity
from rollout.engine.slots import SLOT_ATTENTION, KeptLayers, KeyValueSlots
from rollout.rounding import bound_of, float32_difference, in_float32, mean_difference, rounding_noise

log = logging.getLogger(__name__)

Context = Callable[[], AbstractContextManager[Any]]


class Decoder(Protocol):
    """Computes next-token logits of the rows in the batch. Rows are numbered 0..N-1; a new row is added at the end.

    batch: the rows' tokens and state, in memory that lives as long as the decoder's own. can_resume: whether it has keep and resume.
    """

    batch: Batch
    can_resume: bool

    def reserve(self, more: Capacity) -> None:
        """Enlarges the buffers if `more` rows and groups, of these widths, do not fit beside those that are decoded."""
        ...

    def admit(self, rows: Tensor, prompts: list[Tensor], source: Tensor) -> None:
        """Processes the prompts except for their last tokens, which the next step processes. Row rows[i] gets prompts[source[i]]."""
        ...

    def keep(self, rows: Sequence[int], lengths: Sequence[int]) -> Sequence[Any]:
        """Copies of the keys and values of the first tokens of each row, so many of them, to be resumed later by any such decoder."""
        ...

    def resume(self, rows: Tensor, resumed: Sequence[Resumed], added: Sequence[Tensor]) -> None:
        """Row rows[i] takes up a context that was kept. added: the tokens behind what is reused of it, without the last one of the
        request, which the next step processes."""
        ...

    def logits(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """tokens: the newest token of each row; positions: its position. -> [N, V]"""
        ...

    def move(self, sources: Tensor, targets: Tensor, num_rows: int) -> None:
        """Moves rows from `sources` to `targets`; num_rows rows are left."""
        ...


class CachedDecoder:
    """Decodes by the model's own forward with a slot cache. context: context factory for the forward."""

    can_resume = True

    def __init__(self, model: PreTrainedModel, context: Context, capacity: Capacity) -> None:
        self.model, self.context, self.capacity = model, context, capacity
        width = capacity.shared_width + capacity.width
        self.slots = KeyValueSlots(capacity.rows, width)
        self.columns = torch.arange(width, device=model.device)
        self.batch = Batch(capacity.rows, capacity.width, model.device)

    def reserve(self, more: Capacity) -> None:
        capacity = self.capacity.holding(more._replace(rows=len(self.batch) + more.rows, groups=0))
        if capacity != self.capacity:
            width = capacity.shared_width + capacity.width
            self.slots.grow(capacity.rows, width)
            self.columns = torch.arange(width, device=self.columns.device)
            self.batch.grow(capacity.rows, capacity.width)
            self.capacity = capacity

    def admit(self, rows: Tensor, prompts: list[Tensor], source: Tensor) -> None:
        block = pad_sequence([prompt[:-1] for prompt in prompts], batch_first=True)  # right-padded: causal hides it
        if block.shape[1] == 0:
            return
        self.slots.at_prefill(rows, source)
        self._forward(block, self.columns[: block.shape[1]].expand_as(block), mask=None)

    def keep(self, rows: Sequence[int], lengths: Sequence[int]) -> list[KeptLayers]:
        return [self.slots.keep(row, length) for row, length in zip(rows, lengths, strict=True)]

    def resume(self, rows: Tensor, resumed: Sequence[Resumed], added: Sequence[Tensor]) -> None:
        for row, kept in zip(rows.tolist(), resumed, strict=True):
            self.slots.restore(row, kept.context.states, kept.start)
        adding = [i for i, tokens in enumerate(added) if len(tokens)]
        if not adding:
            return
        # Padded by the last token in its own column: what is written there again is what stands there.
        lengths = torch.tensor([len(added[i]) for i in adding], device=rows.device)[:, None]
        n = self.columns[: int(lengths.max())].minimum(lengths - 1)
        block = pad_sequence([added[i] for i in adding], batch_first=True).gather(1, n)
        columns = n + torch.tensor([resumed[i].start for i in adding], device=rows.device)[:, None]
        self.slots.at_extension(rows[adding], columns)
        filled = self.columns[: self.slots.width] <= columns[..., None]
        self._forward(block, columns, mask=filled[:, None])

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
    """Decodes without a cache: every step processes the whole sequences. Padding is on the right, where no causal model reads it."""

    can_resume = False

    def __init__(self, model: PreTrainedModel, context: Context, capacity: Capacity) -> None:
        self.model, self.context, self.capacity = model, context, capacity
        width = capacity.shared_width + capacity.width
        self.tokens = torch.zeros(capacity.rows, width, dtype=torch.long, device=model.device)
        self.batch = Batch(capacity.rows, capacity.width, model.device)

    def reserve(self, more: Capacity) -> None:
        capacity = self.capacity.holding(more._replace(rows=len(self.batch) + more.rows, groups=0))
        if capacity != self.capacity:
            num_rows, width = self.tokens.shape
            columns = capacity.shared_width + capacity.width - width
            self.tokens = enlarged(self.tokens, capacity.rows - num_rows, columns)
            self.batch.grow(capacity.rows, capacity.width)
            self.capacity = capacity

    def admit(self, rows: Tensor, prompts: list[Tensor], source: Tensor) -> None:
        block = pad_sequence(prompts, batch_first=True)
        self.tokens[rows, : block.shape[1]] = block[source]

    def keep(self, rows: Sequence[int], lengths: Sequence[int]) -> NoReturn:
        raise NotImplementedError("there are no keys and values to keep")

    def resume(self, rows: Tensor, resumed: Sequence[Resumed], added: Sequence[Tensor]) -> NoReturn:
        raise NotImplementedError("there are no keys and values to resume from")

    def logits(self, tokens: Tensor, positions: Tensor) -> Tensor:
        rows = torch.arange(len(tokens), device=tokens.device)
        self.tokens[rows, positions] = tokens
        texts = self.tokens[: len(rows), : int(positions.max()) + 1]
        with self.context():
            return self.model(texts, use_cache=False).logits[rows, positions]

    def move(self, sources: Tensor, targets: Tensor, num_rows: int) -> None:
        self.tokens[targets] = self.tokens[sources]


@dataclass(frozen=True)
class DecoderChoice:
    """The decoder for a model. passed_over: the faster decoders that this model cannot use, each with the reason."""

    decoder: type[FusedDecoder] | type[CachedDecoder] | type[RecomputingDecoder]
    passed_over: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "; ".join([NAMES[self.decoder], *self.passed_over])


NAMES = {
    FusedDecoder: "fused layers with cached keys, those of a prompt once for its group",
    CachedDecoder: "its own forward with cached keys, at about half the speed",
    RecomputingDecoder: "running whole texts again without a cache, slowly",
}


@torch.no_grad()
def choose_decoder(model: PreTrainedModel, dtype: torch.dtype | None = None) -> DecoderChoice:
    """The fastest decoder that gives the model's own log-probs. dtype: the decoding dtype; None takes that of the model's matrices.

    Decoders are tested rather than looked up, as families differ in soft-caps, multipliers, norms and attention sinks.
    """
    choice = _fastest(model, dtype or weights_dtype(model))
    if choice.decoder is not FusedDecoder:
        log.warning("%s is decoded by %s", type(model).__name__, choice)
    return choice


def _fastest(model: PreTrainedModel, dtype: torch.dtype) -> DecoderChoice:
    with evaluating(model):
        reason = _why_not_fused(model, dtype)
        if reason is None:
            return DecoderChoice(FusedDecoder)
        passed_over = (f"not fused: {reason}",)
        if has_only_attention_layers(model):
            reason = _difference(model, partial(CachedDecoder, model, nullcontext))
            if reason is None:
                return DecoderChoice(CachedDecoder, passed_over)
        else:
            reason = "some layers keep no plain keys and values"
    return DecoderChoice(RecomputingDecoder, (*passed_over, f"not cached: {reason}"))


def _why_not_fused(model: PreTrainedModel, dtype: torch.dtype) -> str | None:
    if not is_llama_like(model):
        return "it is no Llama"
    if weights_dtype(model) == torch.float32:
        reason = _difference(model, partial(_fused, model, torch.float32)) or _difference_far_out(model)
        if reason is not None:
            return reason
    return None if dtype == torch.float32 else _difference_beyond_rounding(model, dtype)


def _fused(model: PreTrainedModel, dtype: torch.dtype, capacity: Capacity) -> FusedDecoder:
    return FusedDecoder(FusedModel(model, dtype), capacity)


def _difference(model: PreTrainedModel, make: Callable[[Capacity], Decoder]) -> str | None:
    """How a decoder differs from the model, in float32 over a short text; None if it does not. Tested also with sliding windows
    narrower than the text."""
    text = _text(model)
    for window in (nullcontext(), narrow_windows(model, 3)):
        with window, in_float32(model):
            reason = float32_difference(_decoded(make, text), _plain(model, text))
        if reason is not None:
            return reason
    return None


def _difference_far_out(model: PreTrainedModel) -> str | None:
    """The same at the end of the model's context: an effect that grows with the position does not show at the beginning."""
    text = _text(model)
    positions = torch.arange(len(text), device=text.device) + model.config.max_position_embeddings - len(text)
    plain = model(text[None], position_ids=positions[None], use_cache=False).logits[0].float().log_softmax(-1)
    fused = FusedModel(model, torch.float32)
    states = fused.states(text, positions, partial(causal_attention, num_texts=1))
    return float32_difference(fused.logits(states).log_softmax(-1), plain)


def _difference_beyond_rounding(model: PreTrainedModel, dtype: torch.dtype) -> str | None:
    """How the fused layers in 16 bits differ from the model's own forward beyond rounding (rollout/rounding.py); None if they do not."""
    text = _text(model)
    exact, noise = rounding_noise(lambda: _plain(model, text), model)
    error = mean_difference(_decoded(partial(_fused, model, dtype), text), exact)
    if error < bound_of(noise):
        return None
    return f"its log-probs are off by {error:.2g} on average, the model's own in 16 bits by {noise:.2g}"


def _decoded(make: Callable[[Capacity], Decoder], text: Tensor) -> Tensor:
    """Next-token log-probs at each token of the text from its fourth on, by a decoder. [T - 3, V]"""
    decoder, zero = make(Capacity(rows=1, groups=1, shared_width=3, width=len(text))), text.new_zeros(1)
    decoder.admit(zero, [text[:4]], zero)
    steps = [decoder.logits(text[i : i + 1], text.new_tensor([i]))[0] for i in range(3, len(text))]
    return torch.stack(steps).float().log_softmax(-1)


def _plain(model: PreTrainedModel, text: Tensor) -> Tensor:
    return model(text[None], use_cache=False).logits[0, 3:].float().log_softmax(-1)


def _text(model: PreTrainedModel) -> Tensor:
    return torch.arange(9, device=model.device) * 31 % model.config.get_text_config().vocab_size


@contextmanager
def evaluating(model: PreTrainedModel) -> Iterator[None]:
    """Puts the model into eval mode: no dropout, and no gradient checkpointing, which disables the cache. Restores each module's mode."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
