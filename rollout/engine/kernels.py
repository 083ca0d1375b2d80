"""The parts of a decoding step between its matrix products, each one call: compiled for a CPU (kernels.cpp), or else by torch.

The compiled module is built as the package is installed, if there is a C++ compiler; without it, on other devices and for sizes that it
does not take (vectors of LANES numbers), torch computes the same in about twenty calls a layer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

VERSION = 1  # of the functions' arguments: an installation may be older than the files beside it
try:
    from rollout.engine import _kernels  # pyright: ignore[reportAttributeAccessIssue]
except ImportError:
    _kernels: Any = None
compiled: Any = _kernels if getattr(_kernels, "VERSION", None) == VERSION else None

WITHOUT = "sampling on a CPU is up to 1.5 times slower"
LANES = 16
DTYPES = {torch.float32: False, torch.bfloat16: True}  # whether it is the half one


def can_compute(size: int, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the compiled functions take vectors of this size and dtype."""
    return compiled is not None and device.type == "cpu" and dtype in DTYPES and size % LANES == 0


def _are_float32(*tensors: Tensor) -> bool:
    return all(x.dtype == torch.float32 and x.is_contiguous() for x in tensors)


def rms_norm(x: Tensor, weight: Tensor, epsilon: float, dtype: torch.dtype) -> Tensor:
    """x / sqrt(mean x^2 + epsilon) * weight (arXiv 1910.07467), in float32, rounded to dtype. x: [..., H]; weight: float32[H]"""
    size = x.shape[-1]
    if not (can_compute(size, dtype, x.device) and _are_float32(x, weight)):
        return F.rms_norm(x.float(), (size,), weight, epsilon).to(dtype)
    out = torch.empty_like(x, dtype=dtype)
    compiled.rms_norm(DTYPES[dtype], x.data_ptr(), weight.data_ptr(), out.data_ptr(), x.numel() // size, size, epsilon)
    return out


def rotate_(heads: Tensor, cos: Tensor, sin: Tensor) -> None:
    """Rotary position embedding (arXiv 2104.09864) in place, pairing elements half a head apart. heads: [N, H, D], of which each token's
    are together in memory; cos, sin: float32[N, 1, D]. The first half of sin is negative."""
    count, size = heads.shape[1:]
    is_whole = cos.shape == sin.shape == (len(heads), 1, size) and heads.stride()[1:] == (size, 1)
    if is_whole and can_compute(size // 2, heads.dtype, heads.device) and _are_float32(cos, sin):
        where = heads.data_ptr(), cos.data_ptr(), sin.data_ptr()
        compiled.rotate(DTYPES[heads.dtype], *where, len(heads), count, heads.stride(0), size)
        return
    turned = heads.roll(size // 2, -1)
    heads.mul_(cos).addcmul_(turned, sin)


def gated(gate_up: Tensor, activation: Callable[[Tensor], Tensor]) -> Tensor:
    """activation(gate) * up (arXiv 2002.05202). gate_up: [N, 2 I], the gates first -> [N, I]"""
    gate, up = gate_up.chunk(2, dim=-1)
    return activation(gate).mul_(up)


def silu_mul(gate_up: Tensor) -> Tensor:
    """`gated` by SiLU."""
    size = gate_up.shape[-1] // 2
    if not (gate_up.is_contiguous() and can_compute(size, gate_up.dtype, gate_up.device)):
        return gated(gate_up, F.silu)
    out = gate_up.new_empty(len(gate_up), size)
    compiled.silu_mul(DTYPES[gate_up.dtype], gate_up.data_ptr(), out.data_ptr(), len(gate_up), size)
    return out


def draw(logits: Tensor, seeds: Tensor, counters: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """`draw_tokens` of `uniforms` (rollout/engine/draw.py) without a top_p. logits: [N, V]; seeds, counters: int64[N]; all contiguous, on a
    CPU -> (tokens, their log-probs)"""
    num_rows, num_tokens = logits.shape
    assert len(seeds) == len(counters) == num_rows and all(x.is_contiguous() for x in (logits, seeds, counters))
    tokens, logprobs = torch.empty_like(seeds), logits.new_empty(num_rows, dtype=torch.float32)
    read = logits.data_ptr(), seeds.data_ptr(), counters.data_ptr(), num_rows, num_tokens
    compiled.draw(DTYPES[logits.dtype], *read, tokens.data_ptr(), logprobs.data_ptr(), temperature)
    return tokens, logprobs


class Rows(NamedTuple):
    """The rows of a step, int64[N] each. order: in which they are processed, those of a group together. at: the column of the newest
    token among a row's own keys. prefix: how many keys of its group a row sees. group: its slot."""

    order: Tensor
    at: Tensor
    prefix: Tensor
    group: Tensor


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    shared: Tensor,
    own: Tensor,
    rows: Rows,
    *,
    scale: float,
    window: int | None,
) -> Tensor:
    """Writes the newest keys and values into column `at` of each row's own ones, then attends, under one softmax, to the first `prefix`
    keys of its group and to its own up to that column: of both the latest `window`. Scores, weights and sums are float32.

    query: [N, Hq, D]; key, value: [N, Hkv, D]; all three of one memory, each token's heads together. shared: [2, groups, Hkv, columns, D];
    own: [2, rows, Hkv, columns, D], both contiguous, keys first -> [N, Hq, D]
    """
    num_rows, query_heads, size = query.shape
    key_heads, out = key.shape[1], query.new_empty(query.shape)
    assert shared.is_contiguous() and own.is_contiguous() and shared.dtype == own.dtype == query.dtype
    assert shared.shape[2::2] == own.shape[2::2] == (key_heads, size)
    assert all(len(x) == num_rows and x.is_contiguous() for x in rows)
    assert query.stride() == key.stride() == value.stride() and query.stride()[1:] == (size, 1)
    states = query.data_ptr(), key.data_ptr(), value.data_ptr(), query.stride(0)
    cached = own.data_ptr(), own.shape[1], own.shape[3], shared.data_ptr(), shared.shape[1], shared.shape[3]
    numbers = *(x.data_ptr() for x in rows), num_rows, key_heads, query_heads // key_heads, size, window or 0
    compiled.attend(DTYPES[query.dtype], *states, *cached, *numbers, out.data_ptr(), scale)
    return out
