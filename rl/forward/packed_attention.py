"""Attention over the packed row of rl/forward/layouts.py: each completion attends to its own prompt and to itself.

`packed_attention` replaces the attention function of a model, through the attention interface of transformers. It gathers the keys
and values of a prompt for each of its completions, so that the gradients of all completions are summed in the prompt's only copy.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Mapping
from functools import cache, partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, PreTrainedModel

from rl.forward import cpu_kernels
from rl.forward.casts import product_dtype
from rl.forward.layouts import PackedRow
from rl.forward.micro_batch import TrainGroup, TrainSequence
from rl.forward.row import AttentionBlock, RaggedPieces
from rl.forward.shapes import head_size, key_width
from rollout.attention import grouped_attention

PACKED = "plumbline_packed"
Kernel = Callable[..., Tensor]  # row; query, key, value [1, H, N, D]; scale; window -> [N, H, D]


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    row: PackedRow,
    kernel: Kernel,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Prompts attend to themselves, completions to their prompt and to themselves. [1, H, N, D] -> [1, N, H, D].

    softcap: Gemma 2's bound on the scores. s_aux: gpt-oss's sinks, one score per head that takes part in the softmax and has no value.
    """
    if attention_mask is not None:  # transformers builds no mask for an attention function registered here
        raise RuntimeError("its layers compute their own attention mask")
    if softcap is not None or s_aux is not None:
        kernel = partial(explicit, softcap=softcap, sinks=s_aux)
    return kernel(row, query, key, value, scaling, sliding_window)[None], None


AttentionInterface.register(PACKED, packed_attention)


def block_kernel(attend: Callable[..., Tensor]) -> Kernel:
    """Decorator: makes a kernel from a function that computes attention for the queries of one block of padded pieces.

    Its states have one dtype: under autocast rotary positions make queries and keys float32, values 16-bit.
    """

    def kernel(
        row: PackedRow, query: Tensor, key: Tensor, value: Tensor, scale: float | None, window: int | None, **more: Any
    ) -> Tensor:
        dtype = product_dtype(query, key, value)
        states = query.to(dtype), key.to(dtype), value.to(dtype)
        outputs = [attend(block, *states, scale, window, **more) for block in row.blocks]
        return torch.cat(outputs).index_select(0, row.attended_at)

    return kernel


@block_kernel
def dense(
    block: AttentionBlock, query: Tensor, key: Tensor, value: Tensor, scale: float | None, window: int | None
) -> Tensor:
    """Attention on padded pieces, for any device and precision: scaled_dot_product_attention, or what is faster (cpu_kernels.py)."""
    states = _gather(query, block.query_slots), _gather(key, block.key_slots), _gather(value, block.key_slots)
    if cpu_kernels.can_attend(value):
        out = cpu_kernels.attend(*states, *block.spans(window), query.shape[-1] ** -0.5 if scale is None else scale)
    else:
        out = grouped_attention(*states, mask=block.visible(window)[:, None], causal=False, scale=scale)
    return out.flatten(0, 1).index_select(0, block.filled_queries)


@block_kernel
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
    """Attention with a soft cap or sinks, which the other kernels have no arguments for. Keeps all scores in memory."""
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


def _gather(states: Tensor, slots: Int[Tensor, "B C"]) -> Tensor:
    """[1, H, N, D] -> [B, H, C, D]. Uses `embedding`, whose backward sums repeated rows fast on every device."""
    return F.embedding(slots, _rows(states).flatten(1)).unflatten(-1, (states.shape[1], -1)).transpose(1, 2)


def _rows(states: Tensor) -> Tensor:
    """[1, H, N, D] -> [N, H, D]"""
    return states[0].transpose(0, 1)


def ragged_kernel(attend: Callable[..., Tensor]) -> Kernel:
    """Decorator: makes a kernel from a function that computes attention for all ragged pieces in one call, on a GPU in 16 bits.

    Needs no padding and no mask. The queries are used in the order of the row; keys and values are gathered together. All three are
    cast to one dtype, which these functions require.
    """

    def kernel(
        row: PackedRow, query: Tensor, key: Tensor, value: Tensor, scale: float | None, window: int | None
    ) -> Tensor:
        dtype = product_dtype(value)
        states = torch.cat([_rows(x).to(dtype) for x in (key, value)], 1)
        gathered = F.embedding(row.ragged.key_slots, states.flatten(1)).unflatten(-1, (2, key.shape[1], -1))
        window_size = (-1 if window is None else window - 1, 0)  # keys before the query; none after it
        return attend(_rows(query).to(dtype), *gathered.unbind(1), row.ragged, scale, window_size)

    return kernel


def torch_varlen(
    query: Tensor, key: Tensor, value: Tensor, pieces: RaggedPieces, scale: float | None, window_size: tuple[int, int]
) -> Tensor:
    """torch's flash attention for ragged sequences."""
    from torch.nn.attention.varlen import varlen_attn

    group, options = query.shape[1] // key.shape[1], {}
    if group > 1 and _takes_grouped_heads(varlen_attn):
        options["enable_gqa"] = True
    elif group > 1:
        key, value = (x.repeat_interleave(group, 1) for x in (key, value))
    out = varlen_attn(  # pyright: ignore[reportCallIssue]
        query, key, value, *_lengths(pieces), scale=scale, window_size=window_size, **options
    )
    assert isinstance(out, Tensor)
    return out


varlen = ragged_kernel(torch_varlen)


@cache
def _takes_grouped_heads(attention: Callable[..., Any]) -> bool:
    """Whether the function accepts fewer key heads than query heads, as it does from torch 2.12 on."""
    return "enable_gqa" in inspect.signature(attention).parameters


@ragged_kernel
def flash(
    query: Tensor, key: Tensor, value: Tensor, pieces: RaggedPieces, scale: float | None, window_size: tuple[int, int]
) -> Tensor:
    """The flash-attn package (arXiv 2307.08691); on a Hopper GPU its third version (2407.08608) if that is installed."""
    module = flash_package(query.device)
    if module is None:
        raise ImportError("flash-attn is not installed")
    attend = import_module(module).flash_attn_varlen_func
    out = attend(query, key, value, *_lengths(pieces), softmax_scale=scale, causal=True, window_size=window_size)
    return out[0] if isinstance(out, tuple) else out  # early builds of the third version also return the normalisers


@cache
def flash_package(device: torch.device) -> str | None:
    """The module of flash-attn to use on this device, or None if none is installed. The third version runs on Hopper GPUs only."""
    found = [name for name in ("flash_attn_interface", "flash_attn") if find_spec(name)]
    if "flash_attn_interface" in found and (device.type != "cuda" or torch.cuda.get_device_capability(device)[0] != 9):
        found.remove("flash_attn_interface")
    return found[0] if found else None


def _lengths(pieces: RaggedPieces) -> tuple[Tensor, Tensor, int, int]:
    return pieces.query_starts, pieces.key_starts, pieces.most_queries, pieces.most_keys


def fastest(kernels: Mapping[str, Kernel], model: PreTrainedModel) -> str:
    """The name of the fastest kernel, timed by forward and backward of one layer's attention.

    The row is that of a full micro-batch: 8 completions of 1,024 tokens with a prompt of 512 tokens.
    """
    if len(kernels) == 1:
        return next(iter(kernels))
    config, device = model.config.get_text_config(), model.device
    row = PackedRow.of([TrainGroup((0,) * 512, (TrainSequence.to_score([0] * 1024),) * 8)]).to(device)
    heads = config.num_attention_heads, *(key_width(config) // head_size(config),) * 2
    options: Any = {"device": device, "dtype": product_dtype(next(model.parameters())), "requires_grad": True}
    states = [torch.randn(1, count, len(row.input_ids), head_size(config), **options) for count in heads]

    def seconds(kernel: Kernel) -> float:
        started = time.perf_counter()
        with torch.enable_grad():
            kernel(row, *states, None, None).sum().backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - started

    return min(kernels, key=lambda name: min(seconds(kernels[name]) for _ in range(4)))
