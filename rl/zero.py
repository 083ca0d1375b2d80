"""Gradients, optimiser and (at stage 3) weights spread over the processes by DeepSpeed: ZeRO, arXiv 1910.02054.

The only file that imports deepspeed; accelerate's configuration asks for it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

MOMENTS = ("exp_avg", "exp_avg_sq")  # AdamW's


class ZeroOptimizer:
    """A DeepSpeed engine, which sums gradients as they are made, clips them and leaves out an update that is not finite.

    parameters: of the model, in the order of the optimiser that it was made with.
    """

    def __init__(self, engine: Any, parameters: list[nn.Parameter]) -> None:
        self.engine, self.parameters = engine, parameters

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self.engine.optimizer.param_groups

    def backward(self, loss: Tensor) -> None:
        self.engine.backward(loss * self.engine.dp_world_size)  # it takes the mean over the processes

    def step(self) -> float:
        """-> the gradient's length before it was clipped; infinite where the update was left out."""
        self.engine.step()
        return float(self.engine.get_global_grad_norm())

    def zero_grad(self) -> None:
        """The engine's step has done it."""

    def state_dict(self) -> dict[str, Any]:
        """That of a torch.optim.AdamW over whole parameters. All processes must ask for it."""
        from deepspeed.utils import safe_get_full_optimizer_state  # pyright: ignore[reportMissingImports]

        counts = [kept["step"] for kept in self._adamw.state.values()]
        state: dict[int, dict[str, Any]] = {}
        for i, p in enumerate(self.parameters if counts else []):
            state[i] = {"step": counts[0].clone()} | {key: safe_get_full_optimizer_state(p, key) for key in MOMENTS}
        groups = [{key: x for key, x in group.items() if key != "params"} for group in self.param_groups]
        assert len(groups) == 1
        return {"state": state, "param_groups": [{**groups[0], "params": list(range(len(self.parameters)))}]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Of state_dict(), on any number of processes."""
        self.param_groups[0].update({k: x for k, x in state_dict["param_groups"][0].items() if k != "params"})
        if not state_dict["state"]:
            return
        for flat in self._flat_parts():  # as the first step would make it
            moments = {key: torch.zeros_like(flat) for key in MOMENTS}
            self._adamw.state[flat] = {"step": state_dict["state"][0]["step"].clone(), **moments}
        if not is_parted(self.parameters[0]):
            self.engine.optimizer._lazy_init_hp_params_optimizer_state()
        for i, parameter in enumerate(self.parameters):
            for key in MOMENTS:
                self._keep(parameter, key, state_dict["state"][i][key].to(self.engine.device))

    @property
    def _adamw(self) -> torch.optim.Optimizer:
        return self.engine.optimizer.optimizer

    def _flat_parts(self) -> list[Tensor]:
        """What this process updates, at stage 2 or 3."""
        zero = self.engine.optimizer
        return getattr(zero, "single_partition_of_fp32_groups", None) or zero.fp32_partitioned_groups_flat

    def _keep(self, parameter: nn.Parameter, key: str, value: Tensor) -> None:
        from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state  # pyright: ignore[reportMissingImports]

        if not is_parted(parameter):
            safe_set_full_optimizer_state(parameter, value, key)
            return
        size = parameter.ds_tensor.ds_numel  # pyright: ignore[reportAttributeAccessIssue]  the last process's is filled up
        start = size * self.engine.global_rank
        padded = pad(value.flatten(), (0, size * self.engine.dp_world_size - value.numel()))
        safe_set_local_optimizer_state(parameter, padded[start : start + size], key)


def is_parted(tensor: Tensor) -> bool:
    """By ZeRO-3: its own data are empty, or all there for the time of a forward."""
    return hasattr(tensor, "ds_id")


def put_together(parameter: Tensor) -> Tensor:
    """A copy of all of it. All processes must ask for it."""
    from deepspeed.runtime.zero import GatheredParameters  # pyright: ignore[reportMissingImports]

    with GatheredParameters([parameter]):
        return parameter.detach().clone()
