"""Weights, gradients and optimizer state sharded over the processes by torch's fully_shard (FSDP2, arXiv 2304.11277).

Each layer is a communication group of its own, the rest of the model another one. A group is all-gathered for its forward and for
its backward, and its gradient is reduce-scattered. Only this file knows DTensor; elsewhere a parameter may or may not be sharded.

torch.distributed.checkpoint.state_dict is not used: it raises KeyError for an optimizer with parameters beside the model's (a value
head), names states that checkpoints number, gathers tied weights twice, and loads through a full copy of the model on the device.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel

R = TypeVar("R")


class Optimizer(Protocol):
    """The interface that torch's optimizers and StreamedOptimizer share."""

    @property
    def param_groups(self) -> list[dict[str, Any]]: ...
    def step(self) -> Any: ...
    def zero_grad(self) -> None: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state_dict: dict[str, Any]) -> None: ...


class FSDPRoot(nn.Module):
    """Runs a callable inside its forward, where FSDP has gathered the weights that belong to no layer."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, run: Callable[[], R]) -> R:
        return run()


def shard(
    model: PreTrainedModel, mesh: DeviceMesh, *, trains: bool, in_16_bits: bool, offloads: bool = False
) -> FSDPRoot:
    """Replaces the model's parameters by shards, in place. -> the root that everything that reads the weights must run in.

    trains: weights outside of the layers stay gathered from the forward to the backward. in_16_bits: linear layers inside the
    layers are gathered in bfloat16, to which autocast would round them anyway; what autocast leaves in float32 is gathered in
    float32. Gradients are summed in float32. offloads: weights and their gradients rest in the host's memory, where the optimizer
    steps; what is gathered is copied to the device.
    """
    layers = [m for m in model.modules() if type(m).__name__ in (model._no_split_modules or ())]
    root = FSDPRoot(model)
    rounded = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    offload = CPUOffloadPolicy(pin_memory=mesh.device_type != "cpu") if offloads else OffloadPolicy()
    groups: list[list[Any]] = []  # the communication groups of each layer, in order of use
    for layer in layers:
        linear: list[Any] = [m for m in layer.modules() if isinstance(m, nn.Linear)] if in_16_bits else []
        if linear:
            fully_shard(linear, mesh=mesh, mp_policy=rounded, offload_policy=offload)
        groups.append([fully_shard(layer, mesh=mesh, offload_policy=offload), *linear[:1]])
    fully_shard(root, mesh=mesh, reshard_after_forward=not trains, offload_policy=offload)
    for of_layer, of_next in pairwise(groups):  # gathered while the layer before is computed
        of_layer[0].set_modules_to_forward_prefetch(of_next)
        of_next[0].set_modules_to_backward_prefetch(of_layer[::-1])
    for module in root.modules():
        if isinstance(module, FSDPModule):  # sums instead of means: the loss is divided by the counts of the whole step
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    assert all(map(is_sharded, model.parameters()))
    return root


def is_sharded(tensor: Tensor) -> bool:
    return isinstance(tensor, DTensor)


def compute_device(model: nn.Module) -> torch.device:
    """The device that the model computes on; shards may rest in the host's memory meanwhile."""
    first = next(model.parameters())
    return torch.device(first.device_mesh.device_type) if isinstance(first, DTensor) else first.device


def full_tensor(tensor: Tensor) -> Tensor:
    """The tensor itself, or all shards of it gathered on the device. Every process must call it."""
    if not isinstance(tensor, DTensor):
        return tensor
    on_device: Any = tensor.to(tensor.device_mesh.device_type)
    return on_device.full_tensor()


def full_on_main(tensor: Tensor) -> Tensor:
    """The tensor itself, or all shards of it in the main process's host memory; the others get an empty one. Every process must call it."""
    if not isinstance(tensor, DTensor):
        return tensor
    full = full_tensor(tensor)
    return full.cpu() if tensor.device_mesh.get_rank() == 0 else full.new_empty(0)


def shard_like(full: Tensor, like: Tensor) -> Tensor:
    """This process's shard of a full tensor where `like` is sharded; else, and of a scalar, the tensor itself."""
    if not isinstance(like, DTensor) or full.dim() == 0:
        return full
    # src_data_rank=None: every process has the full tensor, so nothing is sent.
    return distribute_tensor(full, like.device_mesh, like.placements, src_data_rank=None).to(like.device)


@torch.no_grad()
def swap_values(parameter: nn.Parameter, values: Tensor) -> Tensor:
    """Gives the parameter other values. -> the ones it had. FSDP gathers the storage that it made, so a shard's values are copied."""
    if is_sharded(parameter):
        before = parameter.detach().clone()
        parameter.copy_(values)
    else:
        before, parameter.data = parameter.data, values
    return before


def full_state(optimizer: Optimizer) -> dict[str, Any]:
    """The optimizer's state_dict with full tensors, in the main process (full_on_main)."""
    state = optimizer.state_dict()
    full = {i: {key: full_on_main(x) for key, x in of.items()} for i, of in state["state"].items()}
    return {**state, "state": full}


def load_full_state(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Loads what full_state() returned, in any number of processes: each parameter's state, with the optimizer's own options (betas,
    weight decay, relative learning rates), which a resumed run may have changed."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    shards = {i: {key: shard_like(x, parameters[i]) for key, x in of.items()} for i, of in state["state"].items()}
    groups = optimizer.state_dict()["param_groups"]
    assert [group["params"] for group in groups] == [group["params"] for group in state["param_groups"]]
    optimizer.load_state_dict({"state": shards, "param_groups": groups})
