"""Attention over the packed row of rl/batch.py: each completion sees its own prompt and itself.

The one function that a model calls in place of its own attention, through the attention interface of transformers. Keys and
values of a prompt are gathered for each of its completions, so that gradients flow back into the one prompt there is.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface

from rl.batch import AttentionBlock, MicroBatch
from rollout.attention import grouped_attention

PACKED = "plumbline_packed"
# block, query, key, value [1, H, N, D], scale, window -> [F, H, D]
Kernel = Callable[[AttentionBlock, Tensor, Tensor, Tensor, float | None, int | None], Tensor]


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    micro: MicroBatch,
    kernel: Kernel,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Prompts attend to themselves, completions to their prompt and to themselves. [1, H, N, D] -> [1, N, H, D].

    softcap, s_aux: Gemma 2's bound on the scores; gpt-oss's sinks, a score per head that takes weight and gives nothing.
    """
    if softcap is not None or s_aux is not None:
        kernel = partial(explicit, softcap=softcap, sinks=s_aux)
    outputs = [kernel(block, query, key, value, scaling, sliding_window) for block in micro.blocks]
    return torch.cat(outputs).index_select(0, micro.attended_at)[None], None


AttentionInterface.register(PACKED, packed_attention)


def dense(
    block: AttentionBlock,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float | None,
    window: int | None,
) -> Tensor:
    """By scaled_dot_product_attention on padded pieces: any device, any precision."""
    out = grouped_attention(
        _gather(query, block.query_slots),
        _gather(key, block.key_slots),
        _gather(value, block.key_slots),
        mask=block.visible(window)[:, None],
        causal=False,
        scale=scale,
    )
    return out.flatten(0, 1).index_select(0, block.filled_queries)


def varlen(
    block: AttentionBlock,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float | None,
    window: int | None,
) -> Tensor:
    """By torch's flash attention on ragged pieces: no padding and no mask, on a GPU in 16 bits."""
    from torch.nn.attention.varlen import varlen_attn

    states = [
        F.embedding(slots.flatten()[filled], _rows(x)).unflatten(-1, (x.shape[1], -1))
        for x, slots, filled in (
            (query, block.query_slots, block.filled_queries),
            (key, block.key_slots, block.filled_keys),
            (value, block.key_slots, block.filled_keys),
        )
    ]
    group, options = query.shape[1] // key.shape[1], {}
    if group > 1 and _takes_grouped_heads(varlen_attn):
        options["enable_gqa"] = True
    elif group > 1:
        states[1:] = [x.repeat_interleave(group, 1) for x in states[1:]]
    starts = [F.pad(n.cumsum(0), (1, 0)).int() for n in (block.num_queries, block.num_keys)]
    longest = block.query_slots.shape[1], block.key_slots.shape[1]
    reach = -1 if window is None else window - 1  # keys before the query; none after it
    out = varlen_attn(*states, *starts, *longest, scale=scale, window_size=(reach, 0), **options)  # pyright: ignore[reportCallIssue]
    assert isinstance(out, Tensor)
    return out


@cache
def _takes_grouped_heads(attention: Callable[..., Any]) -> bool:
    """From torch 2.12 on."""
    return "enable_gqa" in inspect.signature(attention).parameters


def explicit(
    block: AttentionBlock,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float | None,
    window: int | None,
    *,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """What no kernel has arguments for: all scores are kept."""
    grouped = _gather(query, block.query_slots).unflatten(1, (key.shape[1], -1))
    keys, values = _gather(key, block.key_slots)[:, :, None], _gather(value, block.key_slots)[:, :, None]
    scores = grouped @ keys.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~block.visible(window)[:, None, None], -torch.inf).float()
    if sinks is not None:
        column = sinks.float().view(1, *grouped.shape[1:3], 1, 1).expand(*scores.shape[:-1], 1)
        scores = torch.cat([scores, column], -1)
    weights = scores.softmax(-1)[..., : keys.shape[3]].to(value.dtype)
    return (weights @ values).flatten(1, 2).transpose(1, 2).flatten(0, 1).index_select(0, block.filled_queries)


def _rows(states: Tensor) -> Tensor:
    """[1, H, N, D] -> [N, H D]"""
    return states[0].transpose(0, 1).flatten(1)


def _gather(states: Tensor, slots: Int[Tensor, "B C"]) -> Tensor:
    """[1, H, N, D] -> [B, H, C, D]. By `embedding`, whose backward adds up repeated rows fast on every device."""
    return F.embedding(slots, _rows(states)).unflatten(-1, (states.shape[1], -1)).transpose(1, 2)
