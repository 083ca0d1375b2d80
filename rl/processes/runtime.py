"""The processes of a run: each one's device, precision, collectives and trackers. Only this file imports accelerate."""

from __future__ import annotations

import io
import os
import pickle
import re
import resource
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
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
from rl.processes.launch_settings import offloads_parameters, require_supported, uses_fsdp
from rl.processes.sharding import full_tensor, is_sharded
from rl.settings.options import DType

T = TypeVar("T")
# How long a process waits in a collective: a verifier or an engine may be slow in one process. A process that dies is noticed at once.
TIMEOUT = timedelta(hours=2)
# gloo reports a lost connection as a plain RuntimeError with one of these; NCCL and the store raise DistError.
LOST_CONNECTION = re.compile(r"connection (closed|reset|refused)|timed? ?out|broken pipe", re.IGNORECASE)
BUCKET = 1 << 24  # gradient elements in one all-reduce


def cpu_cores() -> int:
    """Cores that this process may use; all of the machine's where the system has no affinity mask (macOS)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class HostPickler(pickle.Pickler):
    """Pickles tensors of a GPU as tensors in the host's memory, because each process has another GPU."""

    def reducer_override(self, obj: Any) -> Any:
        return (unchanged, (obj.cpu(),)) if isinstance(obj, Tensor) and obj.device.type != "cpu" else NotImplemented


def unchanged(tensor: Tensor) -> Tensor:
    return tensor


def pickled(value: Any) -> bytes:
    HostPickler(buffer := io.BytesIO(), pickle.HIGHEST_PROTOCOL).dump(value)
    return buffer.getvalue()


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """One process of a run, on one device.

    Every process samples its part of the problems and computes its part of the gradient; the gradients are summed. A step of several
    processes equals the step of one up to the order of float32 sums. dtype bfloat16 is autocast over float32 weights, which keep
    updates smaller than 2^-9 of them.

    rank, count: of this process, and of all. mesh: the devices that the weights are sharded over; None where each process holds all
    weights. offloads: sharded weights, gradients and moments stay in the host's memory. group: exchanges objects; None is the
    default group.
    """

    accelerator: Accelerator
    device: torch.device
    dtype: DType
    rank: int = 0
    count: int = 1
    mesh: DeviceMesh | None = None
    offloads: bool = False
    group: distributed.ProcessGroup | None = None

    @staticmethod
    def start(*, dtype: DType, trackers: tuple[str, ...] = (), device: str = "auto") -> Runtime:
        """Joins the processes that the launcher started, if it started several."""
        # With this setting transformers would load weights in the main process only and leave the others' random.
        os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
        started = int(os.environ.get("WORLD_SIZE", "1"))
        # On a CPU accelerate ignores FSDP silently, so the launcher's settings are read here.
        shards = started > 1 and uses_fsdp(os.environ)
        require_supported(os.environ, dtype, shards=shards)
        # On a machine without GPUs accelerate takes several processes for several runs of one process each, unless cpu is set.
        on_cpu = device == "cpu" or (started > 1 and not torch.accelerator.is_available())
        handlers: list[Any] = [InitProcessGroupKwargs(timeout=TIMEOUT)]
        accelerator = Accelerator(cpu=on_cpu, log_with=list(trackers) or None, kwargs_handlers=handlers)
        count, chosen = accelerator.num_processes, accelerator.device
        if count != started:
            raise UserError(
                f"WORLD_SIZE is {started}: accelerate counts {count} processes, and each would make a whole run of its own; "
                "add --multi_gpu (on a CPU too), with --device cpu where the machine has an accelerator that is not to be used"
            )
        require_trackers(trackers, accelerator)
        prepare_device(chosen, dtype)
        return Runtime(
            accelerator=accelerator,
            device=chosen,
            dtype=dtype,
            rank=accelerator.process_index,
            count=count,
            mesh=init_device_mesh(chosen.type, (count,)) if shards else None,
            offloads=shards and offloads_parameters(os.environ),
        )

    @property
    def shards(self) -> bool:
        return self.mesh is not None

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def cores(self) -> int:
        """CPU cores for this process: the machine's, divided by the processes on it."""
        return cores_per_process()

    def single_process(self) -> Runtime:
        """This process as a run of its own, for work that it does while the others wait."""
        return replace(self, rank=0, count=1, mesh=None, offloads=False)

    def with_own_group(self) -> Runtime:
        """The same process with a group for a second thread: collectives of two threads in one group would be mixed up.

        Every process must call it.
        """
        if self.count == 1:
            return self
        return replace(self, group=distributed.new_group(timeout=TIMEOUT, backend="gloo"))

    def gather(self, mine: list[T]) -> list[T]:
        """All-gather of lists, concatenated in order of the ranks; tensors arrive in the host's memory."""
        if self.count == 1:
            return mine
        parts = [b""] * self.count
        with self.collective_errors():
            distributed.all_gather_object(parts, pickled(mine), group=self.group)
        return [x for part in parts for x in pickle.loads(part)]

    def broadcast_from_main(self, make: Callable[[], T]) -> T:
        """Calls `make` in the main process and returns its result in every process."""
        made: list[Any] = [make() if self.is_main else None]
        with self.collective_errors():
            return made[0] if self.count == 1 else broadcast_object_list(made)[0]

    def any_rank(self, mine: bool) -> bool:
        """Whether it is true in any process."""
        return any(self.gather([mine]))

    def wait(self) -> None:
        """Returns when every process has called it."""
        self.gather([None])

    @contextmanager
    def collective_errors(self) -> Iterator[None]:
        """Raises UserError where a collective inside the block fails because another process has ended or does not answer."""
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
        """Raises UserError where the processes have loaded different weights; it compares their sums."""
        found = self.gather([sum(p.double().sum().item() for p in model.parameters())])
        if len(set(found)) > 1:
            raise UserError(
                f"model is {name!r}: the {self.count} processes have loaded different weights (sums {found}); let all of them read the "
                "same files"
            )

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """All-reduces the gradients of parameters that are not sharded; FSDP reduces the others' in the backward.

        DistributedDataParallel would need the model's own forward and the same number of backwards in every process.
        """
        if self.count == 1:
            return
        bucket: list[nn.Parameter] = []
        for parameter in parameters:
            if is_sharded(parameter):
                continue
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter, dtype=parameter.grad_dtype)
            bucket.append(parameter)
            if sum(p.numel() for p in bucket) >= BUCKET:
                self._sum_bucket(bucket)
                bucket = []
        self._sum_bucket(bucket)

    def _sum_bucket(self, parameters: list[nn.Parameter]) -> None:
        if parameters:
            flat = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
            with self.collective_errors():
                total: Any = self.accelerator.reduce(flat, reduction="sum")
            for parameter, part in zip(parameters, total.split([p.numel() for p in parameters]), strict=True):
                parameter.grad = part.view_as(parameter)

    def autocast(self) -> AbstractContextManager[Any]:
        enabled = self.dtype == "bfloat16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled, cache_enabled=may_keep())

    def keeping_casts(self) -> AbstractContextManager[Any]:
        """Context that keeps autocast's 16-bit weights (rl/forward/casts.py), except of sharded weights."""
        return nullcontext() if self.shards else keeping_casts(self.device)

    def backward(self, loss: Tensor) -> None:
        self.accelerator.backward(loss)

    def clip_grad_norm(self, parameters: Iterable[Tensor], max_norm: float) -> float:
        """Scales the gradient down to max_norm where its L2 norm is larger. -> the norm before."""
        parameters = list(parameters)
        gradients = [p.grad for p in parameters if p.grad is not None]
        if any(g.dtype == torch.bfloat16 for g in gradients):  # torch would round the norm of each to 16 bits
            norms = [torch.linalg.vector_norm(g, dtype=torch.float32) for g in gradients]
            norm = torch.linalg.vector_norm(torch.stack(norms))
        else:
            norm = full_tensor(nn.utils.get_total_norm(gradients))
        nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
        return float(norm)

    def start_trackers(self, project: str, config: Mapping[str, Any], run_dir: Path) -> None:
        self.accelerator.project_configuration.set_directories(str(run_dir))
        plain = {k: v if isinstance(v, (int, float, str, bool)) else str(v) for k, v in config.items()}
        self.accelerator.init_trackers(project, config=plain)

    def track(self, metrics: Mapping[str, Any], step: int) -> None:
        self.accelerator.log({k: v for k, v in metrics.items() if v is not None}, step=step)

    def free_memory(self) -> int:
        """Bytes that this process can still allocate."""
        if self.device.type == "cuda":
            return torch.cuda.mem_get_info(self.device)[0]
        return psutil.virtual_memory().available

    def room(self, model: nn.Module) -> tuple[int, int]:
        """-> (bytes of the model and those that this process can still allocate, bytes of the device's whole memory)"""
        ours = self.free_memory() + sum(p.nbytes for p in model.parameters())
        is_gpu = self.device.type == "cuda"
        total = torch.cuda.get_device_properties(self.device).total_memory if is_gpu else psutil.virtual_memory().total
        return ours, total

    def peak_memory(self) -> int:
        """Bytes: peak of the CUDA allocator, or on a CPU the peak resident set of the process."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def close(self) -> None:
        """Destroys the process group and ends the trackers. In a run of one process a group is vLLM's and stays."""
        if self.count > 1:
            self.accelerator.state.destroy_process_group()
        for tracker in self.accelerator.trackers:
            tracker.finish()


def cores_per_process() -> int:
    return max(1, cpu_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def require_trackers(trackers: tuple[str, ...], accelerator: Accelerator) -> None:
    """accelerate ignores a tracker that is not installed silently."""
    missing = set(trackers) - {str(tracker) for tracker in accelerator.log_with}
    if missing:
        raise UserError(f"trackers is {trackers}: {sorted(missing)} is not installed; pip install it or leave it out")


def prepare_device(device: torch.device, dtype: DType) -> None:
    """Sets torch's global settings for the device, and refuses bfloat16 on a GPU that does not compute in it."""
    if device.type == "cpu":
        torch.set_num_threads(cores_per_process())  # accelerate launch sets one thread
    if device.type == "cuda":
        if dtype == "bfloat16" and not torch.cuda.is_bf16_supported():
            raise UserError(f"dtype is 'bfloat16': {torch.cuda.get_device_name()} does not compute in it; use float32")
        # scaled_dot_product_attention prefers cuDNN on recent cards, which takes about a second to plan each new shape, and every
        # batch has new lengths.
        torch.backends.cuda.enable_cudnn_sdp(False)
