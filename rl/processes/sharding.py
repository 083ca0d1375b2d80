"""Weights, gradients and optimiser spread over the processes, by torch's own fully_shard (FSDP2, arXiv 2304.11277).

Each layer is a group of its own, the rest of the model another one. A group is put together for the time of its forward and its
backward, and its gradient is summed as it is taken apart again. What the embedded engine samples with stays whole.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel

R = TypeVar("R")


class Optimizer(Protocol):
    """What a step needs of torch's optimisers and of those around them."""

    @property
    def param_groups(self) -> list[dict[str, Any]]: ...
    def step(self) -> Any: ...
    def zero_grad(self) -> None: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state_dict: dict[str, Any]) -> None: ...


class Root(nn.Module):
    """Everything that reads the model's weights runs inside its forward: there those outside of the layers are whole."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, run: Callable[[], R]) -> R:
        return run()


def shard(model: PreTrainedModel, mesh: DeviceMesh, *, trains: bool, in_16_bits: bool) -> Root:
    """In place: the model's parameters are new ones, each a part of the old one.

    trains: what is outside of the layers stays whole from the forward to the backward. in_16_bits: linear layers within the layers
    are put together in bfloat16, to which autocast would round them anyway; what it leaves in float32 stays so. Gradients are
    summed in float32.
    """
    layers = [m for m in model.modules() if type(m).__name__ in (model._no_split_modules or ())]
    root = Root(model)
    rounded = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    parts: list[list[Any]] = []  # of each layer what is put together by itself, in the order that it is used in
    for layer in layers:
        linear: list[Any] = [m for m in layer.modules() if isinstance(m, nn.Linear)] if in_16_bits else []
        if linear:
            fully_shard(linear, mesh=mesh, mp_policy=rounded)
        parts.append([fully_shard(layer, mesh=mesh), *linear[:1]])
    fully_shard(root, mesh=mesh, reshard_after_forward=not trains)
    for of_layer, of_next in pairwise(parts):  # on its way while this one is computed
        of_layer[0].set_modules_to_forward_prefetch(of_next)
        of_next[0].set_modules_to_backward_prefetch(of_layer[::-1])
    for module in root.modules():
        if isinstance(module, FSDPModule):  # sums, no means: the loss has the step's own denominators
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    assert all(isinstance(p, DTensor) for p in model.parameters())
    return root


def is_spread(tensor: Tensor) -> bool:
    return isinstance(tensor, DTensor)


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor that may be spread over the processes: all of them must ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole_state(optimizer: Optimizer) -> dict[str, Any]:
    """Its state_dict with whole tensors."""
    state = optimizer.state_dict()
    kept = {i: {key: whole(x) for key, x in of_parameter.items()} for i, of_parameter in state["state"].items()}
    return {**state, "state": kept}


def load_state(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Of whole_state(), on any number of processes."""
    parts = dict(enumerate(p for group in optimizer.param_groups for p in group["params"]))
    kept = {i: {key: _part_of(x, parts.get(i)) for key, x in of.items()} for i, of in state["state"].items()}
    optimizer.load_state_dict({**state, "state": kept})


def _part_of(tensor: Tensor, like: Tensor | None) -> Tensor:
    if not isinstance(like, DTensor) or tensor.dim() == 0:
        return tensor
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
