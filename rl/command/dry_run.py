"""Measures the peak memory of an update (rl/update/step.py) for any model on any machine, without its numbers.

Tensors have shapes and sizes but no contents (FakeTensorMode), and every allocation is counted (MemTracker).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.overrides import TorchFunctionMode
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers import AutoModelForCausalLM, PretrainedConfig

import rl.forward.output_head
from rl.forward.choose_forward import ForwardChoice
from rl.forward.forward import varlen_forward
from rl.forward.micro_batch import TrainGroup, TrainSequence
from rl.objective.reductions import StepCounts
from rl.policy.precision import round_frozen
from rl.processes.runtime import Runtime
from rl.run.build_learner import build_learner, build_optimizer
from rl.settings.resolve import RunSettings
from rl.update.batch import Batch
from rl.update.learner import Learner
from rl.update.step import update
from rollout.float32_head import compute_head_in_float32


@dataclass(frozen=True)
class DryRun:
    """Bytes. kept: before an update (weights, optimizer state); peak: the most during an update."""

    kept: int
    peak: int


class PlaceholderReads(TorchFunctionMode):
    """Gives the host 0 or True where it reads a tensor without contents."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (Tensor.item, Tensor.__float__):
            return 0.0
        if func is Tensor.__bool__:
            return True
        if func is Tensor.__deepcopy__:  # torch's own would copy bytes, and there are none
            tensor, memo = args
            copied = tensor.detach().clone()
            if isinstance(tensor, nn.Parameter):
                copied = nn.Parameter(copied, tensor.requires_grad)
            return memo.setdefault(id(tensor), copied)
        return func(*args, **(kwargs or {}))


class TotalMemory(MemTracker):
    """A MemTracker without statistics per module, so that a module may run several times in an update."""

    def _nothing(self, *_: Any) -> None:
        pass

    _pre_fw_hook = _post_fw_hook = _pre_bw_hook = _post_bw_hook = _nothing  # pyright: ignore

    def total(self, which: Literal["current", "peak"]) -> int:
        return sum(kinds["Total"] for kinds in self.get_tracker_snapshot(which).values())


def equal_batch(problems: int, group_size: int, prompt_length: int, completion_length: int) -> Batch:
    """A batch in which all prompts have one length and all completions another."""
    sequence = TrainSequence.to_score([0] * completion_length)
    group = TrainGroup((0,) * prompt_length, (sequence,) * group_size)
    return Batch((group,) * problems, StepCounts(num_tokens=1, num_sequences=1, num_groups=1, max_tokens=1))


def dry_run(
    model: PretrainedConfig, settings: RunSettings, batch: Batch, *, device: str = "cuda", shards: int = 1
) -> DryRun:
    """The memory of an update on `batch` that is not the run's first, in one of `shards` processes.

    device: decides the chunk size of the output layer and which weights are rounded; the computation itself is the CPU's.
    """
    runtime = Runtime.start(dtype=settings.dtype, device="cpu")
    tracker = TotalMemory()
    without_contents = FakeTensorMode(allow_non_fake_inputs=True)
    # The converter keeps a weak reference to its tensors, and peft could not change the type of a parameter that has one.
    without_contents.fake_tensor_converter.set_tensor_memo = lambda *_: None  # pyright: ignore
    spread = fake_processes(shards) if shards > 1 else nullcontext()
    with spread as mesh, chunks_of(device), without_contents, PlaceholderReads():
        with tracker:
            learner = untrained_learner(model, settings, replace(runtime, mesh=mesh), device=device)
            if mesh is not None:
                learner.shard(lambda policy: build_optimizer(settings, policy, None))
            make_state(learner)
        kept = tracker.total("current")
        with tracker:  # starts a new peak
            update(learner, batch)
    return DryRun(kept, tracker.total("peak"))


@contextmanager
def chunks_of(device: str) -> Iterator[None]:
    """The output layer is cut into the chunks that it has on this device."""
    own = rl.forward.output_head.tokens_per_chunk
    rl.forward.output_head.tokens_per_chunk = lambda vocab, _: own(vocab, torch.device(device))
    try:
        yield
    finally:
        rl.forward.output_head.tokens_per_chunk = own


@contextmanager
def fake_processes(count: int) -> Iterator[DeviceMesh]:
    """A device mesh of `count` processes whose communication is simulated."""
    torch.distributed.init_process_group("fake", rank=0, world_size=count, store=FakeStore())
    try:
        yield init_device_mesh("cpu", (count,))
    finally:
        torch.distributed.destroy_process_group()


def make_state(learner: Learner) -> None:
    """Creates the optimizer's state, as the first step of a run does."""
    for parameter in learner.parameters():
        parameter.grad = torch.zeros_like(parameter, dtype=parameter.grad_dtype)
    learner.optimizer.step()
    learner.optimizer.zero_grad()


def untrained_learner(
    model: PretrainedConfig, settings: RunSettings, runtime: Runtime, *, device: str = "cpu"
) -> Learner:
    """A learner as rl/run/setup.py builds it, of a model with random weights."""
    no_tokenizer = cast(Any, None)  # only a critic_model needs it
    made = AutoModelForCausalLM.from_config(model, dtype=torch.float32)
    if settings.head_dtype == "float32":
        compute_head_in_float32(made)
    if settings.rounds_base(device):
        round_frozen(made)
    # A CPU has no other attention to try. Its compiled norms and gates need contents, and keep no more than the model's own.
    learner = build_learner(replace(settings, attention="dense", fused="none"), made, no_tokenizer, runtime)
    if settings.attention == "varlen":
        ragged = ForwardChoice(varlen_forward)
        learner.policy = replace(learner.policy, choice=ragged)
        learner.reference = learner.reference and replace(learner.reference, choice=ragged)
        critic = learner.critic
        learner.critic = critic and replace(critic, trunk=replace(critic.trunk, choice=ragged))
    return learner
