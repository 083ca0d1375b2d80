"""A slot cache of keys and values and its attention function, for models that are decoded by their own forward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, Cache

from rollout.attention import causal_window, grouped_attention
from rollout.engine.batch import enlarged


def slot_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention for prefill (no mask: plain causal) and for decoding (the mask marks the columns that a row has filled)."""
    if sliding_window is not None:
        if attention_mask is None:
            attention_mask = causal_window(key.shape[2], sliding_window, key.device)
        else:
            columns = torch.arange(key.shape[2], device=key.device)
            position = attention_mask.sum(-1, keepdim=True) - 1
            attention_mask = attention_mask & (columns > position - sliding_window)
    causal = attention_mask is None and query.shape[2] > 1
    return grouped_attention(query, key, value, mask=attention_mask, causal=causal, scale=scaling), None


SLOT_ATTENTION = "plumbline_slots"
AttentionInterface.register(SLOT_ATTENTION, slot_attention)


KeptLayers = list[tuple[Tensor, Tensor]]  # keys and values of each layer, [Hkv, columns, D]


class KeyValueSlots(Cache):
    """Preallocated keys and values, one slot per row, one column per position. Nothing is concatenated, and rows can be moved."""

    def __init__(self, num_slots: int, capacity: int) -> None:
        super().__init__(layers=[])
        self.num_slots, self.capacity = num_slots, capacity
        self.buffers: list[tuple[Tensor, Tensor]] = []
        self.rows: Tensor | slice = slice(0)
        self.source: Tensor | None = None
        self.newest: tuple[Any, ...] = ()  # the index into a buffer of each row's newest tokens
        self.adds_many = False
        self.width = 0

    def at_prefill(self, rows: Tensor, source: Tensor) -> None:
        """Prepares for a forward over prompts, from column 0; row rows[i] gets the keys and values of prompt source[i]."""
        self.rows, self.source = rows, source

    def at_step(self, columns: Tensor) -> None:
        """Prepares for a forward over one token of each of the first len(columns) rows, at these columns."""
        lowest, highest = int(columns.min()), int(columns.max())
        self.rows, self.source, self.width, self.adds_many = slice(len(columns)), None, highest + 1, False
        # A single column for all rows is a slice, which takes a tenth of the time of an indexed copy to write.
        aligned = lowest == highest
        rows = self.rows if aligned else torch.arange(len(columns), device=columns.device)
        self.newest = (rows, slice(None), highest if aligned else columns)

    def at_extension(self, rows: Tensor, columns: Tensor) -> None:
        """Prepares for a forward over several tokens of each of these rows, behind those that are there. columns: [rows, tokens]"""
        self.rows, self.source, self.width, self.adds_many = rows, None, int(columns.max()) + 1, True
        self.newest = (rows[:, None], slice(None), columns)

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any):  # pyright: ignore
        while layer_idx >= len(self.buffers):
            self.buffers.append(tuple(self._allocate(s) for s in (key_states, value_states)))  # pyright: ignore
        keys, values = self.buffers[layer_idx]
        if self.source is not None:
            width = key_states.shape[2]
            keys[self.rows, :, :width] = key_states[self.source]
            values[self.rows, :, :width] = value_states[self.source]
            return key_states, value_states
        for target, states in ((keys, key_states), (values, value_states)):
            target[self.newest] = states.transpose(1, 2) if self.adds_many else states[:, :, 0]
        return keys[self.rows, :, : self.width], values[self.rows, :, : self.width]

    def _allocate(self, states: Tensor) -> Tensor:
        return states.new_zeros(self.num_slots, states.shape[1], self.capacity, states.shape[3])

    def grow(self, num_slots: int, capacity: int) -> None:
        """Enlarges the buffers to num_slots slots of `capacity` columns and keeps their contents. Neither size may shrink."""
        slots, columns = num_slots - self.num_slots, capacity - self.capacity
        self.buffers = [tuple(enlarged(s, slots, 0, columns, 0) for s in pair) for pair in self.buffers]  # pyright: ignore
        self.num_slots, self.capacity = num_slots, capacity

    def keep(self, row: int, length: int) -> KeptLayers:
        """A copy of the row's first columns, layer by layer."""
        return [(keys[row, :, :length].clone(), values[row, :, :length].clone()) for keys, values in self.buffers]

    def restore(self, row: int, layers: KeptLayers, length: int) -> None:
        for (keys, values), (kept_keys, kept_values) in zip(self.buffers, layers, strict=True):
            keys[row, :, :length], values[row, :, :length] = kept_keys[:, :length], kept_values[:, :length]

    def move(self, sources: Tensor, targets: Tensor) -> None:
        for keys, values in self.buffers:
            keys[targets, :, : self.width] = keys[sources, :, : self.width]
            values[targets, :, : self.width] = values[sources, :, : self.width]
