"""Imported before torch: afterwards FakeTensorMode works on device "cuda", with autograd and autocast."""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

assert "torch" not in sys.modules, "the device must be there before torch is"
_spec = importlib.util.find_spec("torch")
assert _spec is not None and _spec.origin is not None
_TORCH = Path(_spec.origin).parent


def _built() -> Path:
    """The library, compiled once for this torch and this source."""
    source = Path(__file__).with_name("guard.cpp")
    version = (_TORCH / "version.py").read_bytes()
    name = f"plumbline-made-up-cuda-{hashlib.sha256(source.read_bytes() + version).hexdigest()[:16]}.so"
    library = Path(tempfile.gettempdir()) / name
    if not library.exists():
        aside = library.with_name(f".{os.getpid()}-{name}")
        flags = ["-shared", "-fPIC", "-O1", "-std=c++20", f"-I{_TORCH / 'include'}"]
        subprocess.run(["g++", *flags, str(source), "-o", str(aside)], check=True)
        os.replace(aside, library)
    return library


for _library in (_TORCH / "lib" / "libc10.so", _TORCH / "lib" / "libtorch_cpu.so", _built()):
    ctypes.CDLL(str(_library), ctypes.RTLD_GLOBAL)

import torch  # noqa: E402
import torch.cuda.amp.common as _common  # noqa: E402
from torch import Tensor  # noqa: E402
from torch._subclasses import FakeTensorMode  # noqa: E402

from rl.command.dry_run import PlaceholderReads  # noqa: E402

_made_up: Any = torch.cuda
_common.amp_definitely_not_available = lambda: False
_made_up.is_bf16_supported = lambda *_, **__: True
_made_up.current_device = lambda: 0

CUDA = torch.device("cuda:0")
host_reads: Counter[str] = Counter()  # by the function that asked


def _zeros(shape: Sequence[int]) -> Any:
    return [_zeros(shape[1:]) for _ in range(shape[0])] if shape else 0


class _CountedReads(PlaceholderReads):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (Tensor.item, Tensor.__float__, Tensor.__bool__, Tensor.__int__) and args[0].is_cuda:
            host_reads[func.__name__] += 1
        if func is Tensor.pin_memory:  # which tensors without contents do not have
            return args[0]
        if func is Tensor.__int__:
            return 1
        if func is Tensor.tolist:
            return _zeros(args[0].shape)
        if func is Tensor.bincount:
            return args[0].new_zeros(kwargs["minlength"])
        return super().__torch_function__(func, types, args, kwargs)


@contextmanager
def without_contents() -> Iterator[None]:
    """Tensors that are made inside have no contents; what the host reads of one is 0, 1 as a number of things, or True."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    # It keeps a weak reference to what it makes; a parameter with one could not be moved between types, as peft does.
    mode.fake_tensor_converter.set_tensor_memo = lambda *_: None  # pyright: ignore
    with mode, _CountedReads():
        yield
