"""Shared parts of the two attention functions (decoding in rollout/engine, training in rl/forward/packed_attention.py), and their selection.

transformers lets a program register an attention function under a name (`AttentionInterface`); a model whose config
has that name calls it in every layer. No model's code is changed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel


def has_only_attention_layers(model: PreTrainedModel) -> bool:
    """Whether every layer is attention through the attention interface: no recurrent state, no convolution."""
    layer_types = set(getattr(model.config, "layer_types", None) or ["full_attention"])
    return bool(
        model._supports_attention_backend
        and not getattr(model, "_is_stateful", False)
        and layer_types <= {"full_attention", "sliding_attention"}
    )


@contextmanager
def attention_implementation(model: PreTrainedModel, name: str) -> Iterator[None]:
    """Within the context the model uses the attention function that is registered as `name`."""
    before = model.config._attn_implementation
    model.config._attn_implementation = name
    try:
        yield
    finally:
        model.config._attn_implementation = before


@contextmanager
def narrow_windows(model: PreTrainedModel, width: int) -> Iterator[None]:
    """Sets the model's sliding windows, if it has any, to `width` tokens, so that a short text shows their effect."""
    owners = [model.config.get_text_config(), *model.modules()]
    before = [(o, o.sliding_window) for o in owners if isinstance(getattr(o, "sliding_window", None), int)]
    for owner, _ in before:
        owner.sliding_window = width
    try:
        yield
    finally:
        for owner, window in before:
            owner.sliding_window = window


def causal_window(num_tokens: int, window: int, device: torch.device) -> Tensor:
    """The mask by which each token attends to the last `window` tokens, itself included. Bool[T, T]"""
    columns = torch.arange(num_tokens, device=device)
    ago = columns[:, None] - columns
    return (ago >= 0) & (ago < window)


def exact_scores(query: Tensor, key: Tensor) -> Tensor:
    """The products of queries and keys in float32, also of 16-bit factors. [B, T, D], [B, S, D] -> [B, T, S].

    If keys have large biases (Qwen2), scores are large sums with small differences, and rounding them to 16 bits changes the softmax.
    On a CPU torch has no product of 16-bit factors with a float32 result; the rounding error of the 16-bit product is itself a product
    minus that result, which is small and so is rounded by little. Both together take half the time of converting the keys.
    """
    if query.dtype == torch.float32:
        return torch.bmm(query, key.mT)
    if query.is_cuda:
        return torch.bmm(query, key.mT, out_dtype=torch.float32)
    rounded = torch.bmm(query, key.mT)
    return rounded.float().add_(rounding_error(rounded, query, key))


def rounding_error(rounded: Tensor, query: Tensor, key: Tensor) -> Tensor:
    """The products of queries and keys less `rounded`, which is their 16-bit product."""
    return torch.baddbmm(rounded, query, key.mT, beta=-1)


def grouped_attention(
    query: Tensor, key: Tensor, value: Tensor, *, mask: Tensor | None, causal: bool, scale: float | None
) -> Tensor:
    """Scaled dot-product attention with fewer key heads than query heads, without repeating keys.

    query: [B, Hq, T, D]; key, value: [B, Hkv, S, D]; mask: broadcastable to [B, 1, T, S] -> [B, T, Hq, D].
    A single query per row takes two small matrix products, with the query heads that share a key head as one block: on a CPU
    ten times faster than the fused kernel, which is made for long blocks of queries.
    """
    rows, query_heads, num_queries, head_size = query.shape
    key_heads = key.shape[1]
    if num_queries == 1:
        folded = query.reshape(rows * key_heads, query_heads // key_heads, head_size)
        scores = exact_scores(folded, key.flatten(0, 1)).unflatten(0, (rows, key_heads))
        scores = scores * (head_size**-0.5 if scale is None else scale)
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf)
        out = scores.softmax(-1).to(value.dtype) @ value
        return out.reshape(rows, 1, query_heads, -1)
    out = F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=causal, scale=scale, enable_gqa=query_heads != key_heads
    )
    return out.transpose(1, 2)
