"""The only file that imports accelerate: the device, precision, the backward pass, trackers."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal

import psutil
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from rewards.errors import UserError

DType = Literal["float32", "bfloat16"]


def cpu_cores() -> int:
    """Those this process may use; where the system does not tell (macOS), all."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Runtime:
    """One process on one device. bfloat16 is autocast over float32 weights, which keep updates smaller than 2^-9 of them."""

    def __init__(self, *, dtype: DType, trackers: tuple[str, ...], run_dir: Path, device: str = "auto") -> None:
        self.accelerator = Accelerator(cpu=device == "cpu", log_with=list(trackers) or None, project_dir=run_dir)
        missing = set(trackers) - {str(tracker) for tracker in self.accelerator.log_with}
        if missing:  # accelerate leaves them out without a word
            raise UserError(
                f"trackers is {trackers}: {sorted(missing)} is not installed; pip install it or leave it out"
            )
        self.dtype = dtype
        if dtype == "bfloat16" and self.device.type == "cuda" and not torch.cuda.is_bf16_supported():
            raise UserError(f"dtype is 'bfloat16': {torch.cuda.get_device_name()} does not compute in it; use float32")
        if self.accelerator.num_processes > 1:
            raise UserError(
                f"num_processes is {self.accelerator.num_processes}: this version trains in one process; "
                "use accelerate launch --num_processes 1"
            )
        if self.device.type == "cpu":
            torch.set_num_threads(cpu_cores())  # accelerate launch asks for one thread

    @property
    def device(self) -> torch.device:
        return self.accelerator.device

    def autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == "bfloat16")

    def backward(self, loss: Tensor) -> None:
        self.accelerator.backward(loss)

    def clip_grad_norm(self, parameters: Iterable[Tensor], max_norm: float) -> float:
        """Scales the gradient down to max_norm where it is longer. -> its length before."""
        return float(nn.utils.clip_grad_norm_(parameters, max_norm))

    def start_trackers(self, project: str, config: Mapping[str, Any]) -> None:
        plain = {k: v if isinstance(v, (int, float, str, bool)) else str(v) for k, v in config.items()}
        self.accelerator.init_trackers(project, config=plain)

    def track(self, metrics: Mapping[str, Any], step: int) -> None:
        self.accelerator.log({k: v for k, v in metrics.items() if v is not None}, step=step)

    def free_memory(self) -> int:
        """Bytes that this process could still take."""
        if self.device.type == "cuda":
            return torch.cuda.mem_get_info(self.device)[0]
        return psutil.virtual_memory().available

    def peak_memory(self) -> int:
        """Bytes: the allocator's peak on a GPU, else the process's peak resident size."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def close(self) -> None:
        """Where this is the only process, a process group is not ours: vLLM has one."""
        if self.accelerator.num_processes > 1:
            self.accelerator.state.destroy_process_group()
        for tracker in self.accelerator.trackers:
            tracker.finish()
