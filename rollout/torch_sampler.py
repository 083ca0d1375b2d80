"""The embedded engine: samples from any Hugging Face causal LM, on a CPU or a GPU, with nothing else installed.

Every row keeps its own position, so rows need no alignment: a prompt is run once for its whole group, rows that end
leave the batch at once and waiting groups take their place. Models whose layers are not all attention are decoded
without a cache: right and slow, and said once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AttentionInterface, Cache, PreTrainedModel, PreTrainedTokenizerBase

from rollout.attention import attention_implementation, grouped_attention, has_only_attention_layers
from rollout.records import Completion, FinishReason
from rollout.sampler import SampleRequest, SamplingParams

log = logging.getLogger(__name__)


def uniforms(seeds: Tensor, counters: Tensor) -> Tensor:
    """Draw `counter` of the stream `seed`, in [0, 1), float64: SplitMix64 (Steele, Lea, Flood 2014) as a pure function.

    seeds, counters: Int64[N]. No generator holds state, so a draw depends on nothing but (seed, counter).
    """

    def shifted(z: Tensor, bits: int) -> Tensor:  # a logical shift: torch's is arithmetic
        return (z >> bits) & ((1 << (64 - bits)) - 1)

    z = seeds + (counters + 1) * -0x61C8864680B583EB  # 0x9E3779B97F4A7C15 as a signed number, likewise below
    z = (z ^ shifted(z, 30)) * -0x40A7B892E31B1A47
    z = (z ^ shifted(z, 27)) * -0x6B2FB644ECCEEE15
    return shifted(z ^ shifted(z, 31), 11).double() * 2.0**-53


def truncate_to_top_p(logprobs: Tensor, top_p: float) -> Tensor:
    """The smallest set of tokens whose probabilities sum to at least top_p, renormalised (arXiv 1904.09751). [B, V] -> [B, V]."""
    ordered, order = logprobs.sort(dim=-1, descending=True)
    mass_before = ordered.exp().cumsum(-1) - ordered.exp()
    dropped = torch.zeros_like(logprobs, dtype=torch.bool).scatter(-1, order, mass_before >= top_p)
    return logprobs.masked_fill(dropped, -torch.inf).log_softmax(-1)


def draw_tokens(logits: Tensor, u: Tensor, params: SamplingParams) -> tuple[Tensor, Tensor]:
    """One token per row by inverse CDF, and its log-prob under the distribution sampled from. [B, V], [B] -> [B], [B]."""
    logits = logits.float()
    if params.temperature == 0:
        logprobs = logits.log_softmax(-1)
        tokens = logits.argmax(-1)
    else:
        logprobs = (logits / params.temperature).log_softmax(-1)
        if params.top_p < 1:
            logprobs = truncate_to_top_p(logprobs, params.top_p)
        cdf = logprobs.exp().cumsum(-1, dtype=torch.float64)
        # u < 1 in steps of 2^-53 and right=True: a token of probability 0 is never drawn.
        tokens = torch.searchsorted(cdf, (u * cdf[:, -1])[:, None], right=True)[:, 0]
        tokens = tokens.clamp_(max=logits.shape[-1] - 1)
    return tokens, logprobs.gather(-1, tokens[:, None])[:, 0]


def slot_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Prefill (no mask: plain causal) and decoding (the mask says which slots a row has filled)."""
    if sliding_window is not None:
        columns = torch.arange(key.shape[2], device=key.device)
        if attention_mask is None:
            ago = columns[:, None] - columns[None, :]
            attention_mask = ((ago >= 0) & (ago < sliding_window))[None, None]
        else:
            position = attention_mask.sum(-1, keepdim=True) - 1
            attention_mask = attention_mask & (columns > position - sliding_window)
    causal = attention_mask is None and query.shape[2] > 1
    return grouped_attention(query, key, value, mask=attention_mask, causal=causal, scale=scaling), None


AttentionInterface.register("plumbline_slots", slot_attention)


class KeyValueSlots(Cache):
    """Preallocated keys and values, one slot a row; column = position. Nothing is concatenated, and rows can move."""

    def __init__(self, num_slots: int, capacity: int) -> None:
        super().__init__(layers=[])
        self.num_slots, self.capacity = num_slots, capacity
        self.buffers: list[tuple[Tensor, Tensor]] = []
        self.rows = torch.empty(0, dtype=torch.long)
        self.source: Tensor | None = None
        self.newest: tuple[Any, ...] = ()  # where in a buffer the newest token of each row stands
        self.width = 0

    def at_prefill(self, rows: Tensor, source: Tensor) -> None:
        """The next forward runs prompts from column 0; row rows[i] takes those of prompt source[i]."""
        self.rows, self.source = rows, source

    def at_step(self, columns: Tensor) -> None:
        """The next forward runs one token for each of the first len(columns) rows, at the given columns."""
        lowest, highest = int(columns.min()), int(columns.max())
        self.rows, self.source, self.width = torch.arange(len(columns), device=columns.device), None, highest + 1
        # One column for all rows is a slice, and its write a plain copy: a tenth of the time of an indexed one.
        aligned = lowest == highest
        self.newest = (slice(len(columns)), slice(None), highest) if aligned else (self.rows, slice(None), columns)

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any):  # pyright: ignore
        while layer_idx >= len(self.buffers):
            self.buffers.append(tuple(self._allocate(s) for s in (key_states, value_states)))  # pyright: ignore
        keys, values = self.buffers[layer_idx]
        if self.source is not None:
            width = key_states.shape[2]
            keys[self.rows, :, :width] = key_states[self.source]
            values[self.rows, :, :width] = value_states[self.source]
            return key_states, value_states
        keys[self.newest] = key_states[:, :, 0]
        values[self.newest] = value_states[:, :, 0]
        num_rows = len(self.rows)
        return keys[:num_rows, :, : self.width], values[:num_rows, :, : self.width]

    def _allocate(self, states: Tensor) -> Tensor:
        return states.new_zeros(self.num_slots, states.shape[1], self.capacity, states.shape[3])

    def move(self, sources: Tensor, targets: Tensor) -> None:
        for keys, values in self.buffers:
            keys[targets, :, : self.width] = keys[sources, :, : self.width]
            values[targets, :, : self.width] = values[sources, :, : self.width]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0


class Decoder(Protocol):
    """Next-token logits of the rows in the batch. Rows are numbered 0..B-1; a new row joins at the end."""

    def admit(self, rows: Tensor, prompts: list[Tensor], source: Tensor) -> None: ...

    def logits(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """tokens: the newest token of each row, at `positions`. -> [B, V]"""
        ...

    def move(self, sources: Tensor, targets: Tensor) -> None: ...


class CachedDecoder:
    """Keys and values in slots. The last prompt token is left to the first step, so prefill needs no logits."""

    def __init__(self, model: PreTrainedModel, num_slots: int, capacity: int) -> None:
        self.model = model
        self.slots = KeyValueSlots(num_slots, capacity)
        self.columns = torch.arange(capacity, device=model.device)

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
        with attention_implementation(self.model, "plumbline_slots"):
            out = self.model(
                input_ids=token_ids,
                position_ids=positions,
                attention_mask=mask,
                past_key_values=self.slots,
                use_cache=True,
                logits_to_keep=1,
            )
        return out.logits[:, -1]

    def move(self, sources: Tensor, targets: Tensor) -> None:
        self.slots.move(sources, targets)


class RecomputingDecoder:
    """No cache: every step runs the whole sequences, padded on the right, which no causal model can see."""

    def __init__(self, model: PreTrainedModel, num_slots: int, capacity: int) -> None:
        self.model = model
        self.tokens = torch.zeros(num_slots, capacity, dtype=torch.long, device=model.device)

    def admit(self, rows: Tensor, prompts: list[Tensor], source: Tensor) -> None:
        block = pad_sequence(prompts, batch_first=True)
        self.tokens[rows, : block.shape[1]] = block[source]

    def logits(self, tokens: Tensor, positions: Tensor) -> Tensor:
        rows = torch.arange(len(tokens), device=tokens.device)
        self.tokens[rows, positions] = tokens
        return self.model(self.tokens[: len(rows), : int(positions.max()) + 1], use_cache=False).logits[rows, positions]

    def move(self, sources: Tensor, targets: Tensor) -> None:
        self.tokens[targets] = self.tokens[sources]


@torch.no_grad()
def _cache_agrees(model: PreTrainedModel) -> bool:
    """Whether decoding with slots gives the plain forward's log-probs: families differ in what attention they ask for."""
    if not has_only_attention_layers(model):
        return False
    tokens = torch.arange(7, device=model.device) % model.config.get_text_config().vocab_size
    plain = model(tokens[None], use_cache=False).logits[0, 3:].float().log_softmax(-1)
    decoder = CachedDecoder(model, num_slots=1, capacity=len(tokens))
    zero = tokens.new_zeros(1)
    decoder.admit(zero, [tokens[:4]], zero)
    steps = [decoder.logits(tokens[i : i + 1], tokens.new_tensor([i]))[0] for i in range(3, len(tokens))]
    tolerance = 1e-4 if model.dtype == torch.float32 else 0.25  # bf16 keeps 8 bits: logits near 10 round to 0.06
    return bool((torch.stack(steps).float().log_softmax(-1) - plain).abs().max() < tolerance)


class Batch:
    """The rows being decoded, and every completion's tokens so far. Row state moves; completions stay where they are."""

    def __init__(self, requests: Sequence[SampleRequest], max_tokens: int, device: torch.device) -> None:
        self.seeds = torch.tensor([seed for r in requests for seed in r.seeds], dtype=torch.long, device=device)
        count = len(self.seeds)
        self.tokens = torch.zeros(count, max_tokens, dtype=torch.long, device=device)
        self.logprobs = torch.zeros(count, max_tokens, device=device)
        self.lengths = torch.zeros(count, dtype=torch.long, device=device)
        self.stopped = torch.zeros(count, dtype=torch.bool, device=device)
        empty = torch.empty(0, dtype=torch.long, device=device)
        self.completion, self.newest, self.position = empty, empty, empty  # of each row

    def admit(self, completions: Tensor, newest: Tensor, position: Tensor) -> Tensor:
        rows = torch.arange(len(completions), device=completions.device) + len(self.completion)
        self.completion = torch.cat([self.completion, completions])
        self.newest = torch.cat([self.newest, newest])
        self.position = torch.cat([self.position, position])
        return rows

    def append(self, tokens: Tensor, logprobs: Tensor) -> None:
        at = self.lengths[self.completion]
        self.tokens[self.completion, at] = tokens
        self.logprobs[self.completion, at] = logprobs
        self.lengths[self.completion] = at + 1
        self.newest, self.position = tokens, self.position + 1

    def release(self, ended: Tensor) -> tuple[Tensor, Tensor]:
        """Drop the rows that ended; rows from the tail move into the holes. -> (sources, targets) of the moves."""
        keep = len(ended) - int(ended.sum())
        targets = ended[:keep].nonzero()[:, 0]
        sources = (~ended[keep:]).nonzero()[:, 0] + keep
        for name in ("completion", "newest", "position"):
            state = getattr(self, name)
            state[targets] = state[sources]
            setattr(self, name, state[:keep].clone())
        return sources, targets


class TorchSampler:
    """Samples with the given model itself: where that is the trainer's own module, delivery moves no bytes.

    max_rows: how many completions are decoded at once. More is faster until memory ends; keys and values take
    max_rows x (prompt + completion) x layers x 2 x key heads x head size x bytes.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_rows: int = 1024,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.max_rows = max_rows
        self.autocast = autocast
        self.policy_version = 0
        self.stop_ids = torch.tensor(sorted(stop_token_ids(model, tokenizer)), device=model.device)
        with evaluating(model):
            self.decoder_class = CachedDecoder if _cache_agrees(model) else RecomputingDecoder
        if self.decoder_class is RecomputingDecoder:
            log.warning("%s is decoded without a cache: its layers keep no plain keys and values", type(model).__name__)

    @torch.no_grad()
    def sample(self, requests: Sequence[SampleRequest], params: SamplingParams) -> list[list[Completion]]:
        if not requests:
            return []
        with evaluating(self.model), self.autocast():
            batch = self._decode(requests, params)
        return self._completions(requests, batch)

    def _decode(self, requests: Sequence[SampleRequest], params: SamplingParams) -> Batch:
        device = self.model.device
        batch = Batch(requests, params.max_tokens, device)
        num_slots = min(len(batch.seeds), max(self.max_rows, max(len(r.seeds) for r in requests)))
        longest = max(len(r.prompt_ids) for r in requests)
        decoder: Decoder = self.decoder_class(self.model, num_slots, longest + params.max_tokens)
        # Long prompts first: rows that stand in one batch then have similar widths.
        starts = torch.tensor([0] + [len(r.seeds) for r in requests]).cumsum(0).tolist()
        waiting = sorted(range(len(requests)), key=lambda i: len(requests[i].prompt_ids))
        while waiting or len(batch.completion):
            entering: list[int] = []
            free = num_slots - len(batch.completion)
            while waiting and len(requests[waiting[-1]].seeds) <= free:
                entering.append(waiting.pop())
                free -= len(requests[entering[-1]].seeds)
            if entering:
                self._admit(batch, decoder, [(requests[i], starts[i]) for i in entering])
            logits = decoder.logits(batch.newest, batch.position)
            draws = uniforms(batch.seeds[batch.completion], batch.lengths[batch.completion])
            batch.append(*draw_tokens(logits, draws, params))
            self._release(batch, decoder, params)
        return batch

    def _admit(self, batch: Batch, decoder: Decoder, entering: list[tuple[SampleRequest, int]]) -> None:
        device = self.model.device
        prompts = [torch.tensor(request.prompt_ids, device=device) for request, _ in entering]
        sizes = torch.tensor([len(request.seeds) for request, _ in entering], device=device)
        source = torch.arange(len(entering), device=device).repeat_interleave(sizes)
        completions = torch.cat([torch.arange(start, start + len(r.seeds), device=device) for r, start in entering])
        last = torch.stack([prompt[-1] for prompt in prompts])[source]
        position = torch.tensor([len(prompt) - 1 for prompt in prompts], device=device)[source]
        decoder.admit(batch.admit(completions, last, position), prompts, source)

    def _release(self, batch: Batch, decoder: Decoder, params: SamplingParams) -> None:
        stopped = torch.isin(batch.newest, self.stop_ids)
        if params.stop_strings:
            stopped |= self._ends_with_stop_string(batch, params.stop_strings)
        batch.stopped[batch.completion[stopped]] = True
        ended = stopped | (batch.lengths[batch.completion] == params.max_tokens)
        if ended.any():
            decoder.move(*batch.release(ended))

    def _ends_with_stop_string(self, batch: Batch, stop_strings: tuple[str, ...]) -> Tensor:
        # A stop string spans at most as many tokens as it has bytes, and one token more where it begins inside one.
        span = max(len(s.encode()) for s in stop_strings) + 1
        rows = zip(batch.completion.tolist(), batch.lengths[batch.completion].tolist(), strict=True)
        tails = [batch.tokens[c, max(0, n - span) : n].tolist() for c, n in rows]
        texts = self.tokenizer.batch_decode(tails)
        return torch.tensor([any(s in text for s in stop_strings) for text in texts], device=batch.tokens.device)

    def _completions(self, requests: Sequence[SampleRequest], batch: Batch) -> list[list[Completion]]:
        lengths, stopped = batch.lengths.tolist(), batch.stopped.tolist()
        tokens = [row[:n] for row, n in zip(batch.tokens.tolist(), lengths, strict=True)]
        logprobs = [row[:n] for row, n in zip(batch.logprobs.tolist(), lengths, strict=True)]
        texts = self.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        seeds = [seed for r in requests for seed in r.seeds]
        flat = iter(
            Completion(
                token_ids=tuple(tokens[i]),
                sampler_logprobs=tuple(logprobs[i]),
                finish_reason=FinishReason.STOP if stopped[i] else FinishReason.LENGTH,
                policy_version=self.policy_version,
                seed=seeds[i],
                text=texts[i],
            )
            for i in range(len(seeds))
        )
        return [[next(flat) for _ in r.seeds] for r in requests]

    @torch.no_grad()
    def score(self, prompt_ids: Sequence[int], completion_ids: Sequence[int]) -> list[float]:
        device = self.model.device
        tokens = torch.tensor([*prompt_ids, *completion_ids], device=device)
        zero = tokens.new_zeros(1)
        decoder: Decoder = self.decoder_class(self.model, 1, len(tokens))
        logprobs = []
        with evaluating(self.model), self.autocast():
            decoder.admit(zero, [tokens[: len(prompt_ids)]], zero)
            for i in range(len(prompt_ids) - 1, len(tokens) - 1):
                logits = decoder.logits(tokens[i : i + 1], tokens.new_tensor([i]))
                logprobs.append(logits[0].float().log_softmax(-1)[tokens[i + 1]].item())
        return logprobs

    def update_weights(self, named_tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Copy each tensor over the one of its name; a tensor that is already the model's own is left where it is."""
        own = dict(self.model.named_parameters(remove_duplicate=False)) | dict(self.model.named_buffers())
        with torch.no_grad():
            for name, tensor in named_tensors:
                if own[name].data_ptr() != tensor.data_ptr():
                    own[name].copy_(tensor)
        self.policy_version = version

    def close(self) -> None:
        pass


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


def stop_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Every token that ends a completion: the generation config may name several, the tokenizer one more."""
    generation = model.generation_config
    named = [generation.eos_token_id if generation is not None else None, tokenizer.eos_token_id]
    listed = [ids if isinstance(ids, list) else [ids] for ids in named]
    return {int(i) for ids in listed for i in ids if i is not None}
