"""The only file that imports accelerate: the device, precision, the backward pass, the other processes, trackers."""

from __future__ import annotations

import copy
import io
import os
import pickle
import re
import resource
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import psutil
import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.utils import broadcast_object_list
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from rewards.errors import UserError, first_line
from rl.forward.casts import keeping_casts, may_keep
from rl.processes.launch_settings import require_honoured
from rl.processes.sharding import full_tensor, is_sharded
from rl.settings.options import DType

T = TypeVar("T")
# A process waits that long for the others: a verifier or an engine may be slow on one of them. One that dies is noticed at once.
PATIENCE = timedelta(hours=2)
# What gloo says in a plain RuntimeError; NCCL and the store have a DistError.
LOST_CONNECTION = re.compile(r"connection (closed|reset|refused)|timed? ?out|broken pipe", re.IGNORECASE)
BUCKET = 1 << 24  # numbers of the gradient that are summed over the processes at once


def cpu_cores() -> int:
    """Those this process may use; where the system does not tell (macOS), all."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class ToHost(pickle.Pickler):
    """Tensors on a GPU become the host's: each process has a GPU of its own, and tensors of two do not mix."""

    def reducer_override(self, obj: Any) -> Any:
        return (as_it_is, (obj.cpu(),)) if isinstance(obj, Tensor) and obj.device.type != "cpu" else NotImplemented


def as_it_is(tensor: Tensor) -> Tensor:
    return tensor


def to_host(value: Any) -> bytes:
    ToHost(buffer := io.BytesIO(), pickle.HIGHEST_PROTOCOL).dump(value)
    return buffer.getvalue()


class Runtime:
    """One of the processes, on one device. bfloat16 is autocast over float32 weights, which keep updates smaller than 2^-9 of them.

    Each process holds the whole model, samples its part of the problems and makes its part of the gradient; the gradients are
    summed. So a step on several is the step of one, but for the order of float32 sums.
    """

    rank: int
    count: int
    shards: bool
    group: Any = None  # by which objects are told to the others; None is the group of all collectives

    def __init__(self, *, dtype: DType, trackers: tuple[str, ...] = (), device: str = "auto") -> None:
        # By this transformers would load weights in the first process alone, and leave the others' random.
        os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
        started = int(os.environ.get("WORLD_SIZE", "1"))
        require_honoured(os.environ, dtype, shards=started > 1)
        # Without being told accelerate takes several processes on a machine without GPUs for several runs of one process each.
        on_cpu = device == "cpu" or (started > 1 and not torch.accelerator.is_available())
        self.accelerator = Accelerator(
            cpu=on_cpu,
            log_with=list(trackers) or None,
            kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],
        )
        self.rank, self.count = self.accelerator.process_index, self.accelerator.num_processes
        if self.count != started:
            raise UserError(
                f"WORLD_SIZE is {started}: accelerate counts {self.count} processes, and each would make a whole run of its own; "
                "add --multi_gpu (on a CPU too), with --device cpu where the machine has an accelerator that is not to be used"
            )
        # On a CPU accelerate would leave FSDP out without a word, so what was asked for is read here.
        self.shards = self.count > 1 and os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"
        missing = set(trackers) - {str(tracker) for tracker in self.accelerator.log_with}
        if missing:  # accelerate leaves them out without a word
            raise UserError(
                f"trackers is {trackers}: {sorted(missing)} is not installed; pip install it or leave it out"
            )
        self.dtype = dtype
        if dtype == "bfloat16" and self.device.type == "cuda" and not torch.cuda.is_bf16_supported():
            raise UserError(f"dtype is 'bfloat16': {torch.cuda.get_device_name()} does not compute in it; use float32")
        if self.device.type == "cpu":
            torch.set_num_threads(self.cores)  # accelerate launch asks for one thread
        if self.device.type == "cuda":
            # Else scaled_dot_product_attention prefers cuDNN on newer cards, which makes a plan for each new shape: about a
            # second, at lengths that are new in every batch.
            torch.backends.cuda.enable_cudnn_sdp(False)

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def cores(self) -> int:
        """This process's share of the machine's."""
        return max(1, cpu_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))

    def alone(self) -> Runtime:
        """For work that one process does while the others wait."""
        alone = copy.copy(self)
        alone.rank, alone.count = 0, 1
        return alone

    def in_a_second_thread(self) -> Runtime:
        """For a thread that gathers while the main one sums gradients: two threads' calls in one group would answer each other.

        All processes must call it.
        """
        apart = copy.copy(self)
        if self.count > 1:
            apart.group = distributed.new_group(timeout=PATIENCE, backend="gloo")
        return apart

    def gather(self, mine: list[T]) -> list[T]:
        """Everybody's, in order of the ranks, tensors in the host's memory."""
        if self.count == 1:
            return mine
        parts = [b""] * self.count
        with self.together():
            distributed.all_gather_object(parts, to_host(mine), group=self.group)
        return [x for part in parts for x in pickle.loads(part)]

    def from_main(self, make: Callable[[], T]) -> T:
        """What the main process makes of it, to all."""
        made: list[Any] = [make() if self.is_main else None]
        with self.together():
            return made[0] if self.count == 1 else broadcast_object_list(made)[0]

    def anywhere(self, mine: bool) -> bool:
        return any(self.gather([mine]))

    def wait(self) -> None:
        """Until all are here."""
        self.gather([None])

    @contextmanager
    def together(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            if not (isinstance(error, distributed.DistError) or LOST_CONNECTION.search(str(error))):
                raise
            raise UserError(
                f"num_processes is {self.count}: another process has ended or does not answer ({first_line(error)}); its own "
                "message is above. Fix what it says and go on with --resume"
            ) from error

    @torch.no_grad()
    def require_equal(self, model: nn.Module, name: str) -> None:
        """Every process has loaded the same weights."""
        found = self.gather([sum(p.double().sum().item() for p in model.parameters())])
        if len(set(found)) > 1:
            raise UserError(
                f"model is {name!r}: the {self.count} processes have loaded different weights (sums {found}); let all of them read the "
                "same files"
            )

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Over the processes. DistributedDataParallel would need the model's own forward, and as many backwards in each of them."""
        if self.count == 1:
            return
        waiting: list[nn.Parameter] = []
        for parameter in parameters:
            if is_sharded(parameter):  # its gradient is summed as it is made
                continue
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter, dtype=parameter.grad_dtype)
            waiting.append(parameter)
            if sum(p.numel() for p in waiting) >= BUCKET:
                self._sum_bucket(waiting)
                waiting = []
        self._sum_bucket(waiting)

    def _sum_bucket(self, parameters: list[nn.Parameter]) -> None:
        if parameters:
            flat = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
            with self.together():
                total: Any = self.accelerator.reduce(flat, reduction="sum")
            for parameter, part in zip(parameters, total.split([p.numel() for p in parameters]), strict=True):
                parameter.grad = part.view_as(parameter)

    @property
    def device(self) -> torch.device:
        return self.accelerator.device

    def autocast(self) -> AbstractContextManager[Any]:
        enabled = self.dtype == "bfloat16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled, cache_enabled=may_keep())

    def keeping_casts(self) -> AbstractContextManager[Any]:
        """See rl/forward/casts.py. Of weights that are spread over the processes nobody keeps a whole copy."""
        return nullcontext() if self.shards else keeping_casts(self.device)

    def backward(self, loss: Tensor) -> None:
        self.accelerator.backward(loss)

    def clip_grad_norm(self, parameters: Iterable[Tensor], max_norm: float) -> float:
        """Scales the gradient down to max_norm where it is longer. -> its length before."""
        parameters = list(parameters)
        gradients = [p.grad for p in parameters if p.grad is not None]
        if not any(g.dtype == torch.bfloat16 for g in gradients):
            return float(full_tensor(nn.utils.clip_grad_norm_(parameters, max_norm)))
        # Of gradients in 16 bits torch would round each norm to 16 bits too.
        norms = [torch.linalg.vector_norm(g, dtype=torch.float32) for g in gradients]
        norm = torch.linalg.vector_norm(torch.stack(norms))
        nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
        return float(norm)

    def mesh(self) -> DeviceMesh:
        return init_device_mesh(self.device.type, (self.count,))

    def start_trackers(self, project: str, config: Mapping[str, Any], run_dir: Path) -> None:
        self.accelerator.project_configuration.set_directories(str(run_dir))
        plain = {k: v if isinstance(v, (int, float, str, bool)) else str(v) for k, v in config.items()}
        self.accelerator.init_trackers(project, config=plain)

    def track(self, metrics: Mapping[str, Any], step: int) -> None:
        self.accelerator.log({k: v for k, v in metrics.items() if v is not None}, step=step)

    def free_memory(self) -> int:
        """Bytes that this process could still take."""
        if self.device.type == "cuda":
            return torch.cuda.mem_get_info(self.device)[0]
        return psutil.virtual_memory().available

    def room(self, model: nn.Module) -> tuple[int, int]:
        """Bytes that this process has or could still take, the model's included, and all that the device has."""
        ours = self.free_memory() + sum(p.nbytes for p in model.parameters())
        is_gpu = self.device.type == "cuda"
        total = torch.cuda.get_device_properties(self.device).total_memory if is_gpu else psutil.virtual_memory().total
        return ours, total

    def peak_memory(self) -> int:
        """Bytes: the allocator's peak on a GPU, else the process's peak resident size."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def close(self) -> None:
        """Where this is the only process, a process group is not ours: vLLM has one."""
        if self.count > 1:
            self.accelerator.state.destroy_process_group()
        for tracker in self.accelerator.trackers:
            tracker.finish()
