"""What is not needed where the run computes waits in the host's memory: a reference, an optimiser's moments.

On a GPU it waits in pinned memory, which copies to and from run at the full speed of the bus.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

# Numbers that an optimiser steps at once where its gradients are in 16 bits or its moments wait elsewhere.
BUCKET = 1 << 26


def pinned(tensor: Tensor) -> Tensor:
    return tensor.pin_memory()


@torch.no_grad()
def send_home(model: nn.Module) -> None:
    """All weights."""
    for parameter in model.parameters():
        home = parameter.data.cpu()
        parameter.data = pinned(home) if parameter.is_cuda else home


@contextmanager
def visiting(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Inside the block weights that wait at home are copied to the device; they are not changed there."""
    homes = [(p, p.data) for p in model.parameters()]
    for parameter, home in homes:
        parameter.data = home.to(device, non_blocking=True)
    try:
        yield
    finally:
        for parameter, home in homes:
            parameter.data = home
