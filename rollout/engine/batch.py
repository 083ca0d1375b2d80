"""The rows being decoded, and every completion's tokens so far."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rollout.sampler import SampleRequest


class Batch:
    """Row state moves; completions stay where they are. Nothing but `release` makes the host wait for a device.

    A row that ended may be decoded on until it is released: nothing of that is kept.
    """

    def __init__(self, requests: Sequence[SampleRequest], max_tokens: int, device: torch.device) -> None:
        self.max_tokens = max_tokens
        self.seeds = torch.tensor([seed for r in requests for seed in r.seeds], dtype=torch.long, device=device)
        count = len(self.seeds)
        self.tokens = torch.zeros(count, max_tokens + 1, dtype=torch.long, device=device)  # the last: what is not kept
        self.logprobs = torch.zeros(count, max_tokens + 1, device=device)
        self.lengths = torch.zeros(count, dtype=torch.long, device=device)
        self.stopped = torch.zeros(count, dtype=torch.bool, device=device)
        empty = torch.empty(0, dtype=torch.long, device=device)
        self.completion, self.newest, self.position = empty, empty, empty  # of each row
        self.ended = empty.bool()

    def __len__(self) -> int:
        return len(self.completion)

    def admit(self, completions: Tensor, newest: Tensor, position: Tensor) -> Tensor:
        """The rows that the completions get."""
        rows = torch.arange(len(completions), device=completions.device) + len(self)
        self.completion = torch.cat([self.completion, completions])
        self.newest = torch.cat([self.newest, newest])
        self.position = torch.cat([self.position, position])
        self.ended = torch.cat([self.ended, torch.zeros_like(completions, dtype=torch.bool)])
        return rows

    def append(self, tokens: Tensor, logprobs: Tensor) -> None:
        at, running = self.lengths[self.completion], ~self.ended
        self.tokens[self.completion, at] = tokens
        self.logprobs[self.completion, at] = logprobs
        self.lengths[self.completion] = at + running
        self.newest, self.position = tokens, self.position + running

    def end(self, stopped: Tensor) -> None:
        """The rows whose newest token stops them, and those that are full."""
        self.stopped[self.completion] |= stopped & ~self.ended
        self.ended |= stopped | (self.lengths[self.completion] == self.max_tokens)

    def release(self) -> tuple[list[int], Tensor, Tensor]:
        """Drop the rows that ended. -> (their completions, sources, targets) of the moves that close the holes."""
        done = self.completion[self.ended].tolist()
        sources, targets = closing_moves(self.ended)
        keep = len(self) - len(done)
        for name in ("completion", "newest", "position"):
            state = getattr(self, name)
            state[targets] = state[sources]
            setattr(self, name, state[:keep].clone())
        self.ended = torch.zeros_like(self.ended[:keep])
        return done, sources, targets


def closing_moves(gone: Tensor) -> tuple[Tensor, Tensor]:
    """Of places 0..N-1 some are given up: (sources, targets), from the tail into the holes."""
    keep = len(gone) - int(gone.sum())
    return (~gone[keep:]).nonzero()[:, 0] + keep, gone[:keep].nonzero()[:, 0]
