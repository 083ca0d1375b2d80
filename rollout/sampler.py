"""The interface of all sampling engines: prompts and seeds in, completions out, weights replaced in place."""

from __future__ import annotations

import hashlib
import math
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from threading import Condition
from typing import Protocol

import torch

from rewards.errors import UserError
from rollout.records import Completion, FinishReason

NUMBERS_IN_CACHE = 1 << 20  # float32: 4 MiB


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How to sample. temperature 0 is greedy decoding: the most likely token, with its log-prob at temperature 1."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    stop_strings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise UserError(f"max_tokens is {self.max_tokens}: it must be at least 1")
        if self.temperature < 0:
            raise UserError(f"temperature is {self.temperature}: it must be 0 (greedy) or more")
        if "" in self.stop_strings:
            raise UserError(f"stop_strings is {self.stop_strings}: every text contains the empty string; leave it out")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p is {self.top_p}: it must be in (0, 1]; 1 keeps the whole distribution")


@dataclass(frozen=True)
class SampleRequest:
    """One prompt and a seed for each completion of it.

    max_tokens: the limit of these completions; None takes SamplingParams'.
    is_last: no later request continues these completions; otherwise an engine may keep their keys and values.
    continues: the completion (the number of its request in the queue, the index of its seed) whose tokens this prompt extends.
    """

    prompt_ids: tuple[int, ...]
    seeds: tuple[int, ...]
    max_tokens: int | None = None
    is_last: bool = True
    continues: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.max_tokens is not None and self.max_tokens < 1:
            raise UserError(f"max_tokens of a request is {self.max_tokens}: it must be at least 1")

    def limit(self, params: SamplingParams) -> int:
        return params.max_tokens if self.max_tokens is None else self.max_tokens


class RequestQueue:
    """Requests for one stream of completions. Any thread may put further ones until the queue is closed.

    A request's number is its place in the order in which requests were put. Whoever reads the stream closes the queue once no
    further request can come: an engine with nothing left to decode waits for requests until then.
    """

    def __init__(self) -> None:
        self._pending: deque[tuple[int, SampleRequest]] = deque()
        self._changed = Condition()
        self._ended = deque[tuple[int, int]]()
        self._num_put = 0
        self.is_closed = False

    @staticmethod
    def of(requests: Sequence[SampleRequest] | RequestQueue) -> RequestQueue:
        """The queue itself, or a closed queue of these requests."""
        if isinstance(requests, RequestQueue):
            return requests
        queue = RequestQueue()
        for request in requests:
            queue.put(request)
        queue.close()
        return queue

    def put(self, request: SampleRequest) -> int:
        """Adds a request and returns its number."""
        with self._changed:
            if self.is_closed:
                raise RuntimeError("the request queue is closed: its stream takes no further requests")
            number = self._num_put
            self._num_put += 1
            if request.seeds:
                self._pending.append((number, request))
                self._changed.notify_all()
            return number

    def close(self) -> None:
        with self._changed:
            self.is_closed = True
            self._changed.notify_all()

    def end(self, completion: tuple[int, int]) -> None:
        """No request continues this completion (its request's number, the index of its seed), although its own has not said so."""
        self._ended.append(completion)

    def take_ended(self) -> list[tuple[int, int]]:
        """For engines: the completions that end() was called with since the last time."""
        return [self._ended.popleft() for _ in range(len(self._ended))]

    def take(self, *, wait: bool, rows: float = math.inf) -> list[tuple[int, SampleRequest]]:
        """For engines: the first requests, with their numbers, whose completions fit into so many rows.

        wait: for at least one request, however large. An empty list then means that the queue is closed and empty.
        """
        if not (wait or self._pending):  # engines ask between all steps
            return []
        with self._changed:
            taken: list[tuple[int, SampleRequest]] = []
            if wait:
                self._changed.wait_for(lambda: self._pending or self.is_closed)
            while self._pending and (len(self._pending[0][1].seeds) <= rows or (wait and not taken)):
                taken.append(self._pending.popleft())
                rows -= len(taken[-1][1].seeds)
            return taken


Requests = Sequence[SampleRequest] | RequestQueue
Stream = Generator[tuple[int, int, Completion], None, None]
Text = tuple[tuple[int, ...], tuple[int, ...]]  # token ids of a prompt and of its completion
LOCAL_ENGINE = "the sampler"  # the name of an engine in this process


@dataclass(frozen=True)
class Tensors:
    """Named tensors that are made one by one, anew for each iteration: a restarted server needs them again, and a second copy of the
    whole model would take too much memory."""

    make: Callable[[], Iterator[tuple[str, torch.Tensor]]]

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        return self.make()


class Sampler(Protocol):
    """An engine.

    takes_adapters: weights are delivered by the adapted model's own parameter names; otherwise adapters are merged and weights are
        delivered by a plain model's names.
    """

    takes_adapters: bool

    @property
    def policy_version(self) -> int:
        """The version number of the weights that were delivered last."""
        ...

    @property
    def path(self) -> str:
        """A description of how this engine samples and why no faster way is possible, for reports."""
        ...

    def sample(self, requests: Sequence[SampleRequest], params: SamplingParams) -> list[list[Completion]]:
        """The completions of each request, in the order of its seeds. A seed fixes the draws, whatever else is in the batch."""
        ...

    def stream(self, requests: Requests, params: SamplingParams) -> Stream:
        """Yields the same completions as they end, each with the number of its request and the index of its seed.

        Requests that are put into a queue meanwhile are decoded as soon as the engine has free rows for them. The stream ends when
        the queue is closed and every completion has been yielded; a stream that is closed early closes its queue.
        """
        ...

    def score(self, prompt_ids: Sequence[int], completion_ids: Sequence[int]) -> list[float]:
        """Log-probs of one completion's tokens, by the first engine's probe()."""
        ...

    def probe(self, texts: Sequence[Text]) -> dict[str, list[list[float]]]:
        """Engine name -> for each text the log-probs of its completion's tokens at temperature 1, computed by the engine's own sampling
        path. The check of a delivery compares them with the trainer's."""
        ...

    def update_weights(self, named_tensors: Iterable[tuple[str, torch.Tensor]], version: int) -> None:
        """Replaces the weights in place. All processes must call it and iterate over all of named_tensors."""
        ...

    def fingerprints(self) -> dict[str, dict[str, torch.Tensor]]:
        """Engine name -> fingerprint() of each tensor that the engine computes with, by a plain model's names. Tensors that an engine
        cannot report are left out."""
        ...

    def sleep(self) -> None:
        """Releases memory that an update can use; nothing is sampled until the next delivery of weights."""
        ...

    def close(self) -> None:
        """Ends the engine."""
        ...


def completion_seed(run_seed: int, step: int, problem_id: str, sample_index: int, turn: int = 0) -> int:
    """A seed in [0, 2^63): a hash of these arguments, independent of the batch, the rank and earlier draws.

    turn: the number of completions that the same rollout had before.
    """
    key = f"{run_seed}/{step}/{problem_id}/{sample_index}" + (f"/turn {turn}" if turn else "")
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big") >> 1


def fingerprint(tensor: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    """W @ v of a matrix, or a stack of them, for a fixed random v; engines that hold only packed weights can compute it too. A vector
    is its own fingerprint. dtype: to which W is rounded first.

    On a CPU a few rows at a time, so that those that are cast stay in the cache.
    """
    tensor, dtype = tensor.detach(), dtype or tensor.dtype
    if tensor.dim() < 2:
        return tensor.to(dtype).float()
    v, rows = probe_vector(tensor.shape[-1], tensor.device), tensor.flatten(0, -2)
    at_once = max(1, NUMBERS_IN_CACHE // len(v)) if tensor.device.type == "cpu" else len(rows)
    return torch.cat([part.to(dtype).float() @ v for part in rows.split(at_once)]).view(tensor.shape[:-1])


@cache
def probe_vector(size: int, device: torch.device) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(0)).to(device) / size**0.5


def in_request_order(
    requests: Sequence[SampleRequest], stream: Iterable[tuple[int, int, Completion]]
) -> list[list[Completion]]:
    """The completions of a stream, in the order of the requests and their seeds."""
    found = {(i, j): completion for i, j, completion in stream}
    return [[found[i, j] for j in range(len(request.seeds))] for i, request in enumerate(requests)]


class SamplerBase:
    """The methods that are the same for all engines."""

    def sample(self: Sampler, requests: Sequence[SampleRequest], params: SamplingParams) -> list[list[Completion]]:
        return in_request_order(requests, self.stream(requests, params))

    def score(self: Sampler, prompt_ids: Sequence[int], completion_ids: Sequence[int]) -> list[float]:
        return next(iter(self.probe([(tuple(prompt_ids), tuple(completion_ids))]).values()))[0]


class ScriptedSampler(SamplerBase):
    """A sampler for tests: its completions are scripted.

    script: prompt tokens -> the completions' tokens, in the order of a request's seeds. texts: a completion's tokens -> its text.
    """

    takes_adapters = False
    path = "a script"

    def __init__(self, script: dict[tuple[int, ...], list[tuple[int, ...]]], texts: dict[tuple[int, ...], str]) -> None:
        self.script = script
        self.texts = texts
        self.policy_version = 0

    def stream(self, requests: Requests, params: SamplingParams) -> Stream:
        queue = RequestQueue.of(requests)
        try:
            while taken := queue.take(wait=True):
                for i, request in taken:
                    for j, completion in enumerate(self.completions(request)):
                        yield i, j, completion
        finally:
            queue.close()

    def completions(self, request: SampleRequest) -> list[Completion]:
        scripted = self.script[request.prompt_ids]
        return [self._completion(scripted[j], seed) for j, seed in enumerate(request.seeds)]

    def _completion(self, token_ids: tuple[int, ...], seed: int) -> Completion:
        return Completion(
            token_ids=token_ids,
            sampler_logprobs=(-1.0,) * len(token_ids),
            finish_reason=FinishReason.STOP,
            policy_version=self.policy_version,
            seed=seed,
            text=self.texts[token_ids],
        )

    def probe(self, texts: Sequence[Text]) -> dict[str, list[list[float]]]:
        return {LOCAL_ENGINE: [[-1.0] * len(completion) for _, completion in texts]}

    def update_weights(self, named_tensors: Iterable[tuple[str, torch.Tensor]], version: int) -> None:
        self.policy_version = version

    def fingerprints(self) -> dict[str, dict[str, torch.Tensor]]:
        return {}

    def sleep(self) -> None:
        pass

    def close(self) -> None:
        pass
