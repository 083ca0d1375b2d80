"""Weights on their way to an engine: one tensor at a time, in the engine's own type, by files where it is another process."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from rewards.errors import UserError

FILE = 1 << 30  # bytes that are held in the host's memory before they are written

NamedTensors = Iterable[tuple[str, Tensor]]


@dataclass(frozen=True)
class InType:
    """Matrices in the engine's type, made one at a time and where they are; vectors, some of which engines keep in float32, as they
    are. It can be gone through as often as the tensors themselves."""

    tensors: NamedTensors
    dtype: torch.dtype

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        return map(self._cast, self.tensors)  # which keeps no tensor while the next one is made, as a loop would

    def _cast(self, named: tuple[str, Tensor]) -> tuple[str, Tensor]:
        name, tensor = named
        return name, tensor.detach().to(self.dtype) if tensor.dim() > 1 else tensor.detach()


def exhaust(named_tensors: NamedTensors) -> None:
    """Takes part in putting each together, and keeps none."""
    for _ in named_tensors:
        pass


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
