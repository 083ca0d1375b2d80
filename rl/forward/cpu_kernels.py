"""RMSNorm, SiLU(gate) * up and 16-bit attention of a training forward on a CPU: what is between matrix products is one compiled pass.

The compiled module is built from cpu_kernels.cpp as the package is installed, if there is a C++ compiler with OpenMP. Without it the
model's own norms and gates run, and scaled_dot_product_attention, whose 16-bit forward and backward take 2 to 3 times as long on a CPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch._subclasses import FakeTensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from rollout.attention import rounding_error
from rollout.engine.kernels import DTYPES

VERSION = 1  # of the functions' arguments: an installation may be older than the files beside it
try:
    from rl.forward import _cpu_kernels  # pyright: ignore[reportAttributeAccessIssue]
except ImportError:
    _cpu_kernels: Any = None
compiled: Any = _cpu_kernels if getattr(_cpu_kernels, "VERSION", None) == VERSION else None

WITHOUT = "an update in bfloat16 on a CPU is up to 1.2 times slower"
SCORES_AT_ONCE = 1 << 20  # of an attention's scores: they stay in a core's cache, and no more of them are in memory


def _address(tensor: Tensor | None) -> int:
    if tensor is None:
        return 0
    assert tensor.is_contiguous() and tensor.device.type == "cpu"
    return tensor.data_ptr()


def _run(name: str, dtype: torch.dtype, *arguments: Tensor | int | None, number: float = 0.0) -> None:
    """Calls a compiled function with the addresses of tensors, which it reads and writes in `dtype`, and with sizes."""
    integers = tuple(x if isinstance(x, int) else _address(x) for x in arguments)
    getattr(compiled, name)(DTYPES[dtype], (*integers, torch.get_num_threads()), number)


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float, dtype: torch.dtype) -> Tensor:
        assert weight.shape == x.shape[-1:]
        x, out = x.contiguous(), torch.empty(x.shape, dtype=dtype)
        ctx.save_for_backward(x, weight)
        ctx.epsilon = epsilon
        _run("norm", dtype, x, weight, out, x.numel() // x.shape[-1], x.shape[-1], number=epsilon)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight = ctx.saved_tensors
        width, dx, dw = x.shape[-1], torch.empty_like(x), None
        if ctx.needs_input_grad[1]:
            dw = torch.zeros(torch.get_num_threads(), width)
        dy = dy.contiguous()
        _run("norm_backward", dy.dtype, dy, x, weight, dx, dw, x.numel() // width, width, number=ctx.epsilon)
        return dx, None if dw is None else dw.sum(0), None, None


class _SiluTimes(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        assert gate.shape == up.shape
        gate, up = gate.contiguous(), up.contiguous()
        ctx.save_for_backward(gate, up)
        out = torch.empty_like(gate)
        _run("gated", gate.dtype, gate, up, out, gate.numel())
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        gate, up = ctx.saved_tensors
        dgate, dup = torch.empty_like(gate), torch.empty_like(up)
        _run("gated_backward", gate.dtype, dout.contiguous(), gate, up, dgate, dup, gate.numel())
        return dgate, dup


def rms_norm(x: Tensor, weight: Tensor, epsilon: float, dtype: torch.dtype) -> Tensor:
    """x / sqrt(mean(x^2) + epsilon) * weight over the last dimension (arXiv 1910.07467), in `dtype`."""
    result: Any = _Norm.apply(x.float(), weight.float(), epsilon, dtype if dtype in DTYPES else torch.float32)
    return result.to(dtype)


def silu_times(gate: Tensor, up: Tensor) -> Tensor:
    """SiLU(gate) * up, elementwise (arXiv 2002.05202)."""
    if gate.dtype != up.dtype or gate.dtype not in DTYPES:
        return F.silu(gate) * up
    result: Any = _SiluTimes.apply(gate, up)
    return result


def can_attend(states: Tensor) -> bool:
    """Whether `attend` takes states of this dtype and device. In float32 scaled_dot_product_attention is as fast."""
    is_fake = isinstance(states, FakeTensor)
    return compiled is not None and states.dtype == torch.bfloat16 and states.device.type == "cpu" and not is_fake


def attend(
    query: Float[Tensor, "B Hq C D"],
    key: Float[Tensor, "B Hkv K D"],
    value: Float[Tensor, "B Hkv K D"],
    first: Int[Tensor, "B C"],
    last: Int[Tensor, "B C"],
    scale: float,
) -> Float[Tensor, "B C Hq D"]:
    """softmax(scale q k^T) v of each query, over the keys first .. last - 1 of its piece. Scores and softmax are float32.

    As in FlashAttention (arXiv 2205.14135) the backward computes the weights again, so that none are kept between the two.
    """
    result: Any = _Attend.apply(query, key, value, first, last, scale)
    return result


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, first: Tensor, last: Tensor, scale: float
    ) -> Tensor:
        assert first.shape == last.shape == (len(query), query.shape[2]) and bool((last > first).all())
        assert bool((first >= 0).all()) and bool((last <= key.shape[2]).all())
        ctx.save_for_backward(query, key, value, first, last)
        ctx.scale = scale
        rows, heads, count, size = query.shape
        out = query.new_empty(rows, count, heads, size)
        for part in _parts(query, key, first, last):
            weights = part.weights(query, key, scale)
            out[part.rows, part.queries] = part.unfolded(torch.bmm(weights, part.of_keys(value)), heads).transpose(1, 2)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        query, key, value, first, last = ctx.saved_tensors
        heads, scale, dout = query.shape[1], ctx.scale, dout.transpose(1, 2).to(query.dtype)
        dquery, (dkey, dvalue) = torch.empty_like(query), (torch.zeros(x.shape) for x in (key, value))
        for part in _parts(query, key, first, last):
            weights, d = part.weights(query, key, scale), part.of_queries(dout, key.shape[1])
            dscores = torch.bmm(d, part.of_keys(value).mT)
            sizes = dscores.shape[:2].numel(), dscores.shape[2]
            _run("softmax_backward", weights.dtype, weights, dscores, dscores, *sizes, number=scale)
            dquery[part.rows, :, part.queries] = part.unfolded(torch.bmm(dscores, part.of_keys(key)), heads)
            for total, factor, of in ((dkey, dscores, query), (dvalue, weights, dout)):
                found = torch.bmm(factor.mT, part.of_queries(of, key.shape[1]))
                total[part.rows, :, part.keys] += found.unflatten(0, (-1, key.shape[1]))
        return dquery, dkey.to(key.dtype), dvalue.to(value.dtype), None, None, None


class _Part(NamedTuple):
    """Rows, queries and keys whose scores are computed at once. first, last: of each query, among these keys.

    Queries of the heads that share a key head are one factor: [b Hkv, Hq / Hkv x c, D].
    """

    rows: slice
    queries: slice
    keys: slice
    first: Tensor
    last: Tensor

    def of_keys(self, states: Tensor) -> Tensor:
        return states[self.rows, :, self.keys].flatten(0, 1)

    def of_queries(self, states: Tensor, key_heads: int) -> Tensor:
        part = states[self.rows, :, self.queries]
        return part.reshape(len(part) * key_heads, -1, part.shape[-1])

    def unfolded(self, states: Tensor, heads: int) -> Tensor:
        """[b Hkv, Hq / Hkv x c, D] -> [b, Hq, c, D]"""
        return states.view(len(self.first), heads, -1, states.shape[-1])

    def weights(self, query: Tensor, key: Tensor, scale: float) -> Tensor:
        """softmax(scale q k^T), 0 for keys that are not seen. [b Hkv, Hq / Hkv x c, k]"""
        factors = self.of_queries(query, key.shape[1]), self.of_keys(key)
        scores = torch.bmm(factors[0], factors[1].mT)
        error = None if scores.dtype == torch.float32 else rounding_error(scores, *factors)
        out, (heads, queries, keys) = torch.empty_like(scores), (query.shape[1], self.first.shape[1], scores.shape[2])
        sizes = heads, queries, keys, scores.shape[:2].numel()
        _run("softmax", scores.dtype, scores, error, out, self.first, self.last, *sizes, number=scale)
        return out


def _parts(query: Tensor, key: Tensor, first: Tensor, last: Tensor) -> Iterator[_Part]:
    rows, heads, queries, _ = query.shape
    most = max(1, SCORES_AT_ONCE // (heads * key.shape[2]))  # queries of a row
    for row, start in product(range(0, rows, max(1, most // queries)), range(0, queries, most)):
        at = slice(row, row + max(1, most // queries)), slice(start, start + most)
        keys = slice(int(first[at].min()), int(last[at].max()))
        yield _Part(*at, keys, (first[at] - keys.start).contiguous(), (last[at] - keys.start).contiguous())
