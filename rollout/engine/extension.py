"""Tokens that are added to rows whose earlier keys and values are in the buffers, processed at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rollout.attention import grouped_attention
from rollout.engine.fused_model import FusedLayer


@dataclass(frozen=True, kw_only=True)
class Extension:
    """The added tokens of rows first..first+count-1, one row after the other; a row may have none.

    tokens, rows, columns: int[T], where `columns` are those of the rows' own keys. prefix: int[count], the shared tokens of each row.
    longest: most tokens of a row. places: int[T], the place of each token in [count x longest].
    """

    first: int
    count: int
    longest: int
    width: int
    tokens: Tensor
    rows: Tensor
    columns: Tensor
    places: Tensor
    prefix: Tensor

    @staticmethod
    def of(first: int, starts: Sequence[int], added: Sequence[Tensor], prefix: Tensor) -> Extension:
        """starts: the column of the first added token of each row."""
        longest, device = max(map(len, added)), prefix.device
        each = [
            (row, start, n) for row, (start, new) in enumerate(zip(starts, added, strict=True)) for n in range(len(new))
        ]
        row, start, n = torch.tensor(each, device=device).T
        return Extension(
            first=first,
            count=len(added),
            longest=longest,
            width=max(start + len(new) for start, new in zip(starts, added, strict=True)),
            tokens=torch.cat(list(added)),
            rows=first + row,
            columns=start + n,
            places=row * longest + n,
            prefix=prefix,
        )

    @property
    def positions(self) -> Tensor:
        return self.columns + self.prefix[self.rows - self.first]

    def padded(self, states: Tensor) -> Tensor:
        """[T, ...] -> [count, longest, ...]"""
        padded = states.new_zeros(self.count * self.longest, *states.shape[1:])
        padded[self.places] = states
        return padded.unflatten(0, (self.count, self.longest))

    def mask(self, shared_width: int, window: int | None) -> Tensor:
        """Bool[count, 1, longest, shared_width + width], in which each token sees those before it and itself."""
        at, prefix = self.padded(self.columns)[..., None], self.prefix[:, None, None]
        shared, own = (torch.arange(width, device=at.device) for width in (shared_width, self.width))
        on_shared, on_own = (shared < prefix).expand(-1, self.longest, -1), own <= at
        if window is not None:
            on_shared, on_own = on_shared & (at + prefix - shared < window), on_own & (at - own < window)
        return torch.cat([on_shared, on_own], dim=-1)[:, None]

    def attention(
        self, layer: FusedLayer, query: Tensor, shared: Tensor, own: Tensor, groups: Tensor, mask: Tensor
    ) -> Tensor:
        """query: [T, Hq, D]; shared: [2, slots, Hkv, shared_width, D]; own: [2, rows, Hkv, columns, D], with the keys and values of the
        added tokens; groups: the slot of each row. -> [T, Hq, D]"""
        of_rows = own[:, self.first : self.first + self.count, :, : self.width]
        keys, values = torch.cat([shared[:, groups], of_rows], dim=3)
        query = self.padded(query).transpose(1, 2)
        out = grouped_attention(query, keys, values, mask=mask, causal=False, scale=layer.scale)
        return out.flatten(0, 1)[self.places]
