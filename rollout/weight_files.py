"""Converts weights to an engine's dtype, one tensor at a time, and writes them to files for engines in other processes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from rewards.errors import UserError

FILE = 1 << 30  # bytes that are collected in host memory before a file is written

NamedTensors = Iterable[tuple[str, Tensor]]


@dataclass(frozen=True)
class InType:
    """Named tensors with matrices cast to the engine's dtype, one at a time and on their device; vectors, some of which engines keep in
    float32, stay as they are. It can be iterated as often as `tensors`."""

    tensors: NamedTensors
    dtype: torch.dtype

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        return map(self._cast, self.tensors)  # unlike a loop, map keeps no tensor while the next one is made

    def _cast(self, named: tuple[str, Tensor]) -> tuple[str, Tensor]:
        name, tensor = named
        return name, tensor.detach().to(self.dtype) if tensor.dim() > 1 else tensor.detach()


def exhaust(named_tensors: NamedTensors) -> None:
    """Iterates over all tensors and keeps none: gathering a sharded tensor needs every process."""
    for _ in named_tensors:
        pass


def write_files(named_tensors: NamedTensors, folder: Path) -> None:
    """Writes safetensors files of about FILE bytes into a new folder; at most one file's tensors are in memory at once."""
    held: dict[str, Tensor] = {}
    try:
        folder.mkdir(parents=True)
        for name, tensor in named_tensors:
            held[name] = tensor.to("cpu", copy=True, memory_format=torch.contiguous_format)
            if sum(t.nbytes for t in held.values()) >= FILE:
                _write(held, folder)
        _write(held, folder)
    except (OSError, SafetensorError) as error:
        raise UserError(f"the weights cannot be written to {str(folder)!r} ({error}); free disk space there") from None


def _write(held: dict[str, Tensor], folder: Path) -> None:
    if held:
        save_file(held, folder / f"model-{len(list(folder.iterdir())) + 1:05d}.safetensors")
        held.clear()
