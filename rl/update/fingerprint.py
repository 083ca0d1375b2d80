"""Tells the weights that an engine holds from the policy's: what each tensor makes of a fixed direction.

An engine that computes in 16 bits holds rounded weights. How each number rounds is known, so the policy's tensor is compared as
it is and as bfloat16 rounds it: a step that moves a weight by less than a rounding still moves some of the rounded ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import torch
from torch import Tensor

from rollout.sampler import fingerprint

NUMBERS = 4  # of a sketch, a tensor


class Fingerprint:
    """Of a model's tensors, by name. rounds: an engine may hold them in bfloat16."""

    def __init__(self, *, rounds: bool) -> None:
        self.rounds = rounds
        self.images: dict[str, Tensor] = {}  # [as it is, as bfloat16 has it]

    def add(self, name: str, tensor: Tensor) -> None:
        kinds = (tensor, tensor.bfloat16()) if self.rounds else (tensor,)
        self.images[name] = torch.stack([fingerprint(kind).flatten().cpu() for kind in kinds])

    def is_comparable(self, held: Mapping[str, Tensor]) -> bool:
        """Whether any of it goes by the name of one of these tensors."""
        return bool(self._shared(held))

    def differing(self, held: Mapping[str, Tensor], rounding: float) -> list[str]:
        """The held tensors that are not these, by more than a share `rounding` of their length."""
        return [
            name
            for name, ours in self._shared(held).items()
            if not min((held[name].flatten().cpu() - x).norm() for x in ours) <= rounding * (ours[0].norm() + 1e-6)
        ]

    def sketch(self, held: Mapping[str, Tensor]) -> Tensor:
        """A few sums of each of these images, as shares of their lengths, to be kept: float64[kinds, tensors x NUMBERS]."""
        parts = [x.double() @ _signs(x.shape[1]) / self._length(name) for name, x in self._shared(held).items()]
        return torch.cat(parts, dim=1)

    def sketch_of(self, held: Mapping[str, Tensor]) -> Tensor:
        """The same of what is held. float64[tensors x NUMBERS]"""
        shared = self._shared(held)
        parts = [
            held[name].flatten().cpu().double() @ _signs(x.shape[1]) / self._length(name) for name, x in shared.items()
        ]
        return torch.cat(parts)

    def _length(self, name: str) -> Tensor:
        return self.images[name][0].double().norm() + 1e-6

    def _shared(self, held: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: x for name, x in self.images.items() if name in held and held[name].numel() == x.shape[1]}


@cache
def _signs(size: int) -> Tensor:
    return torch.randn(size, NUMBERS, generator=torch.Generator().manual_seed(1), dtype=torch.float64) / size**0.5
