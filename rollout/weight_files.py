"""Weights on their way to an engine: one tensor at a time, in the engine's own type, by files where it is another process."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from rewards.errors import UserError

FILE = 1 << 30  # bytes that are held in the host's memory before they are written

NamedTensors = Iterable[tuple[str, Tensor]]


def in_type(named_tensors: NamedTensors, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """Matrices in the engine's type, made one at a time and where they are; vectors, some of which engines keep in float32, as they
    are."""
    for name, tensor in named_tensors:
        yield name, tensor.detach().to(dtype) if tensor.dim() > 1 else tensor.detach()


def write_files(named_tensors: NamedTensors, folder: Path) -> None:
    """As safetensors of about FILE bytes in a new folder. No more than one of them is held in memory."""
    held: dict[str, Tensor] = {}
    try:
        folder.mkdir(parents=True)
        for name, tensor in named_tensors:
            held[name] = tensor.to("cpu", copy=True, memory_format=torch.contiguous_format)
            if sum(t.nbytes for t in held.values()) >= FILE:
                _write(held, folder)
        _write(held, folder)
    except (OSError, SafetensorError) as error:
        raise UserError(f"the weights cannot be written to {str(folder)!r} ({error}); make room there") from None


def _write(held: dict[str, Tensor], folder: Path) -> None:
    if held:
        save_file(held, folder / f"model-{len(list(folder.iterdir())) + 1:05d}.safetensors")
        held.clear()
