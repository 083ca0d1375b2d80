"""Weights as autocast multiplies with them: which type that is, and how long a cast is kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import reduce

import torch
from torch import Tensor


@dataclass(frozen=True)
class _Kept:
    with_gradient: bool
    casts: dict[Tensor, Tensor] = field(default_factory=dict)  # of weights that autocast does not see


_kept: _Kept | None = None  # as autocast's own, of the whole process


@contextmanager
def keeping_casts(device: torch.device) -> Iterator[None]:
    """Around forwards and backwards between which no weight changes: each trained one is cast once, and not once a forward.

    autocast keeps its casts until the outermost autocast ends, and one that is switched off counts.
    """
    global _kept
    before, _kept = _kept, _Kept(torch.is_grad_enabled())
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        _kept = before


def may_keep() -> bool:
    """Whether autocast may keep a cast that is made now. One that was made without gradient gives none to a forward that needs it."""
    return _kept is None or _kept.with_gradient == torch.is_grad_enabled()


def cast(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Without gradient, for a product that autocast does not see; kept where autocast would keep it."""
    if weight.dtype == dtype or _kept is None or not weight.requires_grad:
        return weight.detach().to(dtype)
    if weight not in _kept.casts:
        _kept.casts[weight] = weight.detach().to(dtype)
    return _kept.casts[weight]


def product_dtype(*tensors: Tensor) -> torch.dtype:
    """What autocast would cast them to for a matrix product; where there is no autocast, the least type that holds them all."""
    device = tensors[0].device.type
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return reduce(torch.promote_types, (tensor.dtype for tensor in tensors))
