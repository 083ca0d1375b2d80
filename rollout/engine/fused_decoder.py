"""Decodes with a FusedModel. A prompt's keys are stored once for its group, and read once by all rows of the group.

Attention has two parts under one softmax. The shared part multiplies, for each group, the queries of all its rows and of all
heads that share a key head by the prompt's keys: one product [rows x heads, D] [D, P]. The other part uses a row's own keys.

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

from rollout.attention import exact_scores
from rollout.engine.batch import Batch, closing_moves, enlarged
from rollout.engine.extension import Extension
from rollout.engine.fused_model import Attend, FusedLayer, FusedModel, causal_attention
from rollout.engine.graphs import Graphs, QueryIndex
from rollout.engine.kept import Resumed
from rollout.engine.kernels import Rows, attend, can_compute
from rollout.engine.sizes import Capacity, Sizes, whole_blocks

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
            return then(self._forward(self.num_rows, self._compiled_attend()))
        if self.query_index is None:
            self.query_index = self._index_queries()
        sizes, index = self.query_index
        sizes = sizes._replace(width=whole_blocks(self.width) if self.bucketed else self.own[0].shape[3])
        return self.graphs.run((sizes, kind), index, lambda index: then(self._step(sizes, index)))

    def _index_queries(self) -> tuple[Sizes, QueryIndex]:
        group = self.group[: self.num_rows]
        counts = group.bincount(minlength=len(self.prefixes))
        sizes = Sizes(self.num_rows, len(counts), int(counts.max()), max(1, *(p.length for p in self.prefixes)), 1)
        if self.bucketed:
            sizes = sizes.bucketed()
        rows = torch.arange(self.num_rows, device=group.device)
        by_group = group.argsort(stable=True)
        member = torch.empty_like(rows)
        member[by_group] = rows - (counts.cumsum(0) - counts)[group[by_group]]
        heads = torch.arange(self.key_heads, device=group.device)
        row_slots = rows[:, None] * self.key_heads + heads
        group_slots = (group[:, None] * self.key_heads + heads) * sizes.members + member[:, None]
        to_groups = rows.new_zeros(sizes.groups * self.key_heads * sizes.members)
        to_groups[group_slots] = row_slots
        to_rows = rows.new_zeros(sizes.rows, self.key_heads)
        to_rows[: self.num_rows] = group_slots
        return sizes, QueryIndex(to_groups, to_rows.flatten())

    def _step(self, sizes: Sizes, index: QueryIndex) -> Tensor:
        rows, groups, members, shared_width, width = sizes
        positions = self.position[:rows]
        at = positions - self.prefix[:rows]  # the column of the newest token
        # Each layer's states in the shape that attention reads, [slots x Hkv, width, D].
        shared_keys, shared_values = self.shared[:, :, :groups, :, :shared_width].flatten(2, 3).unbind(1)
        own_keys, own_values = zip(*(own[:, :rows, :, :width].flatten(1, 2) for own in self.own), strict=True)

        def by_group(x: Tensor) -> Tensor:  # [rows x Hkv, n, ...] -> [groups x Hkv, members x n, ...]
            return x.index_select(0, index.to_groups).view(groups * self.key_heads, members * x.shape[1], x.shape[2])

        def by_row(x: Tensor) -> Tensor:
            return x.view(len(index.to_groups), -1, x.shape[2]).index_select(0, index.to_rows)

        def mask_of(window: int | None) -> tuple[Tensor, Tensor]:
            mask = self._mask(sizes, positions, at, window).repeat_interleave(self.key_heads, 0)
            on_shared, on_own = mask.split_with_sizes((shared_width, width), -1)
            return by_group(on_shared.expand(-1, self.model.layers[0].queries_per_key, -1)), on_own

        masks = {window: mask_of(window) for window in self.windows}
        write = self._writer(rows, at)

        def attend(layer: FusedLayer, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            i = layer.index
            write(i, key, value)
            query = query.reshape(rows * self.key_heads, -1, layer.head_size)
            shared_mask, own_mask = masks[layer.window]
            on_shared = scaled_scores(shared_mask, by_group(query), shared_keys[i], layer.scale)
            on_own = scaled_scores(own_mask, query, own_keys[i], layer.scale)
            weights = torch.cat([by_row(on_shared), on_own], dim=-1).softmax(-1).to(query.dtype)
            on_shared, on_own = weights.split_with_sizes((shared_width, width), -1)
            out = by_row(by_group(on_shared) @ shared_values[i])
            return out.baddbmm_(on_own, own_values[i]).view(rows, -1, layer.head_size)

        return self._forward(rows, attend)

    def _compiled_attend(self) -> Attend:
        if self.order is None:
            self.order = self.group[: self.num_rows].argsort(stable=True)
        prefix, group = self.prefix[: self.num_rows], self.group[: self.num_rows]
        rows = Rows(self.order, self.position[: self.num_rows] - prefix, prefix, group)

        def attend_(layer: FusedLayer, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            shared, own = self.shared[layer.index], self.own[layer.index]
            return attend(query, key, value, shared, own, rows, scale=layer.scale, window=layer.window)

        return attend_

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

    def _writer(self, rows: int, at: Tensor) -> Callable[[int, Tensor, Tensor], None]:
        """A function that writes a layer's newest keys and values, [rows, Hkv, D], into column `at` of their rows."""
        if self.is_aligned:  # a slice: half the time of an indexed copy

            def write(layer: int, *states: Tensor) -> None:
                for target, state in zip(self.own[layer][:, :rows, :, self.width - 1], states, strict=True):
                    target.copy_(state)
        else:
            heads = torch.arange(rows * self.key_heads, device=at.device)
            columns = heads * self.own[0].shape[3] + at.repeat_interleave(self.key_heads)

            def write(layer: int, *states: Tensor) -> None:
                for target, state in zip(self.own[layer].flatten(1, 3), states, strict=True):
                    target.index_copy_(0, columns, state.flatten(0, 1))

        return write

    def _mask(self, sizes: Sizes, positions: Tensor, at: Tensor, window: int | None) -> Tensor:
        """The mask that is added to scores: 0 where a row attends, otherwise -inf. [rows, 1, shared and own columns]"""
        shared, own = self.columns[: sizes.shared_width], self.columns[: sizes.width]
        visible = torch.cat([shared < self.prefix[: sizes.rows, None], own <= at[:, None]], dim=1)
        if window is not None:
            visible &= torch.cat([positions[:, None] - shared, at[:, None] - own], dim=1) < window
        return torch.zeros_like(visible, dtype=torch.float32).masked_fill_(~visible, -torch.inf)[:, None]

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


def scaled_scores(mask: Tensor, query: Tensor, key: Tensor, scale: float) -> Tensor:
    """mask + scale x scores, in float32."""
    if query.dtype == torch.float32:
        return torch.baddbmm(mask, query, key.mT, alpha=scale)
    return torch.add(mask, exact_scores(query, key), alpha=scale)
