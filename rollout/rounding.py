"""Bounds on the difference between two computations of the same log-probs.

In float32 the bounds are constants. In bfloat16 they depend on the model: rounding its products changes the log-probs of a trained
model by 0.02 nats on average and of single unlikely tokens by 0.1 to 0.5, those of a flat random model hardly at all. So the model's
own rounding is measured (its plain forward in bfloat16 against float32), and another computation is compared with that, by means over
many tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

# Nats: sums in another order change log-probs of a real model by more than 1e-4 for single unlikely tokens, by 1e-5 on average.
FLOAT32_MEAN, FLOAT32_LARGEST = 1e-4, 1e-3
# Two independent roundings differ by sqrt(2) times one of them; an engine that also rounds its residual stream by 1.7 times
# (SmolLM2-135M). In the same model any missing weight matrix makes it 6 times or more.
SPREAD = 3.0
LEAST = 1e-4  # nats: below that a model's rounding is not distinguishable from that of float32 sums

_PRODUCTS = {F.linear, torch.mm, torch.bmm, torch.addmm, torch.matmul, Tensor.matmul, Tensor.__matmul__}


class _WidenedProducts(TorchFunctionMode):
    """Computes products of 16-bit factors in float32, converting one weight at a time. Conversions to bfloat16 by the model's own code
    (as Mamba's before the output layer) are ignored."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.to and any(x is torch.bfloat16 for x in (*args[1:], *(kwargs or {}).values())):
            return args[0]
        if func in _PRODUCTS:
            args = [x.float() if isinstance(x, Tensor) and x.dtype == torch.bfloat16 else x for x in args]
        return func(*args, **(kwargs or {}))


@contextmanager
def in_float32(model: nn.Module) -> Iterator[None]:
    """Within the context the model computes in float32, regardless of an outer autocast and of the dtype of its weights."""
    device = next(model.parameters()).device
    # bitsandbytes' 4-bit layers round their input to a dtype of their own.
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
    """plain: computes the model's log-probs of some tokens. -> (these in float32, the mean absolute change by bfloat16)"""
    with torch.no_grad():
        with in_float32(model):
            exact = plain().float()
        with torch.autocast(exact.device.type, torch.bfloat16):
            rounded = plain().float()
    return exact, mean_difference(rounded, exact)


def mean_difference(found: Tensor, expected: Tensor) -> float:
    return (found - expected).abs().mean().item()


def float32_difference(found: Tensor, expected: Tensor) -> str | None:
    """A description of the difference between log-probs if it exceeds float32 rounding, otherwise None."""
    mean, largest = mean_difference(found, expected), (found - expected).abs().max().item()
    if mean < FLOAT32_MEAN and largest < FLOAT32_LARGEST:
        return None
    return (
        f"its log-probs differ from the model's own by {mean:.2g} on average, {largest:.2g} at most "
        f"(rounding explains {FLOAT32_MEAN:g} and {FLOAT32_LARGEST:g})"
    )


def bound_of(noise: float) -> float:
    """The largest mean difference that rounding explains, given the mean difference `noise` of the model's own bfloat16 forward."""
    return max(LEAST, SPREAD * noise)
