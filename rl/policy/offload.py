"""Offloading of tensors between uses to the host's memory: the weights of a reference, the moments of an optimizer.

Tensors from a GPU are kept in pinned memory, so that copies run at the full speed of the bus.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

# Number of elements that StreamedOptimizer steps at once.
BUCKET = 1 << 26


def pinned(tensor: Tensor) -> Tensor:
    """A copy of a host tensor in pinned memory."""
    return tensor.pin_memory()


@torch.no_grad()
def to_host(model: nn.Module) -> None:
    """Moves all weights of a model to the host's memory."""
    for parameter in model.parameters():
        on_host = parameter.data.cpu()
        parameter.data = pinned(on_host) if parameter.is_cuda else on_host


@contextmanager
def on_device(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Inside the block an offloaded model has a copy of its weights on the device. Changes to the copy are lost."""
    host_weights = [(p, p.data) for p in model.parameters()]
    for parameter, weight in host_weights:
        parameter.data = weight.to(device, non_blocking=True)
    try:
        yield
    finally:
        for parameter, weight in host_weights:
            parameter.data = weight
