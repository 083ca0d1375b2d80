"""Decoding steps recorded as CUDA graphs: the same work in the same memory is replayed by a single launch."""

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
    """Whether CUDA streams and graphs exist; the simulated CUDA device of the tests has none."""
    return device.type == "cuda" and torch.backends.cuda.is_built()


class QueryIndex(NamedTuple):
    """Maps the queries between two orders: by row, [rows, Hkv], and by group, [groups, Hkv, members], padded with the first row.

    to_groups: for each slot by group its slot by row; to_rows: the inverse.
    """

    to_groups: Tensor
    to_rows: Tensor


class Graphs:
    """The recorded steps, by kind. Except for the query index, all that a step reads and writes keeps its address while its graph is
    kept.

    The first step of a kind runs normally, which also initializes libraries; the second is recorded, which runs nothing, and replayed.
    All graphs share a memory pool, as no two run at once.
    """

    def __init__(self, device: torch.device) -> None:
        self.are_recorded = has_driver(device)
        self.stream = torch.cuda.Stream(device) if self.are_recorded else None  # the default stream cannot be recorded
        self.clear()

    def clear(self) -> None:
        """Drops all graphs and their memory: the tensors that they read are about to move."""
        self.seen: set[Hashable] = set()
        self.kept: dict[Hashable, Graph] = {}
        self.pool = torch.cuda.graph_pool_handle() if self.are_recorded else None

    def run(self, kind: Hashable, index: QueryIndex, step: Callable[[QueryIndex], T]) -> T:
        """The result of the step, which the next replay overwrites."""
        if not self.are_recorded or kind not in self.seen:
            self.seen.add(kind)
            return step(index)
        if kind not in self.kept:
            try:
                self.kept[kind] = self._record(step, index)
            except RuntimeError as error:
                log.warning("decoding goes on without CUDA graphs, slower: a step could not be recorded (%s)", error)
                self.are_recorded = False
                return step(index)
        return self.kept[kind].replay(index)

    def _record(self, step: Callable[[QueryIndex], Any], index: QueryIndex) -> Graph:
        mine, graph = QueryIndex(*(part.clone() for part in index)), torch.cuda.CUDAGraph()
        assert self.stream is not None
        with torch.cuda.stream(self.stream):
            # Not torch.cuda.graph, which releases all unused memory each time. Other threads may allocate meanwhile.
            graph.capture_begin(pool=self.pool, capture_error_mode="thread_local")
            try:
                found = step(mine)
            finally:
                graph.capture_end()
        return Graph(graph, mine, index, found)


@dataclass
class Graph:
    """A recorded step. index: its own memory for the query index; filled: the decoder's index that was copied there last."""

    graph: torch.cuda.CUDAGraph
    index: QueryIndex
    filled: QueryIndex
    found: Any

    def replay(self, index: QueryIndex) -> Any:
        if index is not self.filled:
            for mine, now in zip(self.index, index, strict=True):
                mine.copy_(now)
            self.filled = index
        self.graph.replay()
        return self.found
