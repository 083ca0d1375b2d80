"""The rows that are being decoded, with their tokens so far."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from rollout.engine.graphs import has_driver


@dataclass(frozen=True)
class Ended:
    """A completion that ended. completion: its number."""

    completion: int
    seed: int
    tokens: list[int]
    logprobs: list[float]
    stopped: bool


class Batch:
    """Rows 0..N-1 are decoded; the rows behind them are marked as ended, and their draws are discarded.

    Every tensor keeps its memory until the batch grows, so that a recorded step can be replayed. Only `has_ended` and `release` make
    the host wait for a device: until then a row that ended may be decoded further.
    """

    def __init__(self, max_rows: int, width: int, device: torch.device) -> None:
        """width: the tokens of a row and one column more, into which a full row writes if it is decoded further."""
        zeros = partial(torch.zeros, device=device)
        self.numbers = zeros(6, 0, dtype=torch.long)
        self.flags = zeros(2, 0, dtype=torch.bool)
        self.tokens = zeros(0, 0, dtype=torch.long)
        self.logprobs = zeros(0, 0)
        self.grow(max_rows, width)
        self.clear()

    def grow(self, max_rows: int, width: int) -> None:
        """Enlarges the tensors to max_rows rows of this width; the rows that are decoded stay. Neither size may shrink."""
        num_rows, old_width = self.tokens.shape
        rows, columns = max_rows - num_rows, width - old_width
        self.numbers, self.flags = enlarged(self.numbers, 0, rows), enlarged(self.flags, 0, rows)
        self.tokens, self.logprobs = enlarged(self.tokens, rows, columns), enlarged(self.logprobs, rows, columns)
        self.completion, self.seed, self.length, self.newest, self.position, self.limit = self.numbers
        self.ended, self.stopped = self.flags
        self.ended[num_rows:] = True

    def clear(self) -> None:
        self.num_rows = 0
        self.numbers.zero_()
        self.ended.fill_(True)

    def __len__(self) -> int:
        return self.num_rows

    def admit(
        self, completions: Tensor, seeds: Tensor, newest: Tensor, positions: Tensor, max_tokens: Tensor
    ) -> Tensor:
        """Adds a row for each completion. -> the indices of the rows. newest, positions: the prompts' last tokens and their positions."""
        rows = torch.arange(len(completions), device=completions.device) + len(self)
        new = slice(len(self), len(self) + len(completions))
        self.numbers[:, new] = torch.stack([completions, seeds, torch.zeros_like(seeds), newest, positions, max_tokens])
        self.flags[:, new] = False
        self.num_rows = new.stop
        return rows

    def append(self, tokens: Tensor, logprobs: Tensor) -> None:
        """Appends a token to each of the first len(tokens) rows; rows that have ended stay as they are."""
        now = slice(len(tokens))
        length, running = self.length[now], ~self.ended[now]
        self.tokens[now].scatter_(1, length[:, None], tokens[:, None])
        self.logprobs[now].scatter_(1, length[:, None], logprobs[:, None])
        self.newest[now] = tokens
        self.position[now].add_(running)
        length.add_(running)

    def end(self, stopped: Tensor) -> None:
        """Marks as ended, among the first len(stopped) rows, those whose newest token stops them and those at their limit."""
        now = slice(len(stopped))
        ended = self.ended[now]
        self.stopped[now].logical_or_(stopped & ~ended)
        ended.logical_or_(stopped).logical_or_(self.length[now] == self.limit[now])

    def has_ended(self) -> bool:
        return bool(self.ended[: len(self)].any())

    def ended_rows(self) -> list[int]:
        return self.ended[: len(self)].nonzero()[:, 0].tolist()

    def release(self) -> tuple[list[Ended], Tensor, Tensor]:
        """Removes the rows that ended. -> (their completions, sources and targets of the moves that close the gaps)"""
        gone = self.ended[: len(self)].clone()
        rows = gone.nonzero()[:, 0]
        done = [
            Ended(completion, seed, tokens[:length], logprobs[:length], stopped)
            for (completion, seed, length), tokens, logprobs, stopped in zip(
                self.numbers[:3, rows].T.tolist(),
                self.tokens[rows].tolist(),
                self.logprobs[rows].tolist(),
                self.stopped[rows].tolist(),
                strict=True,
            )
        ]
        sources, targets = closing_moves(gone)
        for state in (self.numbers.T, self.flags.T, self.tokens, self.logprobs):
            state[targets] = state[sources]
        self.num_rows -= len(done)
        self.numbers[:, len(self) :] = 0
        self.ended[len(self) :] = True
        return done, sources, targets


def enlarged(tensor: Tensor, *more: int) -> Tensor:
    """A copy, padded with zeros by `more` at the end of each of its first dimensions."""
    if has_driver(tensor.device):  # another stream may have made it: keep its memory until this stream has read it
        tensor.record_stream(torch.cuda.current_stream())
    return F.pad(tensor, [size for count in reversed(more) for size in (0, count)])


def closing_moves(gone: Tensor) -> tuple[Tensor, Tensor]:
    """gone: Bool[N], the slots that become free. -> (sources, targets) of the moves that fill them from the end."""
    keep = len(gone) - int(gone.sum())
    return (~gone[keep:]).nonzero()[:, 0] + keep, gone[:keep].nonzero()[:, 0]
