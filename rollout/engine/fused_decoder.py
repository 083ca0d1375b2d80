"""Decodes with a FusedModel. A prompt's keys are stored once for its group, and read once by all rows of the group.

A step depends on the host through five sizes only. If they are rounded up to buckets, all steps of a bucket are the same work in the
same memory, which a GPU replays as one graph.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from rollout.engine.batch import Batch, closing_moves, enlarged
from rollout.engine.extension import Extension
from rollout.engine.fused_model import Attend, FusedLayer, FusedModel, causal_attention
from rollout.engine.graphs import Graphs, QueryIndex
from rollout.engine.kept import Resumed
from rollout.engine.kernels import can_compute
from rollout.engine.sizes import Capacity, Sizes, whole_blocks
from rollout.engine.step_attention import StepKeys, compiled_attend, index_queries, torch_attend

T = TypeVar("T")

GROWTH = 16  # columns by which own keys grow: products read a whole block up to twice as fast as a part of a wider one
BLOCK = 256  # the same where sizes are bucketed: a graph is useful only until its buffers are replaced
PREFILL_TOKENS = 4096  # per forward: enough for large products, few enough for the CPU's cache


@dataclass(eq=False)
class Prefix:
    """The first tokens of a prompt that a group shares, all but the last one. states: a copy of their keys and values, [layers, 2, Hkv,
    length, D], once a row of the group is kept."""

    length: int
    states: Tensor | None = None


class KeptStates(NamedTuple):
    """own: a row's own keys and values, [layers, 2, Hkv, tokens, D]."""

    prefix: Prefix
    own: Tensor


class FusedDecoder:
    """Rows and groups 0..N-1 are in the first slots of their buffers; one that leaves is replaced by one from the end.

    A row writes its own keys from column 0 on, beginning with the prompt's last token, so that prefill needs no logits.
    A row that is resumed joins the group of its prompt again, and its own columns hold all that was written behind it.
    bucketed: round sizes up to buckets, as on a GPU. reserves: allocate all columns of own keys at once instead of growing them.
    """

    can_resume = True

    def __init__(
        self, model: FusedModel, capacity: Capacity, *, bucketed: bool = False, reserves: bool = False
    ) -> None:
        self.model, self.bucketed, self.reserves = model, bucketed, reserves
        self.key_heads = model.layers[0].key_heads
        self.windows = {layer.window for layer in model.layers}
        self.is_compiled = not bucketed and can_compute(model.layers[0].head_size, model.dtype, model.device)
        self.graphs = Graphs(model.device)
        self.release()
        self.open(capacity)

    def release(self) -> None:
        """Releases the memory of keys and values, and the graphs that read it."""
        self.graphs.clear()
        self.capacity = Capacity(0, 0, 0, 0)
        self.shared, self.own = torch.empty(0), list[Tensor]()

    def open(self, capacity: Capacity) -> None:
        """Starts without rows and with at least this capacity. Buffers that are too small are released before larger ones are made."""
        merged = Capacity(*map(max, self.capacity, capacity.bucketed() if self.bucketed else capacity))
        if merged != self.capacity:
            self.release()
            self._allocate(merged)
        self.batch.clear()
        self.prefixes: list[Prefix] = []  # of each group
        self.extension: Extension | None = None  # to process with the next step
        self.num_rows = self.width = 0
        self.is_aligned = True  # every row writes the same column
        self._forget_order()

    def _allocate(self, capacity: Capacity) -> None:
        self.capacity = capacity
        layers, heads, size = self.model.layers, self.key_heads, self.model.layers[0].head_size
        zeros = partial(torch.zeros, device=self.model.device)
        states = partial(zeros, dtype=self.model.dtype)  # index 0: keys, 1: values
        width = capacity.width if self.reserves else min(BLOCK, capacity.width) if self.bucketed else 0
        self.shared = states(len(layers), 2, capacity.groups, heads, capacity.shared_width, size)
        self.own = [states(2, capacity.rows, heads, width, size) for _ in layers]
        # For each row: its newest token, that token's position, the number of shared prompt tokens, its group.
        self.rows = zeros(4, capacity.rows, dtype=torch.long)
        self.batch = Batch(capacity.rows, capacity.width, self.model.device)
        self._name_parts()

    def _name_parts(self) -> None:
        self.newest, self.position, self.prefix, self.group = self.rows
        widest = max(self.capacity.shared_width, self.capacity.width + GROWTH)
        self.columns = torch.arange(widest, device=self.model.device)

    def reserve(self, more: Capacity) -> None:
        """Copies buffers that are too small into larger ones, layer by layer for own keys. Graphs are dropped, as addresses change."""
        rows, groups = len(self.batch) + more.rows, len(self.prefixes) + more.groups
        capacity = self.capacity.holding(more._replace(rows=rows, groups=groups))
        if capacity == self.capacity:
            return
        self.graphs.clear()
        rows, groups, shared_width, width = (size - has for size, has in zip(capacity, self.capacity, strict=True))
        self.shared = enlarged(self.shared, 0, 0, groups, 0, shared_width, 0)
        for layer, own in enumerate(self.own):
            self.own[layer] = enlarged(own, 0, rows, 0, width if self.reserves else 0, 0)
        self.rows, self.capacity = enlarged(self.rows, 0, rows), capacity
        self.batch.grow(capacity.rows, capacity.width)
        self._name_parts()

    def _grow(self) -> None:
        """Adds columns to own keys, a layer at a time, so that no second copy of all layers exists."""
        has = self.own[0].shape[3]
        block = BLOCK if self.bucketed else GROWTH
        more = -(-(self.width - has) // block) * block
        if self.is_compiled:  # reads filled columns only, so that a row may be wide
            more = max(more, has)
        if self.bucketed or self.is_compiled:
            more = min(more, self.capacity.width - has)
        self.graphs.clear()
        for layer, own in enumerate(self.own):
            self.own[layer] = enlarged(own, 0, 0, 0, more, 0)

    def admit(self, rows: Tensor, prompts: list[Tensor], source: Tensor) -> None:
        first = len(self.prefixes)
        self.prefixes += [Prefix(len(prompt) - 1) for prompt in prompts]
        self.is_aligned = self.num_rows == 0 and not self.bucketed
        self._enter(rows, first + source)
        while prompts:
            count = max(1, PREFILL_TOKENS // max(map(len, prompts)))
            self._prefill(first, [prompt[:-1] for prompt in prompts[:count]])
            first, prompts = first + count, prompts[count:]

    def _enter(self, rows: Tensor, groups: Tensor) -> None:
        lengths = torch.tensor([prefix.length for prefix in self.prefixes], device=rows.device)
        self.group[rows], self.prefix[rows] = groups, lengths[groups]
        self.num_rows += len(rows)
        self._forget_order()

    def _forget_order(self) -> None:
        """Rows have come or gone: what orders them by group is made anew by the next step."""
        self.query_index: tuple[Sizes, QueryIndex] | None = None
        self.order: Tensor | None = None

    def keep(self, rows: Sequence[int], lengths: Sequence[int]) -> list[KeptStates]:
        """Copies of the keys and values of the first tokens of each row, so many of them. A prefix is copied once for its group."""
        groups, kept = self.group[: self.num_rows].tolist(), []
        for row, length in zip(rows, lengths, strict=True):
            prefix = self.prefixes[groups[row]]
            if prefix.states is None:
                prefix.states = self.shared[:, :, groups[row], :, : prefix.length].clone()
            own = torch.stack([own[:, row, :, : length - prefix.length] for own in self.own])
            kept.append(KeptStates(prefix, own))
        return kept

    def resume(self, rows: Tensor, resumed: Sequence[Resumed], added: Sequence[Tensor]) -> None:
        """Rows take up contexts that were kept. added: the tokens behind what is reused of each, without the last one of the request."""
        first, states = self.num_rows, [r.context.states for r in resumed]
        starts = [r.start - kept.prefix.length for r, kept in zip(resumed, states, strict=True)]
        self._enter(rows, torch.tensor([self._group_of(kept.prefix) for kept in states], device=rows.device))
        self.is_aligned = False
        self.width = max(self.width, *(start + len(new) for start, new in zip(starts, added, strict=True)))
        if self.width > self.own[0].shape[3]:
            self._grow()
        for row, (kept, start) in enumerate(zip(states, starts, strict=True), first):
            for own, layer in zip(self.own, kept.own, strict=True):
                own[:, row, :, :start] = layer[:, :, :start]
        self._extend(first, starts, added)

    def _extend(self, first: int, starts: Sequence[int], added: Sequence[Tensor]) -> None:
        """Processes added tokens: as part of the next step, whose products are barely slower for them; alone where the steps are graphs."""
        count = max(1, PREFILL_TOKENS // max(1, *map(len, added)))
        for n in range(0, len(added), count):
            self._run_extension()
            part = added[n : n + count]
            if any(map(len, part)):
                prefix = self.prefix[first + n : first + n + len(part)]
                self.extension = Extension.of(first + n, starts[n : n + len(part)], part, prefix)
        if self.bucketed:
            self._run_extension()

    def _run_extension(self) -> None:
        new, self.extension = self.extension, None
        if new is not None:
            self.model.states(new.tokens, new.positions, self._attend_added(new))

    def _attend_added(self, new: Extension) -> Attend:
        groups = self.group[new.first : new.first + new.count]
        shared_width = max(1, int(new.prefix.max()))
        masks = {window: new.mask(shared_width, window) for window in self.windows}

        def attend(layer: FusedLayer, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            own = self.own[layer.index]
            for target, states in zip(own, (key, value), strict=True):
                target[new.rows, :, new.columns] = states
            shared = self.shared[layer.index, :, :, :, :shared_width]
            return new.attention(layer, query, shared, own, groups, masks[layer.window])

        return attend

    def _group_of(self, prefix: Prefix) -> int:
        """The group that has this prefix; a new one if no row of it is decoded."""
        if prefix not in self.prefixes:
            assert prefix.states is not None  # a row was kept
            self.prefixes.append(prefix)
            self.shared[:, :, len(self.prefixes) - 1, :, : prefix.length] = prefix.states
        return self.prefixes.index(prefix)

    def _prefill(self, first: int, prompts: list[Tensor]) -> None:
        block = pad_sequence(prompts, batch_first=True)  # right-padded: causal hides it
        count, width = block.shape

        def attend(layer: FusedLayer, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            for states, kept in zip((key, value), self.shared[layer.index, :, first : first + count], strict=True):
                kept[:, :, :width] = states.unflatten(0, (count, width)).transpose(1, 2)
            return causal_attention(layer, query, key, value, num_texts=count)

        if width > 0:
            self.model.states(block.flatten(), self.columns[:width].repeat(count), attend)

    def logits(self, tokens: Tensor, positions: Tensor) -> Tensor:
        return self.run(tokens, positions, "logits", lambda logits: logits)[: self.num_rows]

    def run(self, tokens: Tensor, positions: Tensor, kind: Hashable, then: Callable[[Tensor], T]) -> T:
        """Runs a step and returns then(logits). On a GPU both are one graph, so `then` may write to tensors but not replace them.

        kind: identifies `then`. The logits are those of all rows of a bucket, of which the first num_rows hold completions.
        """
        self.newest[: self.num_rows], self.position[: self.num_rows] = tokens, positions
        self.width = min(self.width + 1, self.capacity.width)
        if self.width > self.own[0].shape[3]:
            self._grow()
        if self.is_compiled:
            group = self.group[: self.num_rows]
            if self.order is None:
                self.order = group.argsort(stable=True)
            return then(self._forward(self.num_rows, compiled_attend(self._keys(self.num_rows), group, self.order)))
        if self.query_index is None:
            widest, group = max(1, *(p.length for p in self.prefixes)), self.group[: self.num_rows]
            self.query_index = index_queries(group, widest, len(self.prefixes), self.key_heads, bucketed=self.bucketed)
        sizes, index = self.query_index
        sizes = sizes._replace(width=whole_blocks(self.width) if self.bucketed else self.own[0].shape[3])
        return self.graphs.run((sizes, kind), index, lambda index: then(self._step(sizes, index)))

    def _step(self, sizes: Sizes, index: QueryIndex) -> Tensor:
        return self._forward(sizes.rows, torch_attend(self.model, self._keys(sizes.rows), sizes, index))

    def _keys(self, rows: int) -> StepKeys:
        position, prefix = self.position[:rows], self.prefix[:rows]
        return StepKeys(
            shared=self.shared,
            own=self.own,
            position=position,
            prefix=prefix,
            at=position - prefix,
            aligned=self.width - 1 if self.is_aligned else None,
            columns=self.columns,
        )

    def _forward(self, rows: int, attend: Attend) -> Tensor:
        """The logits of the newest tokens of the first rows, and with them the states of an extension's tokens."""
        tokens, positions, new = self.newest[:rows], self.position[:rows], self.extension
        if new is None:
            return self.model.logits(self.model.states(tokens, positions, attend))
        self.extension, attend_added = None, self._attend_added(new)

        def attend_both(layer: FusedLayer, *states: Tensor) -> Tensor:
            added = attend_added(
                layer, *(state[rows:] for state in states)
            )  # first, as rows read the keys that it writes
            return torch.cat([attend(layer, *(state[:rows] for state in states)), added])

        tokens, positions = torch.cat([tokens, new.tokens]), torch.cat([positions, new.positions])
        return self.model.logits(self.model.states(tokens, positions, attend_both)[:rows])

    def move(self, sources: Tensor, targets: Tensor, num_rows: int) -> None:
        for own in self.own:
            own[:, targets, :, : self.width] = own[:, sources, :, : self.width]
        for state in (self.position, self.prefix, self.group):
            state[targets] = state[sources]
            state[num_rows:] = 0  # rows of a bucket without a completion write to their first column
        self.num_rows = num_rows
        self._forget_order()
        self.width = int((self.position - self.prefix)[:num_rows].max()) + 1 if num_rows else 0
        self._drop_groups()

    def _drop_groups(self) -> None:
        """Removes groups without rows."""
        group = self.group[: self.num_rows]
        gone = group.bincount(minlength=len(self.prefixes)) == 0
        sources, targets = closing_moves(gone)
        self.shared[:, :, targets] = self.shared[:, :, sources]
        slots = torch.arange(len(gone), device=group.device)
        slots[sources] = targets
        group.copy_(slots[group])
        for source, target in zip(sources.tolist(), targets.tolist(), strict=True):
            self.prefixes[target] = self.prefixes[source]
        del self.prefixes[len(gone) - int(gone.sum()) :]
