"""What tests/made_up_cuda/test_gather.py asks: two processes, on cuda:0 and cuda:1, tell each other what their updates saw."""

from __future__ import annotations

import json

from tests.made_up_cuda.device import without_contents  # isort: skip  (before torch)

import io
import pickle
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from rl.objective.values import ValueTargets, whitened
from rl.processes.runtime import HostPickler
from rl.update.step_metrics import TokenMeans

TENSORS: dict[int, Tensor] = {}  # made-up ones have no contents to be pickled


class Sending(HostPickler):
    def persistent_id(self, obj: Any) -> int | None:
        if not isinstance(obj, Tensor) or obj.device.type != "cpu":
            return None
        TENSORS[id(obj)] = obj
        return id(obj)


class Receiving(pickle.Unpickler):
    def persistent_load(self, pid: int) -> Tensor:
        return TENSORS[pid]


def sent(value: Any) -> Any:
    Sending(buffer := io.BytesIO()).dump(value)
    buffer.seek(0)
    return Receiving(buffer).load()


class Beside:
    """The first of two processes. The other one says the same of its own device."""

    rank, count = 0, 2

    def __init__(self, theirs: Any) -> None:
        self.theirs = theirs

    def gather(self, mine: list[Any]) -> list[Any]:
        return [*sent(mine), *sent([self.theirs])]


def seen_on(device: str) -> tuple[TokenMeans, ValueTargets, Any]:
    means, some = TokenMeans(), torch.ones(5, device=device)
    means.num_tokens, means.values_and_returns = 5, [(some, some)]
    return means, ValueTargets(some, some, some), SimpleNamespace(loss_indices=torch.arange(5, device=device))


def main() -> None:
    with without_contents():
        (ours, estimates, micro), (theirs, other, _) = (seen_on(f"cuda:{rank}") for rank in range(2))
        merged = TokenMeans.merged(Beside(theirs).gather([ours]))
        (white,) = whitened([estimates], [micro], Beside(other.advantages))
        print(
            json.dumps(
                {
                    "tokens": merged.num_tokens,
                    "values": sorted(merged.means()),
                    "whitened on": str(white.advantages.device),
                }
            )
        )


if __name__ == "__main__":
    main()
