"""The pieces of a packed row, and their layouts for attention kernels, computed from lengths only.

A piece of the row is a prompt, or a completion without its last token. Its tokens are queries. Its keys are those of its prompt, for
a completion, and its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


@dataclass(frozen=True)
class Piece:
    """own: positions of its tokens in the row. before: positions of its prompt's tokens; empty for a prompt."""

    own: range
    before: range = range(0)

    @property
    def num_keys(self) -> int:
        return len(self.before) + len(self.own)

    def query_slots(self) -> Int[Tensor, " C"]:
        return torch.arange(self.own.start, self.own.stop)

    def key_slots(self) -> Int[Tensor, " K"]:
        return torch.cat([torch.arange(self.before.start, self.before.stop), self.query_slots()])


def pieces_of(prompts: Sequence[int], completions: Sequence[int], prompt_of: Sequence[int]) -> list[Piece]:
    """The pieces of a row of prompts followed by completions, from their lengths. prompt_of: the prompt index of each completion."""
    ends = list(accumulate((*prompts, *completions)))
    own = [range(end - length, end) for end, length in zip(ends, (*prompts, *completions), strict=True)]
    before = [range(0)] * len(prompts) + [own[q] for q in prompt_of]
    return [Piece(*ranges) for ranges in zip(own, before, strict=True)]


@dataclass(frozen=True, kw_only=True)
class AttentionBlock:
    """B pieces of similar length, padded to C queries and K keys, for kernels that attend one block at a time.

    The keys of a piece are its context from position 0 on; its queries are at the last of these positions. query_slots, key_slots:
    positions in the row, padded with 0. num_queries, num_keys: of each piece. filled_queries: the indices of the flattened query_slots
    that are not padding.
    """

    query_slots: Int[Tensor, "B C"]
    key_slots: Int[Tensor, "B K"]
    num_queries: Int[Tensor, " B"]
    num_keys: Int[Tensor, " B"]
    filled_queries: Int[Tensor, " F"]

    def spans(self, window: int | None) -> tuple[Int[Tensor, "B C"], Int[Tensor, "B C"]]:
        """The keys first .. last - 1 that each query attends to: those up to its own position; with a window only the last `window`."""
        queries = torch.arange(self.query_slots.shape[1], device=self.query_slots.device)
        newest = self.num_queries[:, None] - 1  # padding attends as the last query does, so that no row is empty
        last = torch.minimum(queries, newest) + (self.num_keys - self.num_queries)[:, None] + 1
        return torch.zeros_like(last) if window is None else (last - window).clamp_(min=0), last

    def visible(self, window: int | None) -> Bool[Tensor, "B C K"]:
        """Whether each query attends to each key."""
        keys = torch.arange(self.key_slots.shape[1], device=self.key_slots.device)
        first, last = (x[:, :, None] for x in self.spans(window))
        return (keys < last) if window is None else (keys >= first) & (keys < last)

    @staticmethod
    def of(pieces: Sequence[Piece]) -> AttentionBlock:
        lengths = [len(piece.own) for piece in pieces]
        query_slots = pad_sequence([piece.query_slots() for piece in pieces], batch_first=True)
        starts = range(0, query_slots.numel(), query_slots.shape[1])
        return AttentionBlock(
            query_slots=query_slots,
            key_slots=pad_sequence([piece.key_slots() for piece in pieces], batch_first=True),
            num_queries=torch.tensor(lengths),
            num_keys=torch.tensor([piece.num_keys for piece in pieces]),
            filled_queries=torch.cat([torch.arange(s, s + n) for s, n in zip(starts, lengths, strict=True)]),
        )


def blocks_of(pieces: Sequence[Piece]) -> list[AttentionBlock]:
    """Groups pieces with similar numbers of queries into blocks, because attention over padding is wasted work."""
    blocks: list[list[Piece]] = []
    for piece in sorted((p for p in pieces if p.own), key=lambda p: len(p.own)):
        if not blocks or len(piece.own) > 1.5 * len(blocks[-1][0].own) + 16:
            blocks.append([])
        blocks[-1].append(piece)
    return [AttentionBlock.of(block) for block in blocks]


@dataclass(frozen=True, kw_only=True)
class RaggedPieces:
    """All pieces of a row without padding, for kernels that take ragged pieces in one call. Queries are in the order of the row.

    query_starts, key_starts: the cumulative numbers of queries and keys, from 0 to the totals. key_slots: positions of the keys in the
    row. most_queries, most_keys: the largest numbers of one piece.
    """

    query_starts: Int[Tensor, " P"]
    key_starts: Int[Tensor, " P"]
    key_slots: Int[Tensor, " E"]
    most_queries: int
    most_keys: int

    @staticmethod
    def of(pieces: Sequence[Piece]) -> RaggedPieces:
        pieces = [piece for piece in pieces if piece.own]  # a completion of one token has no query
        lengths = [len(piece.own) for piece in pieces], [piece.num_keys for piece in pieces]
        query_starts, key_starts = (torch.tensor([*accumulate(n, initial=0)], dtype=torch.int32) for n in lengths)
        return RaggedPieces(
            query_starts=query_starts,
            key_starts=key_starts,
            key_slots=torch.cat([piece.key_slots() for piece in pieces]),
            most_queries=max(lengths[0]),
            most_keys=max(lengths[1]),
        )


def transferred(tensors: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Copies all tensors to the device in one asynchronous transfer, which takes about as long as one for a single small tensor."""
    if device.type == "cpu":
        return {name: x.to(device) for name, x in tensors.items()}
    names = sorted(tensors, key=lambda name: -tensors[name].element_size())  # aligns each to its element size
    flat = torch.cat([tensors[name].flatten().view(torch.uint8) for name in names])
    if device.type == "cuda" and not flat.is_cuda:
        flat = flat.pin_memory()
    parts = flat.to(device, non_blocking=True).split([tensors[name].nbytes for name in names])
    return {
        name: part.view(tensors[name].dtype).view(tensors[name].shape) for name, part in zip(names, parts, strict=True)
    }
