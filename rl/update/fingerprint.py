"""Fingerprints of a model's tensors, W @ v for a fixed random v, to compare an engine's weights with the policy's.

An engine that computes in 16 bits holds rounded weights. Its fingerprints are compared with those of the policy's exact tensors and of
the same tensors rounded to bfloat16: even an update smaller than the rounding step of most weights changes some of the rounded ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import torch
from torch import Tensor

from rollout.sampler import fingerprint

SKETCH_SIZE = 4  # numbers of a sketch per tensor


class Fingerprint:
    """The fingerprints of a model's tensors, by name. rounds: an engine may hold them rounded to bfloat16."""

    def __init__(self, *, rounds: bool) -> None:
        self.rounds = rounds
        self.fingerprints: dict[str, Tensor] = {}  # [variants, rows]: exact, and with `rounds` of rounded tensors

    def add(self, name: str, tensor: Tensor) -> None:
        dtypes = (tensor.dtype, torch.bfloat16) if self.rounds else (tensor.dtype,)
        self.fingerprints[name] = torch.stack([fingerprint(tensor, dtype).flatten().cpu() for dtype in dtypes])

    def is_comparable(self, held: Mapping[str, Tensor]) -> bool:
        """Whether an engine's fingerprints include one with a name and size of these tensors."""
        return bool(self._shared(held))

    def differing(self, held: Mapping[str, Tensor], rounding: float) -> list[str]:
        """Names of the engine's tensors whose fingerprints differ from these by more than `rounding`, relative to their norm."""
        return [
            name
            for name, ours in self._shared(held).items()
            if not min((held[name].flatten().cpu() - x).norm() for x in ours) <= rounding * (ours[0].norm() + 1e-6)
        ]

    def sketch(self, held: Mapping[str, Tensor]) -> Tensor:
        """Random projections of these fingerprints, divided by their norms: float64[variants, tensors x SKETCH_SIZE].

        Small enough to be kept for many versions. held: an engine's fingerprints; the sketch covers the tensors in both.
        """
        parts = [x.double() @ _projection(x.shape[1]) / self._norm(name) for name, x in self._shared(held).items()]
        return torch.cat(parts, dim=1)

    def sketch_of(self, held: Mapping[str, Tensor]) -> Tensor:
        """The sketch of an engine's fingerprints: float64[tensors x SKETCH_SIZE]."""
        shared = self._shared(held)
        parts = [
            held[name].flatten().cpu().double() @ _projection(x.shape[1]) / self._norm(name)
            for name, x in shared.items()
        ]
        return torch.cat(parts)

    def _norm(self, name: str) -> Tensor:
        return self.fingerprints[name][0].double().norm() + 1e-6

    def _shared(self, held: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: x for name, x in self.fingerprints.items() if name in held and held[name].numel() == x.shape[1]}


@cache
def _projection(size: int) -> Tensor:
    return torch.randn(size, SKETCH_SIZE, generator=torch.Generator().manual_seed(1), dtype=torch.float64) / size**0.5
