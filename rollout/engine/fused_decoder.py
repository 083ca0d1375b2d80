"""Decoding with a FusedModel. A prompt's keys are stored once for its group, and read once by all rows of the group.

Attention has two parts under one softmax. The shared one multiplies, for each group, the queries of all its rows and of all
heads that share a key head with the prompt's keys: one product [rows x heads, D] [D, P]. The other is a row's own keys.

A step depends on the host through five sizes only. Where they are rounded up to buckets, steps of one bucket are the same
work in the same memory, which a GPU replays as one graph.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import partial
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from rollout.attention import causal_window, exact_scores, grouped_attention
from rollout.engine.batch import Batch, closing_moves, enlarged
from rollout.engine.fused_model import FusedLayer, FusedModel
from rollout.engine.graphs import Graphs, Places

T = TypeVar("T")

GROWTH = 16  # columns of own keys: products read the whole of a block up to twice as fast as a part of a wider one
BLOCK = 256  # of them where sizes are bucketed: a graph is of use until its buffers are replaced
PREFILL_TOKENS = 4096  # at once: enough for large products, few enough for a cache


class Capacity(NamedTuple):
    """What a decoder holds at most. shared_width: prompt tokens but the last; width: that and the completion's."""

    rows: int
    groups: int
    shared_width: int
    width: int

    def bucketed(self) -> Capacity:
        return Capacity(*map(power_of_two, self[:2]), *map(whole_blocks, self[2:]))

    def holding(self, needed: Capacity) -> Capacity:
        """This capacity where it is enough; else a larger one, in steps that make further growth rare."""
        if all(size <= has for size, has in zip(needed, self, strict=True)):
            return self
        return Capacity(*map(max, self, needed.bucketed()))


class Sizes(NamedTuple):
    """What a step works on. members: rows of the largest group; widths: columns filled in shared and own keys."""

    rows: int
    groups: int
    members: int
    shared_width: int
    width: int

    def bucketed(self) -> Sizes:
        return Sizes(*map(power_of_two, self[:3]), *map(whole_blocks, self[3:]))


def power_of_two(size: int) -> int:
    return 1 << (size - 1).bit_length()


def whole_blocks(width: int) -> int:
    return -(-width // 64) * 64


class FusedDecoder:
    """Rows and groups 0..N-1 stand in the first slots of their buffers; who leaves is replaced from the tail.

    A row writes its keys from its column 0. The prompt's last token is the first of them, so prefill needs no logits.
    bucketed: as on a GPU. reserves: own keys are given all columns at once; otherwise they grow by what is written.
    """

    def __init__(
        self, model: FusedModel, capacity: Capacity, *, bucketed: bool = False, reserves: bool = False
    ) -> None:
        self.model, self.bucketed, self.reserves = model, bucketed, reserves
        self.key_heads = model.layers[0].key_heads
        self.windows = {layer.window for layer in model.layers}
        self.graphs = Graphs(model.device)
        self.let_go()
        self.open(capacity)

    def let_go(self) -> None:
        """The memory of keys and values, and of the graphs that read it."""
        self.graphs.clear()
        self.capacity = Capacity(0, 0, 0, 0)
        self.shared, self.own = torch.empty(0), list[Tensor]()

    def open(self, capacity: Capacity) -> None:
        """No rows, and room for at least so much. What is too small is let go before a larger one is made."""
        merged = Capacity(*map(max, self.capacity, capacity.bucketed() if self.bucketed else capacity))
        if merged != self.capacity:
            self.let_go()
            self._allocate(merged)
        self.batch.clear()
        self.prefixes: list[int] = []  # of each group
        self.num_rows = self.width = 0
        self.is_aligned = True  # every row writes the same column
        self.placed: tuple[Sizes, Places] | None = None

    def _allocate(self, capacity: Capacity) -> None:
        self.capacity = capacity
        layers, heads, size = self.model.layers, self.key_heads, self.model.layers[0].head_size
        zeros = partial(torch.zeros, device=self.model.device)
        states = partial(zeros, dtype=self.model.dtype)  # first keys, then values
        width = capacity.width if self.reserves else min(BLOCK, capacity.width) if self.bucketed else 0
        self.shared = states(len(layers), 2, capacity.groups, heads, capacity.shared_width, size)
        self.own = [states(2, capacity.rows, heads, width, size) for _ in layers]
        # Of each row: its newest token and the position of that, how many prompt tokens it shares, its group.
        self.rows = zeros(4, capacity.rows, dtype=torch.long)
        self.batch = Batch(capacity.rows, capacity.width, self.model.device)
        self._name_parts()

    def _name_parts(self) -> None:
        self.newest, self.position, self.prefix, self.group = self.rows
        widest = max(self.capacity.shared_width, self.capacity.width + GROWTH)
        self.columns = torch.arange(widest, device=self.model.device)

    def reserve(self, more: Capacity) -> None:
        """Graphs are recorded anew: what they read stands elsewhere."""
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
        """Own keys, a layer at a time: never are two of all of them there."""
        has = self.own[0].shape[3]
        more = min(BLOCK, self.capacity.width - has) if self.bucketed else GROWTH
        self.graphs.clear()
        for layer, own in enumerate(self.own):
            self.own[layer] = enlarged(own, 0, 0, 0, more, 0)

    def admit(self, rows: Tensor, prompts: list[Tensor], source: Tensor) -> None:
        first = len(self.prefixes)
        self.prefixes += [len(prompt) - 1 for prompt in prompts]
        self.is_aligned = self.num_rows == 0 and not self.bucketed
        self.group[rows] = first + source
        self.prefix[rows] = torch.tensor(self.prefixes[first:], device=rows.device)[source]
        self.num_rows += len(rows)
        self.placed = None
        while prompts:
            count = max(1, PREFILL_TOKENS // max(map(len, prompts)))
            self._prefill(first, [prompt[:-1] for prompt in prompts[:count]])
            first, prompts = first + count, prompts[count:]

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
        """What `then` makes of the logits; `kind` names it. On a GPU both are one graph: `then` may change memory, never replace it.

        It is given logits of all rows of a bucket, of which the first hold completions.
        """
        self.newest[: self.num_rows], self.position[: self.num_rows] = tokens, positions
        self.width = min(self.width + 1, self.capacity.width)
        if self.width > self.own[0].shape[3]:
            self._grow()
        if self.placed is None:
            self.placed = self._place_queries()
        sizes, places = self.placed
        sizes = sizes._replace(width=whole_blocks(self.width) if self.bucketed else self.own[0].shape[3])
        return self.graphs.run((sizes, kind), places, lambda places: then(self._step(sizes, places)))

    def _place_queries(self) -> tuple[Sizes, Places]:
        group = self.group[: self.num_rows]
        counts = group.bincount(minlength=len(self.prefixes))
        sizes = Sizes(self.num_rows, len(counts), int(counts.max()), max(1, *self.prefixes), 1)
        if self.bucketed:
            sizes = sizes.bucketed()
        rows = torch.arange(self.num_rows, device=group.device)
        by_group = group.argsort(stable=True)
        member = torch.empty_like(rows)
        member[by_group] = rows - (counts.cumsum(0) - counts)[group[by_group]]
        heads = torch.arange(self.key_heads, device=group.device)
        row_places = rows[:, None] * self.key_heads + heads
        group_places = (group[:, None] * self.key_heads + heads) * sizes.members + member[:, None]
        to_groups = rows.new_zeros(sizes.groups * self.key_heads * sizes.members)
        to_groups[group_places] = row_places
        to_rows = rows.new_zeros(sizes.rows, self.key_heads)
        to_rows[: self.num_rows] = group_places
        return sizes, Places(to_groups, to_rows.flatten())

    def _step(self, sizes: Sizes, places: Places) -> Tensor:
        rows, groups, members, shared_width, width = sizes
        positions = self.position[:rows]
        at = positions - self.prefix[:rows]  # the column of the newest token
        # Of each layer the states as attention reads them, [slots x Hkv, width, D].
        shared_keys, shared_values = self.shared[:, :, :groups, :, :shared_width].flatten(2, 3).unbind(1)
        own_keys, own_values = zip(*(own[:, :rows, :, :width].flatten(1, 2) for own in self.own), strict=True)

        def by_group(x: Tensor) -> Tensor:  # [rows x Hkv, n, ...] -> [groups x Hkv, members x n, ...]
            return x.index_select(0, places.to_groups).view(groups * self.key_heads, members * x.shape[1], x.shape[2])

        def by_row(x: Tensor) -> Tensor:
            return x.view(len(places.to_groups), -1, x.shape[2]).index_select(0, places.to_rows)

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

        return self.model.logits(self.model.states(self.newest[:rows], positions, attend))

    def _writer(self, rows: int, at: Tensor) -> Callable[[int, Tensor, Tensor], None]:
        """What puts a layer's newest keys and values, [rows, Hkv, D], into column `at` of their rows."""
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
        """Added to scores: 0 where a row may look, else -inf. [rows, 1, shared and own columns]"""
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
            state[num_rows:] = 0  # a bucket's rows without a completion decode in their first column
        self.num_rows, self.placed = num_rows, None
        self.width = int((self.position - self.prefix)[:num_rows].max()) + 1 if num_rows else 0
        self._drop_groups()

    def _drop_groups(self) -> None:
        """Those whose rows all left."""
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


def causal_attention(layer: FusedLayer, query: Tensor, key: Tensor, value: Tensor, *, num_texts: int) -> Tensor:
    """Each token looks at those before it, of its own text: the texts are of one length, one after the other."""
    query, key, value = (states.unflatten(0, (num_texts, -1)).transpose(1, 2) for states in (query, key, value))
    mask = None if layer.window is None else causal_window(query.shape[2], layer.window, query.device)
    return grouped_attention(query, key, value, mask=mask, causal=mask is None, scale=layer.scale).flatten(0, 1)
