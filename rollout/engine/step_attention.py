"""The attention of a decoding step, over the keys of FusedDecoder's buffers: compiled for a CPU, or by torch.

By torch attention has two parts under one softmax. The shared part multiplies, for each group, the queries of all its rows and of all
heads that share a key head by the prompt's keys: one product [rows x heads, D] [D, P]. The other part uses a row's own keys.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rollout.attention import exact_scores
from rollout.engine import kernels
from rollout.engine.fused_model import Attend, FusedLayer, FusedModel
from rollout.engine.graphs import QueryIndex
from rollout.engine.kernels import Rows
from rollout.engine.sizes import Sizes


@dataclass(frozen=True, kw_only=True)
class StepKeys:
    """What a step's rows attend to. shared: [layers, 2, groups, Hkv, columns, D]; own: of each layer [2, rows, Hkv, columns, D].

    position, prefix, at: int64[N], of the newest tokens; how many shared keys each row sees; the column that it writes among its own.
    aligned: that column, if it is the same for all. columns: 0, 1, 2, ...
    """

    shared: Tensor
    own: Sequence[Tensor]
    position: Tensor
    prefix: Tensor
    at: Tensor
    aligned: int | None
    columns: Tensor


def compiled_attend(keys: StepKeys, group: Tensor, order: Tensor) -> Attend:
    """group: the slot of each row's group; order: the rows, those of a group together."""
    rows = Rows(order, keys.at, keys.prefix, group)

    def attend(layer: FusedLayer, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        shared, own = keys.shared[layer.index], keys.own[layer.index]
        return kernels.attend(query, key, value, shared, own, rows, scale=layer.scale, window=layer.window)

    return attend


def torch_attend(model: FusedModel, keys: StepKeys, sizes: Sizes, index: QueryIndex) -> Attend:
    rows, groups, members, shared_width, width = sizes
    key_heads, queries_per_key = model.layers[0].key_heads, model.layers[0].queries_per_key
    # Each layer's states in the shape that attention reads, [slots x Hkv, width, D].
    shared_keys, shared_values = keys.shared[:, :, :groups, :, :shared_width].flatten(2, 3).unbind(1)
    own_keys, own_values = zip(*(own[:, :rows, :, :width].flatten(1, 2) for own in keys.own), strict=True)

    def by_group(x: Tensor) -> Tensor:  # [rows x Hkv, n, ...] -> [groups x Hkv, members x n, ...]
        return x.index_select(0, index.to_groups).view(groups * key_heads, members * x.shape[1], x.shape[2])

    def by_row(x: Tensor) -> Tensor:
        return x.view(len(index.to_groups), -1, x.shape[2]).index_select(0, index.to_rows)

    def mask_of(window: int | None) -> tuple[Tensor, Tensor]:
        mask = _mask(keys, sizes, window).repeat_interleave(key_heads, 0)
        on_shared, on_own = mask.split_with_sizes((shared_width, width), -1)
        return by_group(on_shared.expand(-1, queries_per_key, -1)), on_own

    masks = {window: mask_of(window) for window in {layer.window for layer in model.layers}}
    write = _writer(keys, rows, key_heads)

    def attend(layer: FusedLayer, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        i = layer.index
        write(i, key, value)
        query = query.reshape(rows * key_heads, -1, layer.head_size)
        shared_mask, own_mask = masks[layer.window]
        on_shared = scaled_scores(shared_mask, by_group(query), shared_keys[i], layer.scale)
        on_own = scaled_scores(own_mask, query, own_keys[i], layer.scale)
        weights = torch.cat([by_row(on_shared), on_own], dim=-1).softmax(-1).to(query.dtype)
        on_shared, on_own = weights.split_with_sizes((shared_width, width), -1)
        out = by_row(by_group(on_shared) @ shared_values[i])
        return out.baddbmm_(on_own, own_values[i]).view(rows, -1, layer.head_size)

    return attend


def _writer(keys: StepKeys, rows: int, key_heads: int) -> Callable[[int, Tensor, Tensor], None]:
    """A function that writes a layer's newest keys and values, [rows, Hkv, D], into column `at` of their rows."""
    if keys.aligned is not None:  # a slice: half the time of an indexed copy

        def write(layer: int, *states: Tensor) -> None:
            for target, state in zip(keys.own[layer][:, :rows, :, keys.aligned], states, strict=True):
                target.copy_(state)
    else:
        heads = torch.arange(rows * key_heads, device=keys.position.device)
        columns = heads * keys.own[0].shape[3] + keys.at.repeat_interleave(key_heads)

        def write(layer: int, *states: Tensor) -> None:
            for target, state in zip(keys.own[layer].flatten(1, 3), states, strict=True):
                target.index_copy_(0, columns, state.flatten(0, 1))

    return write


def _mask(keys: StepKeys, sizes: Sizes, window: int | None) -> Tensor:
    """The mask that is added to scores: 0 where a row attends, otherwise -inf. [rows, 1, shared and own columns]"""
    shared, own = keys.columns[: sizes.shared_width], keys.columns[: sizes.width]
    at = keys.at[:, None]
    visible = torch.cat([shared < keys.prefix[:, None], own <= at], dim=1)
    if window is not None:
        visible &= torch.cat([keys.position[:, None] - shared, at - own], dim=1) < window
    return torch.zeros_like(visible, dtype=torch.float32).masked_fill_(~visible, -torch.inf)[:, None]


def scaled_scores(mask: Tensor, query: Tensor, key: Tensor, scale: float) -> Tensor:
    """mask + scale x scores, in float32."""
    if query.dtype == torch.float32:
        return torch.baddbmm(mask, query, key.mT, alpha=scale)
    return torch.add(mask, exact_scores(query, key), alpha=scale)


def index_queries(
    group: Tensor, shared_width: int, num_groups: int, key_heads: int, *, bucketed: bool
) -> tuple[Sizes, QueryIndex]:
    """The sizes of a step, with a width of 1, and the two orders of its queries. group: the slot of each row's group."""
    counts, num_rows = group.bincount(minlength=num_groups), len(group)
    sizes = Sizes(num_rows, num_groups, int(counts.max()), shared_width, 1)
    if bucketed:
        sizes = sizes.bucketed()
    rows = torch.arange(num_rows, device=group.device)
    by_group = group.argsort(stable=True)
    member = torch.empty_like(rows)
    member[by_group] = rows - (counts.cumsum(0) - counts)[group[by_group]]
    heads = torch.arange(key_heads, device=group.device)
    row_slots = rows[:, None] * key_heads + heads
    group_slots = (group[:, None] * key_heads + heads) * sizes.members + member[:, None]
    to_groups = rows.new_zeros(sizes.groups * key_heads * sizes.members)
    to_groups[group_slots] = row_slots
    to_rows = rows.new_zeros(sizes.rows, key_heads)
    to_rows[:num_rows] = group_slots
    return sizes, QueryIndex(to_groups, to_rows.flatten())
