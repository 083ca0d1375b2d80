"""The embedded engine: samples from any Hugging Face causal LM, on a CPU or a GPU, without further dependencies.

Every row of the batch has its own position, so that rows need no alignment. A prompt is processed once for its whole group; rows that
end leave the batch at once, and pending requests take their place. A later turn of a rollout takes up the keys and values of the one
before it. The engine's parts are in rollout/engine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from threading import Event, Lock
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rollout.engine.batch import Batch, Ended
from rollout.engine.decode_weights import weights_dtype
from rollout.engine.decoders import Decoder, choose_decoder, evaluating
from rollout.engine.draw import draw
from rollout.engine.fused_decoder import FusedDecoder
from rollout.engine.fused_model import FusedModel
from rollout.engine.kept import Context, KeptContexts, Resumed
from rollout.engine.sizes import Capacity
from rollout.engine.threads import run_in_threads
from rollout.records import Completion, FinishReason
from rollout.sampler import (
    LOCAL_ENGINE,
    RequestQueue,
    Requests,
    SamplerBase,
    SampleRequest,
    SamplingParams,
    Stream,
    Text,
    fingerprint,
)
from rollout.turn import TurnReader, stop_token_ids

Numbered = tuple[int, SampleRequest]  # a request with its number in the queue


class Entry(NamedTuple):
    """A request that enters the batch. resumed: the context that it continues, if that was kept."""

    number: int
    request: SampleRequest
    resumed: Resumed | None = None

    @property
    def first_prompt(self) -> int:
        """The length of the prompt that its group shares."""
        return self.resumed.context.first_prompt if self.resumed else len(self.request.prompt_ids)


class Origin(NamedTuple):
    """The place of a completion: its request and the index of its seed."""

    number: int
    seed_index: int
    request: SampleRequest
    first_prompt: int


class TorchSampler(SamplerBase):
    """Samples with the given model itself: if that is the trainer's own module, a delivery copies nothing.

    keeps_caches: on a GPU the cache of keys and values stays allocated between calls, with the CUDA graphs that read it, and is
        allocated for the longest completion at once. Otherwise it grows with the completions, and an update can use its memory.
    max_rows: the number of completions that are decoded at once. More is faster until memory is full; keys and values take
        (groups x prompt + max_rows x completion) x layers x 2 x key heads x head size x bytes.
    resumes: the keys and values of a completion that ended are kept for the request that continues it, as long as its row is free for
        them: they and the rows that are decoded are at most max_rows. Otherwise its whole prompt is processed again.
    decode_dtype: the dtype in which a model of Llama's architecture is decoded; if it is not the model's own, each delivery copies
        the weights to it.
    autocast: context factory for the forward of all other models.
    """

    takes_adapters = True

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_rows: int = 1024,
        keeps_caches: bool = False,
        resumes: bool = True,
        decode_dtype: torch.dtype | None = None,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.max_rows = max_rows
        self.keeps_caches = keeps_caches
        self.autocast = autocast
        self.policy_version = 0
        stop_ids = stop_token_ids(model, tokenizer)
        self.stop_ids = torch.tensor(sorted(stop_ids), dtype=torch.long, device=model.device)
        self.turns = TurnReader.of(tokenizer, stop_ids)
        dtype = decode_dtype or weights_dtype(model)
        self.choice = choose_decoder(model, dtype)
        self.decoder_class = self.choice.decoder
        self.fused = FusedModel(model, dtype) if self.decoder_class is FusedDecoder else None
        # On a GPU steps have few sizes, each captured once as a graph, and the host checks for ended rows every few steps only.
        self.bucketed = model.device.type == "cuda"
        self.check_every = 8 if self.bucketed and self.fused else 1
        self.kept: FusedDecoder | None = None
        self.resumes = resumes
        self.contexts: list[KeptContexts] = []  # of each open stream
        self.counting = Lock()
        self.num_prefilled = (
            0  # tokens of prompts that were processed, without the last ones, which decoding steps process
        )

    @property
    def path(self) -> str:
        device, dtype = self.model.device.type, self.fused.dtype if self.fused is not None else self.model.dtype
        with self.autocast():
            if self.fused is None and torch.is_autocast_enabled(device):
                dtype = torch.get_autocast_dtype(device)
        return f"embedded engine, {str(dtype).removeprefix('torch.')}: {self.choice}"

    def stream(self, requests: Requests, params: SamplingParams) -> Stream:
        """On a CPU as many threads decode as torch has, but no more than there are requests at first. These are dealt to the threads so
        that each gets prompts of similar lengths; later each thread takes requests as its rows become free."""
        queue = RequestQueue.of(requests)
        num_threads = torch.get_num_threads() if self.fused and not self.bucketed else 1
        by_length = sorted(queue.take(wait=True), key=prompt_length)
        parts = [part for n in range(num_threads) if (part := by_length[n::num_threads])]

        contexts = KeptContexts()

        def decode(part: list[Numbered], stop: Event) -> Stream:
            return self._decode(queue, part, params, contexts, stop)

        self.contexts.append(contexts)
        try:
            with self.fused.packed() if self.fused else nullcontext():
                if len(parts) > 1:
                    yield from run_in_threads([partial(decode, part) for part in parts], on_stop=queue.close)
                else:
                    yield from decode(by_length, Event())
        finally:
            queue.close()
            contexts.close()
            self.contexts.remove(contexts)

    @torch.no_grad()
    def _decode(
        self,
        queue: RequestQueue,
        pending: list[Numbered],
        params: SamplingParams,
        contexts: KeptContexts,
        stop: Event,
    ) -> Stream:
        """pending: the requests that this decoder begins with, sorted by the length of their prompts."""
        if not pending:
            return
        decoder = self._empty_decoder(self._capacity([Entry(*numbered) for numbered in pending], params))
        batch = decoder.batch
        max_rows = max(self.max_rows, *(len(request.seeds) for _, request in pending))
        origins: list[Origin] = []  # of each completion
        num_steps = 0
        while not stop.is_set():
            entering: list[Numbered] = []
            free = max_rows - len(batch)
            # Long prompts first: the rows of a batch then have similar widths.
            while pending and len(pending[-1][1].seeds) <= free:
                entering.append(pending.pop())
                free -= len(entering[-1][1].seeds)
            if not pending:
                entering += queue.take(rows=free, wait=not (entering or len(batch)))
            if entering:
                entries = [Entry(number, request, contexts.take(request)) for number, request in entering]
                origins += self._admit(decoder, entries, len(origins), params)
                contexts.trim(max_rows - len(batch))
            elif not len(batch):
                return
            self._step(batch, decoder, params)
            num_steps += 1
            if num_steps % self.check_every == 0 and batch.has_ended():
                rows = batch.ended_rows()
                done, sources, targets = batch.release()
                if self.resumes and decoder.can_resume:
                    contexts.drop(queue.take_ended())
                    self._keep(decoder, dict(zip(rows, done, strict=True)), origins, contexts)
                    contexts.trim(max_rows - len(batch))
                decoder.move(sources, targets, len(batch))
                for index, completion in self._completions(done, params.stop_strings):
                    yield origins[index].number, origins[index].seed_index, completion

    def _keep(self, decoder: Decoder, ended: dict[int, Ended], origins: list[Origin], contexts: KeptContexts) -> None:
        """ended: the completions that may be continued, by their rows."""
        kept = {
            row: (end, origin) for row, end in ended.items() if not (origin := origins[end.completion]).request.is_last
        }
        if not kept:
            return
        texts = [(*origin.request.prompt_ids, *end.tokens[:-1]) for end, origin in kept.values()]
        states = decoder.keep(list(kept), list(map(len, texts)))
        for (_, origin), text, state in zip(kept.values(), texts, states, strict=True):
            contexts.put((origin.number, origin.seed_index), Context(text, origin.first_prompt, state))

    def _step(self, batch: Batch, decoder: Decoder, params: SamplingParams) -> None:
        def advance(logits: Tensor) -> None:
            rows = slice(len(logits))
            tokens, logprobs = draw(logits, batch.seed[rows], batch.length[rows], params)
            batch.append(tokens, logprobs)
            if not params.stop_strings:
                batch.end(self._are_stops(tokens))

        newest, position = batch.newest[: len(batch)], batch.position[: len(batch)]
        if isinstance(decoder, FusedDecoder):
            decoder.run(newest, position, params, advance)
        else:
            advance(decoder.logits(newest, position))
        if params.stop_strings:  # needs the texts, on the host
            stopped = self._are_stops(newest) | self._ends_with_stop_string(batch, params.stop_strings)
            batch.end(stopped)

    def _are_stops(self, tokens: Tensor) -> Tensor:
        return (tokens[:, None] == self.stop_ids).any(-1)

    def _capacity(self, entries: Sequence[Entry], params: SamplingParams) -> Capacity:
        sizes = [len(entry.request.seeds) for entry in entries]
        rows = min(sum(sizes), max(self.max_rows, *sizes))
        longest = max(entry.first_prompt for entry in entries)
        # One column more than tokens: a row that ended may be decoded further until the host checks.
        width = max(len(e.request.prompt_ids) - e.first_prompt + e.request.limit(params) for e in entries) + 1
        return Capacity(rows=rows, groups=min(len(sizes), rows), shared_width=max(1, longest - 1), width=width)

    def _empty_decoder(self, capacity: Capacity) -> Decoder:
        if self.fused is None:
            assert not issubclass(self.decoder_class, FusedDecoder)
            return self.decoder_class(self.model, self._forwarding, capacity)
        if not self.bucketed:
            return FusedDecoder(self.fused, capacity)
        if self.kept is None:
            self.kept = FusedDecoder(self.fused, capacity, bucketed=True, reserves=self.keeps_caches)
        else:
            self.kept.open(capacity)
        return self.kept

    @contextmanager
    def _forwarding(self) -> Iterator[None]:
        with evaluating(self.model), self.autocast():
            yield

    def _admit(self, decoder: Decoder, entries: Sequence[Entry], first: int, params: SamplingParams) -> list[Origin]:
        """Adds rows for the completions of these requests, which are numbered from `first`. -> where each comes from"""
        decoder.reserve(self._capacity(entries, params))
        entries = sorted(entries, key=lambda entry: entry.resumed is not None)
        requests, device = [entry.request for entry in entries], self.model.device
        prompts = [torch.tensor(request.prompt_ids, device=device) for request in requests]
        origins = [Origin(e.number, j, e.request, e.first_prompt) for e in entries for j in range(len(e.request.seeds))]
        numbers = [(len(r.prompt_ids) - 1, r.limit(params), seed) for r in requests for seed in r.seeds]
        position, limits, seeds = torch.tensor(numbers, device=device).T
        completions = torch.arange(first, first + len(seeds), device=device)
        sizes = torch.tensor([len(request.seeds) for request in requests], device=device)
        source = torch.arange(len(requests), device=device).repeat_interleave(sizes)
        last = torch.stack([prompt[-1] for prompt in prompts])[source]
        rows = decoder.batch.admit(completions, seeds, last, position, limits)
        num_new = sum(entry.resumed is None for entry in entries)
        is_new = source < num_new
        if num_new:
            decoder.admit(rows[is_new], prompts[:num_new], source[is_new])
        of_rows = [(entries[i].resumed, prompts[i]) for i in source[~is_new].tolist()]
        resumed, added = [r for r, _ in of_rows if r], [prompt[r.start : -1] for r, prompt in of_rows if r]
        if resumed:
            decoder.resume(rows[~is_new], resumed, added)
        with self.counting:
            self.num_prefilled += sum(map(len, added)) + sum(len(prompt) - 1 for prompt in prompts[:num_new])
        return origins

    def _ends_with_stop_string(self, batch: Batch, stop_strings: tuple[str, ...]) -> Tensor:
        # A stop string spans at most as many tokens as it has bytes, and one more if it begins inside a token.
        span = max(len(s.encode()) for s in stop_strings) + 1
        lengths = batch.length[: len(batch)].tolist()
        tails = [batch.tokens[row, max(0, n - span) : n].tolist() for row, n in enumerate(lengths)]
        texts = self.tokenizer.batch_decode(tails)
        return torch.tensor([any(s in text for s in stop_strings) for text in texts], device=batch.tokens.device)

    def _completions(self, done: list[Ended], stop_strings: tuple[str, ...]) -> Iterator[tuple[int, Completion]]:
        texts = self.turns.texts([row.tokens for row in done], stop_strings)
        for row, text in zip(done, texts, strict=True):
            yield (
                row.completion,
                Completion(
                    token_ids=tuple(row.tokens),
                    sampler_logprobs=tuple(row.logprobs),
                    finish_reason=FinishReason.STOP if row.stopped else FinishReason.LENGTH,
                    policy_version=self.policy_version,
                    seed=row.seed,
                    text=text,
                ),
            )

    @torch.no_grad()
    def probe(self, texts: Sequence[Text]) -> dict[str, list[list[float]]]:
        """Decodes all texts as one batch, by which graphs that read other memory are found; where there are none one forward does.
        A completion that is shorter than the longest repeats its last token."""
        if self.fused is not None and not self.bucketed:
            return {LOCAL_ENGINE: self.fused.logprobs(texts)}
        device, longest = self.model.device, max(len(completion) for _, completion in texts)
        prompts = [torch.tensor(prompt, device=device) for prompt, _ in texts]
        targets = torch.tensor([c + c[-1:] * (longest - len(c)) for _, c in texts], device=device)
        rows, shared_width = torch.arange(len(texts), device=device), max(1, *(len(p) - 1 for p in prompts))
        position = torch.tensor([len(p) - 1 for p in prompts], device=device)
        newest, found = torch.stack([p[-1] for p in prompts]), []
        with self.fused.packed() if self.fused else nullcontext():
            decoder = self._empty_decoder(Capacity(len(rows), len(rows), shared_width, width=longest))
            decoder.admit(rows, prompts, rows)
            for n in range(longest):
                logprobs = decoder.logits(newest, position + n).float().log_softmax(-1)
                newest = targets[:, n]
                found.append(logprobs[rows, newest])
        table = torch.stack(found, dim=1).tolist()
        return {LOCAL_ENGINE: [row[: len(completion)] for row, (_, completion) in zip(table, texts, strict=True)]}

    def _own(self) -> dict[str, Tensor]:
        return dict(self.model.named_parameters(remove_duplicate=False)) | dict(self.model.named_buffers())

    @torch.no_grad()
    def update_weights(self, named_tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Copies each tensor to the model's tensor of that name, unless it is that tensor already."""
        for contexts in self.contexts:
            contexts.close()
        own = self._own()
        for name, tensor in named_tensors:
            if own[name].data_ptr() != tensor.data_ptr():
                own[name].copy_(tensor)
        if self.fused is not None and not self.fused.refresh():
            self.kept = None  # its graphs read the old addresses
        self.policy_version = version

    @torch.no_grad()
    def fingerprints(self) -> dict[str, dict[str, Tensor]]:
        named = self.fused.named_weights() if self.fused is not None else self._own().items()
        return {LOCAL_ENGINE: {name: fingerprint(tensor) for name, tensor in named}}

    def sleep(self) -> None:
        """Releases the cache of keys and values unless keeps_caches; the next call records its graphs anew. The memory goes back to
        torch's allocator."""
        if not self.keeps_caches:
            self.kept = None

    def close(self) -> None:
        self.kept = None


def prompt_length(numbered: Numbered) -> int:
    return len(numbered[1].prompt_ids)
