"""How much two ways to compute the same log-probs may differ.

In float32 the bounds are constants. In bfloat16 it depends on the model: log-probs of a trained model move by 0.02 nats on
average when its products are rounded, single odd tokens by 0.1 to 0.5, those of a flat random model hardly at all. So the
model's own rounding is measured (its plain forward in bfloat16 against the same in float32), and another way of computing is
held against that, by means over many tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

# Nats: of a real model sums in another order move single odd tokens by more than 1e-4, and all of them by 1e-5 on average.
FLOAT32_MEAN, FLOAT32_LARGEST = 1e-4, 1e-3
# Two roundings that know nothing of each other differ by sqrt(2) of one; an engine that also rounds its residual stream by
# 1.7 (SmolLM2-135M). Of the same model any weight matrix that is missing makes it 6 or more.
SPREAD = 3.0
LEAST = 1e-4  # nats: below that a model's rounding cannot be told from that of float32 sums

_PRODUCTS = {F.linear, torch.mm, torch.bmm, torch.addmm, torch.matmul, Tensor.matmul, Tensor.__matmul__}


class _WidenedProducts(TorchFunctionMode):
    """Products whose factors are kept in 16 bits are computed in float32, one weight widened at a time. What a model's code itself
    rounds to the type of a weight (as Mamba's does before the output layer) stays as it is."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.to and any(x is torch.bfloat16 for x in (*args[1:], *(kwargs or {}).values())):
            return args[0]
        if func in _PRODUCTS:
            args = [x.float() if isinstance(x, Tensor) and x.dtype == torch.bfloat16 else x for x in args]
        return func(*args, **(kwargs or {}))


@contextmanager
def in_float32(model: nn.Module) -> Iterator[None]:
    """Inside the block a model computes in float32, whatever autocast surrounds it and whatever its weights are kept in."""
    device = next(model.parameters()).device
    # bitsandbytes' layers in 4 bits round what they read to a type of their own.
    packed: list[Any] = [m for m in model.modules() if isinstance(getattr(m, "compute_dtype", None), torch.dtype)]
    before = [layer.compute_dtype for layer in packed]
    try:
        for layer in packed:
            layer.compute_dtype = torch.float32
        with torch.autocast(device.type, enabled=False), _WidenedProducts():
            yield
    finally:
        for layer, dtype in zip(packed, before, strict=True):
            layer.compute_dtype = dtype


def rounding_noise(plain: Callable[[], Tensor], model: nn.Module) -> tuple[Tensor, float]:
    """plain: the model's own log-probs of some tokens. -> (these in float32, the mean by which bfloat16 moves them)."""
    with torch.no_grad():
        with in_float32(model):
            exact = plain().float()
        with torch.autocast(exact.device.type, torch.bfloat16):
            rounded = plain().float()
    return exact, mean_difference(rounded, exact)


def mean_difference(found: Tensor, expected: Tensor) -> float:
    return (found - expected).abs().mean().item()


def float32_difference(found: Tensor, expected: Tensor) -> str | None:
    """By how much log-probs differ, if by more than float32 explains."""
    mean, largest = mean_difference(found, expected), (found - expected).abs().max().item()
    if mean < FLOAT32_MEAN and largest < FLOAT32_LARGEST:
        return None
    return (
        f"its log-probs differ from the model's own by {mean:.2g} on average, {largest:.2g} at most "
        f"(rounding explains {FLOAT32_MEAN:g} and {FLOAT32_LARGEST:g})"
    )


def bound_of(noise: float) -> float:
    """The largest mean difference that rounding explains, where the model's own bfloat16 makes one of `noise`."""
    return max(LEAST, SPREAD * noise)
