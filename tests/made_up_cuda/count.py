"""Counts what a piece of code asks of a device: kernels, the bytes that they read and write, operations, reads by the host."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from tests.made_up_cuda.device import host_reads

# No kernel: they give out memory, or are asked of the tensor's description.
_FREE = {"empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided", "set_", "resize_", "lift_fresh"}
_FREE |= {
    "sym_size",
    "sym_stride",
    "sym_numel",
    "is_same_size",
    "_unsafe_view",
    "_reshape_alias",
    "device",
    "is_pinned",
}
# The host waits for what they find.
_READ = {"_local_scalar_dense", "item", "nonzero", "masked_select", "equal", "is_nonzero", "bincount", "unique"}
# They read as much of a table as they give out.
_LOOK_UP = {"embedding", "index_select", "gather", "index"}


def num_bytes(*tensors: Any) -> int:
    """Of memory, once for each number however often a tensor repeats it."""
    return sum(
        min(t.numel() * t.element_size(), t.untyped_storage().nbytes())
        for t in tree_leaves(tensors)
        if isinstance(t, Tensor)
    )


class Count(TorchDispatchMode):
    """launches, bytes, flops: by operator, of tensors on CUDA. reads: where the host waits for a tensor that the device makes, and
    numbers that it asks for (`device.host_reads`). copies: between devices."""

    def __init__(self) -> None:
        super().__init__()
        self.launches: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()
        self.flops: Counter[str] = Counter()
        self.reads: Counter[str] = Counter()
        self.copies: Counter[str] = Counter()

    def __enter__(self) -> Count:
        self._asked_before = Counter(host_reads)
        return super().__enter__()

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)
        self.reads += host_reads - self._asked_before

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name = func.overloadpacket.__name__
        taken = list({id(t): t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}.values())
        given = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
        devices = {t.device.type for t in (*taken, *given)}
        if name in ("_to_copy", "copy_") and len(devices) > 1:
            self.copies["to the device" if given[0].is_cuda else "to the host"] += 1
            return out
        if "cuda" not in devices:
            return out
        if name in _READ:
            self.reads[name] += 1
        if name not in _FREE and not (func.is_view and not _is_written(func)):
            key = f"{name} {_short(taken[0])}->{_short(given[0])}" if name == "_to_copy" else name
            self.launches[key] += 1
            in_place = any(g is t for g in given for t in taken)
            read = given if name in _LOOK_UP else taken
            self.bytes[key] += num_bytes(read) + (num_bytes(taken[0]) if in_place else num_bytes(given))
            if func.overloadpacket in flop_registry:
                # the formulas have no place for the type of the result
                factors = [a for a in args if not isinstance(a, torch.dtype)]
                self.flops[key] += flop_registry[func.overloadpacket](*factors, out_val=out)
        return out

    def totals(self) -> dict[str, int]:
        kinds = ("launches", "bytes", "flops", "reads", "copies")
        return {kind: sum(getattr(self, kind).values()) for kind in kinds}

    def table(self, rows: int = 25) -> Iterator[str]:
        """The operators that move most, as text."""
        for name, moved in self.bytes.most_common(rows):
            yield f"{name:45}{self.launches[name]:7}{moved / 1e9:10.3f} GB{self.flops[name] / 1e12:9.2f} TFLOP"


def _is_written(func: Any) -> bool:
    return any(a.alias_info is not None and a.alias_info.is_write for a in func._schema.arguments)


def _short(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
