"""The contract of every engine that samples: prompts and seeds in, completions out, weights replaced in place."""

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


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """temperature 0 is greedy: the most likely token, its log-prob taken at temperature 1."""

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
            raise UserError(f"stop_strings is {self.stop_strings}: an empty string is in every text; leave it out")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p is {self.top_p}: it must be in (0, 1]; 1 keeps the whole distribution")


@dataclass(frozen=True)
class SampleRequest:
    """One prompt, and a seed for each completion of it. max_tokens: the limit of these completions, where it is not the params'."""

    prompt_ids: tuple[int, ...]
    seeds: tuple[int, ...]
    max_tokens: int | None = None

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
Text = tuple[tuple[int, ...], tuple[int, ...]]  # the tokens of a prompt and of its completion
ALONE = "the sampler"  # an engine in this process


@dataclass(frozen=True)
class Tensors:
    """Tensors with their names, each made as its turn comes, anew whenever they are gone through: a server that comes back needs them
    again, and nobody should keep a whole model for that."""

    make: Callable[[], Iterator[tuple[str, torch.Tensor]]]

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        return self.make()


class Sampler(Protocol):
    """takes_adapters: weights are delivered under the adapted model's own names; otherwise under a plain model's, merged."""

    takes_adapters: bool

    @property
    def policy_version(self) -> int:
        """The version that the last weights were delivered as."""
        ...

    @property
    def path(self) -> str:
        """How it samples, and why not faster, for people to read."""
        ...

    def sample(self, requests: Sequence[SampleRequest], params: SamplingParams) -> list[list[Completion]]:
        """The completions of each request, in the order of its seeds. A seed fixes the draws, whatever else is asked for."""
        ...

    def stream(self, requests: Requests, params: SamplingParams) -> Stream:
        """The same completions as they end, each with the number of its request and the index of its seed.

        Requests that are put into a queue meanwhile are decoded as soon as the engine has free rows for them. The stream ends when
        the queue is closed and every completion has been given out; a stream that is closed early closes its queue.
        """
        ...

    def score(self, prompt_ids: Sequence[int], completion_ids: Sequence[int]) -> list[float]:
        """Log-probs of one completion's tokens; what the first engine's probe() says."""
        ...

    def probe(self, texts: Sequence[Text]) -> dict[str, list[list[float]]]:
        """By the name of each engine that this sampler asks: of each text the log-probs of its completion's tokens at temperature 1,
        by the engine's own sampling path. The proof of delivery reads them."""
        ...

    def update_weights(self, named_tensors: Iterable[tuple[str, torch.Tensor]], version: int) -> None:
        """named_tensors: by all processes, each of which goes through all of them."""
        ...

    def images(self) -> dict[str, dict[str, torch.Tensor]]:
        """By the name of each engine: image() of the tensors that it computes with, by a plain model's names. What an engine cannot
        tell is left out."""
        ...

    def rest(self) -> None:
        """Nothing will be sampled for a while: memory that an update could use may be let go."""
        ...

    def close(self) -> None: ...


def completion_seed(run_seed: int, step: int, problem_id: str, sample_index: int, turn: int = 0) -> int:
    """A seed in [0, 2^63) that depends on nothing but what it is for: not on the batch, the rank or earlier draws.

    turn: how many completions of the same rollout came before.
    """
    key = f"{run_seed}/{step}/{problem_id}/{sample_index}" + (f"/turn {turn}" if turn else "")
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big") >> 1


def image(tensor: torch.Tensor) -> torch.Tensor:
    """What a matrix, or a stack of them, makes of a fixed direction, as an engine that keeps it packed can tell too; a vector is its
    own."""
    tensor = tensor.detach().float()
    return tensor @ direction(tensor.shape[-1], tensor.device) if tensor.dim() > 1 else tensor


@cache
def direction(size: int, device: torch.device) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(0)).to(device) / size**0.5


def gathered(
    requests: Sequence[SampleRequest], stream: Iterable[tuple[int, int, Completion]]
) -> list[list[Completion]]:
    """What a stream gave, in the order asked for."""
    found = {(i, j): completion for i, j, completion in stream}
    return [[found[i, j] for j in range(len(request.seeds))] for i, request in enumerate(requests)]


class SamplerBase:
    """What every engine does in one way."""

    def sample(self: Sampler, requests: Sequence[SampleRequest], params: SamplingParams) -> list[list[Completion]]:
        return gathered(requests, self.stream(requests, params))

    def score(self: Sampler, prompt_ids: Sequence[int], completion_ids: Sequence[int]) -> list[float]:
        return next(iter(self.probe([(tuple(prompt_ids), tuple(completion_ids))]).values()))[0]


class ScriptedSampler(SamplerBase):
    """A sampler for tests: gives out the token sequences it was told to, by prompt, in turn."""

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
        return {ALONE: [[-1.0] * len(completion) for _, completion in texts]}

    def update_weights(self, named_tensors: Iterable[tuple[str, torch.Tensor]], version: int) -> None:
        self.policy_version = version

    def images(self) -> dict[str, dict[str, torch.Tensor]]:
        return {}

    def rest(self) -> None:
        pass

    def close(self) -> None:
        pass
