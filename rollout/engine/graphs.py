"""Steps recorded as CUDA graphs: what is the same work in the same memory is replayed by one launch."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

log = logging.getLogger(__name__)

T = TypeVar("T")


def has_driver(device: torch.device) -> bool:
    """Whether there are streams and graphs: a CUDA device that is made up for a test has none."""
    return device.type == "cuda" and torch.backends.cuda.is_built()


class Places(NamedTuple):
    """Where queries stand: by row, [rows, Hkv], and by group, [groups, Hkv, members], filled up with the first.

    to_groups: of each place by group the place by row; to_rows the other way.
    """

    to_groups: Tensor
    to_rows: Tensor


class Graphs:
    """Steps by what they depend on. But for its places, all that a step reads and writes has one address while its graph is kept.

    The first step of a kind is run as it is, which also lets libraries set themselves up; the second is recorded, which runs
    nothing, and replayed. One memory pool serves all: no two are in use at once.
    """

    def __init__(self, device: torch.device) -> None:
        self.are_recorded = has_driver(device)
        self.stream = torch.cuda.Stream(device) if self.are_recorded else None  # the default one cannot be recorded
        self.clear()

    def clear(self) -> None:
        """Let all go, with the memory that they work in: what they read will stand elsewhere."""
        self.seen: set[Hashable] = set()
        self.kept: dict[Hashable, Graph] = {}
        self.pool = torch.cuda.graph_pool_handle() if self.are_recorded else None

    def run(self, kind: Hashable, places: Places, step: Callable[[Places], T]) -> T:
        """What the step gives. The next replay overwrites it."""
        if not self.are_recorded or kind not in self.seen:
            self.seen.add(kind)
            return step(places)
        if kind not in self.kept:
            try:
                self.kept[kind] = self._record(step, places)
            except RuntimeError as error:
                log.warning("decoding goes on without CUDA graphs, slower: a step could not be recorded (%s)", error)
                self.are_recorded = False
                return step(places)
        return self.kept[kind].replay(places)

    def _record(self, step: Callable[[Places], Any], places: Places) -> Graph:
        mine, graph = Places(*(place.clone() for place in places)), torch.cuda.CUDAGraph()
        assert self.stream is not None
        with torch.cuda.stream(self.stream):
            # Not torch.cuda.graph, which gives back all unused memory each time. Other threads may go on allocating meanwhile.
            graph.capture_begin(pool=self.pool, capture_error_mode="thread_local")
            try:
                found = step(mine)
            finally:
                graph.capture_end()
        return Graph(graph, mine, places, found)


@dataclass
class Graph:
    """places: the memory that it reads them from; filled: which of the decoder's places stand there now."""

    graph: torch.cuda.CUDAGraph
    places: Places
    filled: Places
    found: Any

    def replay(self, places: Places) -> Any:
        if places is not self.filled:
            for mine, now in zip(self.places, places, strict=True):
                mine.copy_(now)
            self.filled = places
        self.graph.replay()
        return self.found
