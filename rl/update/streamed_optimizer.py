"""An optimiser whose float32 gradients and moments are on the device a bucket of parameters at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rl.policy.offload import BUCKET, pinned

MOVED = 1024  # numbers: smaller tensors, such as an optimiser's count of steps, stay where they are


class StreamedOptimizer:
    """Steps an optimiser a bucket of parameters at a time: those have float32 gradients, and moments on the device, meanwhile.

    gradient_dtype: in which gradients are added up. offloads: moments wait in the host's memory between steps.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, *, gradient_dtype: torch.dtype, offloads: bool) -> None:
        self.inner, self.gradient_dtype, self.offloads = optimizer, gradient_dtype, offloads
        self.parameters: list[nn.Parameter] = [p for group in optimizer.param_groups for p in group["params"]]
        self.buckets = list(in_buckets(self.parameters))
        self.homes: dict[tuple[nn.Parameter, str], Tensor] = {}
        self._take_gradients_in(gradient_dtype)
        optimizer.step()  # without gradients: at its first step bitsandbytes would bring all moments to the GPU

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
        self._take_gradients_in(None)  # of any type
        for bucket, of_bucket in zip(self.buckets, gradients, strict=True):
            for parameter, gradient in zip(bucket, of_bucket, strict=True):
                parameter.grad = None if gradient is None else gradient.float()
                self._bring(parameter)
            self.inner.step()
            self.zero_grad()
            self._send_home(bucket)
        self._take_gradients_in(self.gradient_dtype)

    def zero_grad(self) -> None:
        self.inner.zero_grad()

    def state_dict(self) -> dict[str, Any]:
        if self.offloads and torch.cuda.is_initialized():
            torch.cuda.synchronize()  # what is on its way home
        return self.inner.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """A bucket at a time: all moments at once may be more than the device holds."""
        number = {parameter: i for i, parameter in enumerate(self.parameters)}
        loaded: dict[nn.Parameter, dict[str, Any]] = {}
        for bucket in self.buckets if self.offloads else [self.parameters]:
            part = {i: x for i in map(number.__getitem__, bucket) if (x := state_dict["state"].get(i)) is not None}
            self.inner.load_state_dict({**state_dict, "state": part})
            self._send_home(bucket)
            loaded |= {p: dict(self.state[p]) for p in bucket if p in self.state}
        self.state.update(loaded)

    def _take_gradients_in(self, dtype: torch.dtype | None) -> None:
        for parameter in self.parameters:
            parameter.grad_dtype = dtype  # pyright: ignore[reportAttributeAccessIssue]

    def _moments(self, parameter: nn.Parameter) -> Iterator[tuple[dict[str, Any], str, Tensor]]:
        state = self.state.get(parameter, {}) if self.offloads else {}
        yield from [(state, name, x) for name, x in state.items() if isinstance(x, Tensor) and x.numel() > MOVED]

    def _bring(self, parameter: nn.Parameter) -> None:
        for state, name, moment in self._moments(parameter):
            state[name] = moment.to(parameter.device, non_blocking=True)

    def _send_home(self, bucket: Sequence[nn.Parameter]) -> None:
        for parameter in bucket:
            for state, name, moment in self._moments(parameter):
                home = self._home(parameter, name, moment)
                state[name] = home.copy_(moment, non_blocking=True)

    def _home(self, parameter: nn.Parameter, name: str, moment: Tensor) -> Tensor:
        if (parameter, name) not in self.homes:
            home = torch.empty_like(moment, device="cpu")
            self.homes[parameter, name] = pinned(home) if moment.is_cuda else home
        return self.homes[parameter, name]


def in_buckets(parameters: Sequence[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """In order, of at most BUCKET numbers; a larger parameter is one by itself."""
    bucket: list[nn.Parameter] = []
    for parameter in parameters:
        if bucket and sum(p.numel() for p in (*bucket, parameter)) > BUCKET:
            yield bucket
            bucket = []
        bucket.append(parameter)
    if bucket:
        yield bucket
