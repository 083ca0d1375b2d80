"""Keys and values of completions that ended, until a request continues them: a rollout's next turn begins with all tokens of the last."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from threading import Lock
from typing import Any

from rollout.sampler import SampleRequest


@dataclass(frozen=True)
class Context:
    """The tokens of a completion that ended, and a decoder's copy of their keys and values.

    token_ids: the prompt and the completion, without the last token, which no step has processed. first_prompt: the length of the prompt
    of the rollout's first turn, which its group shares. states: as the decoder's keep() returns and its resume() takes it.
    """

    token_ids: tuple[int, ...]
    first_prompt: int
    states: Any


@dataclass(frozen=True)
class Resumed:
    """A context that a request continues. start: how many of its tokens, from the first on, the request's prompt begins with."""

    context: Context
    start: int


class KeptContexts:
    """The contexts of one stream, by request number and index of the seed. The decoding threads share it."""

    def __init__(self) -> None:
        self._contexts = OrderedDict[tuple[int, int], Context]()  # in the order in which the completions ended
        self._lock = Lock()
        self._is_closed = False

    def __len__(self) -> int:
        return len(self._contexts)

    def put(self, completion: tuple[int, int], context: Context) -> None:
        with self._lock:
            if not self._is_closed:
                self._contexts[completion] = context

    def take(self, request: SampleRequest) -> Resumed | None:
        """Removes and returns the context of the completion that this request continues; None if it is not kept, or if not even
        the first prompt is the same. The request's last token does not count: its logits are needed, so a step processes it."""
        with self._lock:
            context = self._contexts.pop(request.continues, None) if request.continues is not None else None
        if context is None:
            return None
        start = common_length(context.token_ids, request.prompt_ids[:-1])
        return Resumed(context, start) if start >= context.first_prompt - 1 else None

    def drop(self, completions: Iterable[tuple[int, int]]) -> None:
        with self._lock:
            for completion in completions:
                self._contexts.pop(completion, None)

    def trim(self, most: int) -> None:
        """Drops the contexts of the completions that ended first until at most this many are left."""
        with self._lock:
            while len(self._contexts) > max(0, most):
                self._contexts.popitem(last=False)

    def close(self) -> None:
        """Drops all contexts and keeps no further ones: the stream ends, or the weights have changed."""
        with self._lock:
            self._is_closed = True
            self._contexts.clear()


def common_length(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    """The number of tokens with which both begin."""
    if a == b[: len(a)]:
        return len(a)
    return next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
