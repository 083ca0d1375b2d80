"""RMSNorm and SiLU(gate) * up, each as one Triton kernel for the forward and one for the backward, computed in float32.

They are registered as torch operators (`torch.ops.plumbline`), so that FakeTensorMode knows the shapes of their results and tools
that count memory traffic see them: each reads its arguments once and writes its results once. Import this file only if Triton is
installed.
"""

# Triton accepts plain numbers for `constexpr` parameters.
# pyright: reportArgumentType=false

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.errors import TritonError

__all__ = ["TritonError", "rms_norm", "silu_times"]

# The norm's backward runs 512 programs, or more if rows are short, up to 2^20 numbers at once.
_PROGRAMS, _NUMBERS_AT_ONCE = 512, 2**20
_BLOCK = 1024


@triton.jit
def _norm_forward(x_ptr, weight_ptr, y_ptr, columns, epsilon, BLOCK: tl.constexpr):
    row, at = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    x = tl.load(x_ptr + row * columns + at, mask=at < columns, other=0.0).to(tl.float32)
    weight = tl.load(weight_ptr + at, mask=at < columns, other=0.0).to(tl.float32)
    y = x * tl.rsqrt(tl.sum(x * x, 0) / columns + epsilon) * weight
    tl.store(y_ptr + row * columns + at, y.to(y_ptr.dtype.element_ty), mask=at < columns)


@triton.jit
def _norm_backward(
    dy_ptr, x_ptr, weight_ptr, dx_ptr, dw_ptr, rows, columns, epsilon, WITH_DW: tl.constexpr, BLOCK: tl.constexpr
):
    """With n = x / rms(x) and g = dy weight: dx = (g - n mean(g n)) / rms(x); dw = the sum of dy n over this program's rows."""
    program, at = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    weight = tl.load(weight_ptr + at, mask=at < columns, other=0.0).to(tl.float32)
    dw = tl.zeros((BLOCK,), dtype=tl.float32)
    for row in range(program, rows, tl.num_programs(0)):
        start = row * columns
        x = tl.load(x_ptr + start + at, mask=at < columns, other=0.0).to(tl.float32)
        dy = tl.load(dy_ptr + start + at, mask=at < columns, other=0.0).to(tl.float32)
        scale = tl.rsqrt(tl.sum(x * x, 0) / columns + epsilon)
        n, g = x * scale, dy * weight
        dx = scale * (g - n * (tl.sum(g * n, 0) / columns))
        tl.store(dx_ptr + start + at, dx.to(dx_ptr.dtype.element_ty), mask=at < columns)
        dw += dy * n
    if WITH_DW:
        tl.store(dw_ptr + program * columns + at, dw, mask=at < columns)


@triton.jit
def _gated_forward(gate_ptr, up_ptr, out_ptr, numbers, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    gate = tl.load(gate_ptr + at, mask=at < numbers, other=0.0).to(tl.float32)
    up = tl.load(up_ptr + at, mask=at < numbers, other=0.0).to(tl.float32)
    tl.store(out_ptr + at, (gate * tl.sigmoid(gate) * up).to(out_ptr.dtype.element_ty), mask=at < numbers)


@triton.jit
def _gated_backward(dout_ptr, gate_ptr, up_ptr, dgate_ptr, dup_ptr, numbers, BLOCK: tl.constexpr):
    """With s = sigmoid(gate): dup = dout gate s, dgate = dout up s (1 + gate (1 - s))."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    dout = tl.load(dout_ptr + at, mask=at < numbers, other=0.0).to(tl.float32)
    gate = tl.load(gate_ptr + at, mask=at < numbers, other=0.0).to(tl.float32)
    up = tl.load(up_ptr + at, mask=at < numbers, other=0.0).to(tl.float32)
    s = tl.sigmoid(gate)
    dgate, dup = dout * up * s * (1 + gate * (1 - s)), dout * gate * s
    tl.store(dgate_ptr + at, dgate.to(dgate_ptr.dtype.element_ty), mask=at < numbers)
    tl.store(dup_ptr + at, dup.to(dup_ptr.dtype.element_ty), mask=at < numbers)


def _row_options(columns: int) -> dict[str, int]:
    block = triton.next_power_of_2(columns)
    return {"BLOCK": block, "num_warps": min(max(block // 256, 1), 16)}


def _grid(tensor: Tensor) -> tuple[int]:
    return (triton.cdiv(tensor.numel(), _BLOCK),)


@torch.library.custom_op("plumbline::rms_norm", mutates_args=())
def rms_norm(x: Tensor, weight: Tensor, epsilon: float, dtype: torch.dtype) -> Tensor:
    """x / sqrt(mean(x^2) + epsilon) * weight over the last dimension, in `dtype`."""
    x, y = x.contiguous(), torch.empty(x.shape, dtype=dtype, device=x.device)
    columns = x.shape[-1]
    _norm_forward[(x.numel() // columns,)](x, weight, y, columns, epsilon, **_row_options(columns))
    return y


@torch.library.custom_op("plumbline::rms_norm_backward", mutates_args=())
def _rms_norm_backward(dy: Tensor, x: Tensor, weight: Tensor, epsilon: float, with_dw: bool) -> tuple[Tensor, Tensor]:
    """dx, and dw as one partial sum per program; without with_dw there are none."""
    x, dx, dw = x.contiguous(), torch.empty(x.shape, dtype=x.dtype, device=x.device), _empty_dw(x, with_dw)
    columns, programs = x.shape[-1], _programs(x)
    _norm_backward[(programs,)](
        dy.contiguous(), x, weight, dx, dw, x.numel() // columns, columns, epsilon, with_dw, **_row_options(columns)
    )
    return dx, dw


def _programs(x: Tensor) -> int:
    return min(x.numel() // x.shape[-1], max(_PROGRAMS, _NUMBERS_AT_ONCE // x.shape[-1]))


def _empty_dw(x: Tensor, with_dw: bool) -> Tensor:
    return torch.empty(_programs(x) if with_dw else 0, x.shape[-1], dtype=torch.float32, device=x.device)


@torch.library.custom_op("plumbline::silu_times", mutates_args=())
def silu_times(gate: Tensor, up: Tensor) -> Tensor:
    """SiLU(gate) * up, elementwise."""
    gate, up = gate.contiguous(), up.contiguous()
    out = torch.empty_like(gate)
    _gated_forward[_grid(gate)](gate, up, out, gate.numel(), BLOCK=_BLOCK)
    return out


@torch.library.custom_op("plumbline::silu_times_backward", mutates_args=())
def _silu_times_backward(dout: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    gate, up = gate.contiguous(), up.contiguous()
    dgate, dup = torch.empty_like(gate), torch.empty_like(up)
    _gated_backward[_grid(gate)](dout.contiguous(), gate, up, dgate, dup, gate.numel(), BLOCK=_BLOCK)
    return dgate, dup


@rms_norm.register_fake
def _(x: Tensor, weight: Tensor, epsilon: float, dtype: torch.dtype) -> Tensor:
    return torch.empty(x.shape, dtype=dtype, device=x.device)


@_rms_norm_backward.register_fake
def _(dy: Tensor, x: Tensor, weight: Tensor, epsilon: float, with_dw: bool) -> tuple[Tensor, Tensor]:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device), _empty_dw(x, with_dw)


@silu_times.register_fake
def _(gate: Tensor, up: Tensor) -> Tensor:
    return torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)


@_silu_times_backward.register_fake
def _(dout: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    return silu_times(gate, up), silu_times(gate, up)


def _save_norm_inputs(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, ctx.epsilon, _ = inputs
    ctx.save_for_backward(x, weight)


def _norm_gradients(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
    x, weight = ctx.saved_tensors
    dx, parts = _rms_norm_backward(dy, x, weight, ctx.epsilon, ctx.needs_input_grad[1])
    return dx, parts.sum(0).to(weight.dtype) if ctx.needs_input_grad[1] else None, None, None


def _save_gated_inputs(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gated_gradients(ctx: Any, dout: Tensor) -> tuple[Tensor, Tensor]:
    return _silu_times_backward(dout, *ctx.saved_tensors)


rms_norm.register_autograd(_norm_gradients, setup_context=_save_norm_inputs)
silu_times.register_autograd(_gated_gradients, setup_context=_save_gated_inputs)
