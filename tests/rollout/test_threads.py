"""Streams in threads: every item comes once, errors are raised in the consumer, and no thread is left."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from threading import Event

import pytest
import torch

from rollout.engine.threads import run_in_threads


def numbers(first: int):
    def stream(stop: Event) -> Iterator[int]:
        assert torch.get_num_threads() == 1
        yield from range(first, first + 50)

    return stream


def endless(stop: Event) -> Iterator[int]:
    while not stop.is_set():
        yield 0


def failing(stop: Event) -> Iterator[int]:
    yield 0
    raise ValueError("as it should")


def test_everything_comes_once_and_threads_are_as_before() -> None:
    threads, running = torch.get_num_threads(), threading.active_count()
    assert sorted(run_in_threads([numbers(0), numbers(50), numbers(100)])) == list(range(150))
    assert (torch.get_num_threads(), threading.active_count()) == (threads, running)


def test_an_error_in_one_ends_all() -> None:
    running = threading.active_count()
    with pytest.raises(ValueError, match="as it should"):
        list(run_in_threads([endless, failing]))
    assert threading.active_count() == running


def test_a_consumer_that_stops_ends_the_streams() -> None:
    threads, running = torch.get_num_threads(), threading.active_count()
    stream = run_in_threads([endless, endless])
    next(stream)
    stream.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert (torch.get_num_threads(), threading.active_count()) == (threads, running)
