"""An optimizer that holds float32 gradients and moments on the device for one bucket of parameters at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rl.policy.offload import BUCKET, pinned

MIN_OFFLOADED = 1024  # elements: smaller tensors of the state, such as the step count, stay on the device


class StreamedOptimizer:
    """Steps an optimizer one bucket of parameters at a time, for which it casts gradients to float32 and brings moments to the device.

    gradient_dtype: the dtype in which gradients are accumulated. offloads: moments are in the host's memory between steps.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, *, gradient_dtype: torch.dtype, offloads: bool) -> None:
        self.inner, self.gradient_dtype, self.offloads = optimizer, gradient_dtype, offloads
        self.parameters: list[nn.Parameter] = [p for group in optimizer.param_groups for p in group["params"]]
        self.buckets = list(in_buckets(self.parameters))
        self.host_buffers: dict[tuple[nn.Parameter, str], Tensor] = {}
        self._set_gradient_dtype(gradient_dtype)
        optimizer.step()  # without gradients: bitsandbytes moves all existing moments to the GPU at its first step

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self.inner.param_groups

    @property
    def state(self) -> dict[nn.Parameter, dict[str, Any]]:
        return self.inner.state  # pyright: ignore[reportReturnType]

    @torch.no_grad()
    def step(self) -> None:
        gradients = [[p.grad for p in bucket] for bucket in self.buckets]
        self.zero_grad()
        self._set_gradient_dtype(None)  # any dtype
        for bucket, bucket_gradients in zip(self.buckets, gradients, strict=True):
            for parameter, gradient in zip(bucket, bucket_gradients, strict=True):
                parameter.grad = None if gradient is None else gradient.float()
                self._moments_to_device(parameter)
            self.inner.step()
            self.zero_grad()
            self._moments_to_host(bucket)
        self._set_gradient_dtype(self.gradient_dtype)

    def zero_grad(self) -> None:
        self.inner.zero_grad()

    def state_dict(self) -> dict[str, Any]:
        if self.offloads and torch.cuda.is_initialized():
            torch.cuda.synchronize()  # waits for copies to the host that are in progress
        return self.inner.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads one bucket at a time, as all moments together may exceed the device's memory."""
        index = {parameter: i for i, parameter in enumerate(self.parameters)}
        loaded: dict[nn.Parameter, dict[str, Any]] = {}
        for bucket in self.buckets if self.offloads else [self.parameters]:
            part = {i: x for i in map(index.__getitem__, bucket) if (x := state_dict["state"].get(i)) is not None}
            self.inner.load_state_dict({**state_dict, "state": part})
            self._moments_to_host(bucket)
            loaded |= {p: dict(self.state[p]) for p in bucket if p in self.state}
        self.state.update(loaded)

    def _set_gradient_dtype(self, dtype: torch.dtype | None) -> None:
        for parameter in self.parameters:
            parameter.grad_dtype = dtype  # pyright: ignore[reportAttributeAccessIssue]

    def _moments(self, parameter: nn.Parameter) -> Iterator[tuple[dict[str, Any], str, Tensor]]:
        """The offloaded tensors of a parameter's optimizer state, each with the state and its name there."""
        state = self.state.get(parameter, {}) if self.offloads else {}
        tensors = [(name, x) for name, x in state.items() if isinstance(x, Tensor)]
        yield from [(state, name, x) for name, x in tensors if x.numel() > MIN_OFFLOADED]

    def _moments_to_device(self, parameter: nn.Parameter) -> None:
        for state, name, moment in self._moments(parameter):
            state[name] = moment.to(parameter.device, non_blocking=True)

    def _moments_to_host(self, bucket: Sequence[nn.Parameter]) -> None:
        for parameter in bucket:
            for state, name, moment in self._moments(parameter):
                buffer = self._host_buffer(parameter, name, moment)
                state[name] = buffer.copy_(moment, non_blocking=True)

    def _host_buffer(self, parameter: nn.Parameter, name: str, moment: Tensor) -> Tensor:
        if (parameter, name) not in self.host_buffers:
            buffer = torch.empty_like(moment, device="cpu")
            self.host_buffers[parameter, name] = pinned(buffer) if moment.is_cuda else buffer
        return self.host_buffers[parameter, name]


def in_buckets(parameters: Sequence[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Divides parameters, in order, into buckets of at most BUCKET elements; a larger parameter is a bucket of its own."""
    bucket: list[nn.Parameter] = []
    for parameter in parameters:
        if bucket and sum(p.numel() for p in (*bucket, parameter)) > BUCKET:
            yield bucket
            bucket = []
        bucket.append(parameter)
    if bucket:
        yield bucket
