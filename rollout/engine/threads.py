"""Runs several streams of work at once, in threads whose tensor operations are single-threaded."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator, Sequence
from threading import Event, Thread
from typing import Any, TypeVar

import torch

T = TypeVar("T")


def run_in_threads(
    streams: Sequence[Callable[[Event], Iterator[T]]], on_stop: Callable[[], None] = lambda: None
) -> Iterator[T]:
    """Yields the items of all streams as they come. An exception in one stream ends all and is raised here.

    A decoding step consists of many operations of some microseconds: to divide each among cores costs more than it gains, while
    whole steps on different rows need no synchronization. Each stream is given an event that asks it to stop; on_stop wakes
    streams that wait for something else.
    """
    stop, found = Event(), queue.SimpleQueue()
    num_threads = torch.get_num_threads()

    def work(stream: Callable[[Event], Iterator[T]]) -> None:
        torch.set_num_threads(1)
        try:
            for item in stream(stop):
                found.put((item, None))
            found.put((None, StopIteration()))
        except BaseException as error:  # noqa: BLE001  raised again in the consumer's thread
            found.put((None, error))

    threads = [Thread(target=work, args=(stream,), daemon=True) for stream in streams]
    try:
        for thread in threads:
            thread.start()
        yield from _until_all_end(found, len(threads))
    finally:
        stop.set()
        on_stop()
        for thread in threads:
            thread.join()
        torch.set_num_threads(num_threads)


def _until_all_end(found: queue.SimpleQueue[Any], running: int) -> Iterator[Any]:
    while running:
        item, error = found.get()
        if error is None:
            yield item
        elif isinstance(error, StopIteration):
            running -= 1
        else:
            raise error
