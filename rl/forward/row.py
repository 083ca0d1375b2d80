"""The packed row of a micro-batch as attention reads it: for each kernel the layout that it needs, made from lengths alone.

A piece of the row is a prompt, or a completion without its last token. Its tokens are queries; its keys are those of the prompt
before it and its own.
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
    """own: where in the row its tokens stand. before: where those of its prompt do."""

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
    """By their lengths: the prompts, one after the other, then the completions."""
    ends = list(accumulate((*prompts, *completions)))
    own = [range(end - length, end) for end, length in zip(ends, (*prompts, *completions), strict=True)]
    before = [range(0)] * len(prompts) + [own[q] for q in prompt_of]
    return [Piece(*ranges) for ranges in zip(own, before, strict=True)]


@dataclass(frozen=True, kw_only=True)
class AttentionBlock:
    """For padded kernels, queries that are attended together: B pieces of about one length, at most C queries over at most K keys.

    A piece's keys are its context from position 0 on, and its queries the last of them. query_slots, key_slots: where in the
    row they stand, padded with 0; filled_queries: the places in the flattened query_slots that are no padding.
    """

    query_slots: Int[Tensor, "B C"]
    key_slots: Int[Tensor, "B K"]
    num_queries: Int[Tensor, " B"]
    num_keys: Int[Tensor, " B"]
    filled_queries: Int[Tensor, " F"]

    def visible(self, window: int | None) -> Bool[Tensor, "B C K"]:
        """Keys at the query's position or before it, in a window only the last `window` of them."""
        queries, keys = (torch.arange(n.shape[1], device=n.device) for n in (self.query_slots, self.key_slots))
        last = self.num_queries[:, None] - 1  # padding sees what the last query sees: never nothing
        position = (torch.minimum(queries, last) + (self.num_keys - self.num_queries)[:, None])[:, :, None]
        return keys <= position if window is None else (keys <= position) & (keys > position - window)

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
    """Pieces of similar numbers of queries together: what a block pads is attended for nothing."""
    blocks: list[list[Piece]] = []
    for piece in sorted((p for p in pieces if p.own), key=lambda p: len(p.own)):
        if not blocks or len(piece.own) > 1.5 * len(blocks[-1][0].own) + 16:
            blocks.append([])
        blocks[-1].append(piece)
    return [AttentionBlock.of(block) for block in blocks]


@dataclass(frozen=True, kw_only=True)
class RaggedPieces:
    """For kernels that take ragged pieces: all of them in one call, the queries as they stand in the row.

    query_starts, key_starts: where each piece's begin, and where the last one's end. key_slots: where in the row the keys stand.
    most_queries, most_keys: of one piece.
    """

    query_starts: Int[Tensor, " P"]
    key_starts: Int[Tensor, " P"]
    key_slots: Int[Tensor, " E"]
    most_queries: int
    most_keys: int

    @staticmethod
    def of(pieces: Sequence[Piece]) -> RaggedPieces:
        pieces = [piece for piece in pieces if piece.own]  # a completion of one token asks nothing
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
    """All of them on the device by one copy that the host does not wait for; each of twenty small ones would take as long."""
    if device.type == "cpu":
        return {name: x.to(device) for name, x in tensors.items()}
    names = sorted(tensors, key=lambda name: -tensors[name].element_size())  # each begins at a multiple of its size
    flat = torch.cat([tensors[name].flatten().view(torch.uint8) for name in names])
    if device.type == "cuda" and not flat.is_cuda:
        flat = flat.pin_memory()
    parts = flat.to(device, non_blocking=True).split([tensors[name].nbytes for name in names])
    return {
        name: part.view(tensors[name].dtype).view(tensors[name].shape) for name, part in zip(names, parts, strict=True)
    }
