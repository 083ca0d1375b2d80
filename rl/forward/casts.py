"""Casts of weights under autocast: the dtype of a matrix product, and a cache of casts that outlives one forward."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import reduce

import torch
from torch import Tensor


@dataclass(frozen=True)
class _CastCache:
    with_gradient: bool
    casts: dict[Tensor, Tensor] = field(default_factory=dict)  # weight -> cast, for products outside autocast


_cache: _CastCache | None = None  # global to the process, as is autocast's own cache


@contextmanager
def keeping_casts(device: torch.device) -> Iterator[None]:
    """Context for forwards and backwards between which no weight changes: each trainable weight is cast once instead of per forward.

    It is an outer, disabled autocast: autocast clears its cache when the outermost autocast context ends, even a disabled one.
    """
    global _cache
    before, _cache = _cache, _CastCache(torch.is_grad_enabled())
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        _cache = before


def may_keep() -> bool:
    """Whether autocast may cache a cast made now.

    A cast that was made without gradient would give no gradient to a later forward that needs one.
    """
    return _cache is None or _cache.with_gradient == torch.is_grad_enabled()


def cast(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """The weight in `dtype`, without gradient, for a product outside autocast; cached under the same conditions as autocast's casts."""
    if weight.dtype == dtype or _cache is None or not weight.requires_grad:
        return weight.detach().to(dtype)
    if weight not in _cache.casts:
        _cache.casts[weight] = weight.detach().to(dtype)
    return _cache.casts[weight]


def product_dtype(*tensors: Tensor) -> torch.dtype:
    """The dtype that autocast casts these tensors to for a matrix product; without autocast, the type that they promote to."""
    device = tensors[0].device.type
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return reduce(torch.promote_types, (tensor.dtype for tensor in tensors))
