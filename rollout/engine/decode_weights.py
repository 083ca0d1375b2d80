"""The fused decoder's weights: the trainer's own tensors where possible, otherwise a copy that each delivery refreshes.

q, k and v (gate and up) become one matrix without a second copy: the parameters' `.data` are made views of it. They remain ordinary
parameters: an optimizer updates them in place, and each is saved and copied by itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rollout.float32_head import Float32Linear


class DecodeWeight:
    """One parameter of one or several children of a module. tensor: their values stacked along the rows, in the decoding dtype."""

    def __init__(self, parent: nn.Module, children: tuple[str, ...], name: str, dtype: torch.dtype) -> None:
        self.parent, self.children, self.name, self.dtype = parent, children, name, dtype
        self.copy: Tensor | None = None
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Takes over the current weights: without a copy if they are plain tensors of the decoding dtype."""
        modules = [getattr(self.parent, child) for child in self.children]
        parameters: list[nn.Parameter] = [getattr(_base(module), self.name) for module in modules]
        is_plain = not any(map(is_lora, modules)) or stay_apart(modules, self.dtype)
        if is_plain and all(p.dtype == self.dtype for p in parameters):
            self.tensor = adjoined(parameters)
            return
        rows = [len(p) for p in parameters]
        if self.copy is None:
            self.copy = parameters[0].new_empty((sum(rows), *parameters[0].shape[1:]), dtype=self.dtype)
        for part, module, parameter in zip(self.copy.split(rows), modules, parameters, strict=True):
            part.copy_(_merged(module) if is_lora(module) and self.name == "weight" else parameter)
        self.tensor = self.copy

    def parts(self) -> tuple[Tensor, ...]:
        """The rows of each child."""
        modules = [_base(getattr(self.parent, child)) for child in self.children]
        return self.tensor.split([len(getattr(module, self.name)) for module in modules])


class LowRank:
    """Unmerged low-rank adapters of a projection: x -> s (x A) B, in the decoding dtype.

    One product for the A of all children; each B, multiplied by its scale, adds to the rows of its child.
    """

    def __init__(self, parent: nn.Module, children: tuple[str, ...], dtype: torch.dtype) -> None:
        self.modules, self.dtype = [getattr(parent, child) for child in children], dtype
        self.down, self.ups = torch.empty(0, dtype=dtype), dict[tuple[int, str], Tensor]()
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Takes over the active adapters; their memory is kept if they are the same adapters as before."""
        apart = stay_apart(self.modules, self.dtype)
        found = [(i, name) for i, module in enumerate(self.modules) for name in _active(module) if apart]
        down = [self.modules[i].lora_A[name].weight for i, name in found]
        if list(self.ups) != found:
            self.down = torch.cat(down).to(self.dtype) if down else torch.empty(0, dtype=self.dtype)
            self.ups = {(i, name): self.modules[i].lora_B[name].weight.T.to(self.dtype).clone() for i, name in found}
        if found:
            self.down.copy_(torch.cat(down))
        for (i, name), up in self.ups.items():
            up.copy_(self.modules[i].scaling[name] * self.modules[i].lora_B[name].weight.T)

    def tensors(self) -> list[Tensor]:
        return [self.down, *self.ups.values()]

    def merged(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """Each child's weight with its adapters merged, in float32 where there are any."""
        merged, downs = list(parts), self.down.float().split([len(up) for up in self.ups.values()])
        for (i, _), up, down in zip(self.ups, self.ups.values(), downs, strict=True):
            merged[i] = merged[i].float() + up.float().T @ down
        return merged

    def add_to(self, out: Tensor, x: Tensor) -> Tensor:
        if self.ups:
            parts = out.split([module.out_features for module in self.modules], dim=-1)
            narrow = F.linear(x, self.down).split([len(up) for up in self.ups.values()], dim=-1)
            for (i, _), up, part in zip(self.ups, self.ups.values(), narrow, strict=True):
                parts[i].addmm_(part, up)
        return out


def stay_apart(modules: Sequence[nn.Module], dtype: torch.dtype) -> bool:
    """Whether adapters are applied unmerged: then a base that is stored in the 16-bit decoding dtype needs no second copy. In float32
    adapters are merged into a copy, so that a step has fewer operations."""
    are_read = dtype != torch.float32 and all(_base(module).weight.dtype == dtype for module in modules)
    return are_read and any(map(is_lora, modules))


def weights_dtype(model: nn.Module) -> torch.dtype:
    """The floating-point dtype of most of the model's numbers; norms and adapters may have another."""
    sizes: Counter[torch.dtype] = Counter()
    for parameter in model.parameters():
        sizes[parameter.dtype] += parameter.numel()
    return max((dtype for dtype in sizes if dtype.is_floating_point), key=lambda dtype: sizes[dtype])


def is_plain(module: nn.Module) -> bool:
    """Whether all parameters are ordinary tensors (not quantized, not distributed)."""
    return all(type(p) is nn.Parameter and type(p.data) is Tensor for p in module.parameters())


def is_lora(module: nn.Module) -> bool:
    """Whether this is peft's low-rank layer (arXiv 2106.09685), recognized without importing peft."""
    return hasattr(module, "base_layer") and hasattr(module, "lora_A")


def is_readable_linear(module: nn.Module) -> bool:
    """Whether this is a linear layer, plain or with low-rank adapters that are plain products (no DoRA, no bias of their own)."""
    if is_lora(module):
        is_product = not module.lora_variant and not any(module.lora_bias.values())  # pyright: ignore
        return is_product and is_readable_linear(_base(module))
    return type(module) in (nn.Linear, Float32Linear) and is_plain(module)


def product_dtype(module: nn.Module, dtype: torch.dtype) -> torch.dtype:
    """The dtype in which a linear layer multiplies in a model that is decoded in `dtype`."""
    return torch.float32 if isinstance(_base(module), Float32Linear) else dtype


def _base(module: nn.Module) -> nn.Module:
    return module.base_layer if is_lora(module) else module  # pyright: ignore[reportReturnType]


def _merged(module: nn.Module) -> Tensor:
    """W + the sum of scaling B A over the active adapters."""
    weight = module.base_layer.weight  # pyright: ignore
    return weight + sum(module.get_delta_weight(name) for name in _active(module))  # pyright: ignore


def _active(module: nn.Module) -> list[str]:
    """The names of the enabled adapters that are not merged into the base weight."""
    if not is_lora(module) or module.disable_adapters or module.merged:
        return []
    return [name for name in module.active_adapters if name in module.lora_A]  # pyright: ignore


def adjoined(parameters: Sequence[nn.Parameter]) -> Tensor:
    """One tensor over all parameters, [sum of rows, ...]. Unless they adjoin in memory already, they become views of a new tensor."""
    if not all(_follows(a, b) for a, b in pairwise(parameters)):
        joined = torch.cat([p.data for p in parameters])
        for parameter, part in zip(parameters, joined.split([len(p) for p in parameters]), strict=True):
            parameter.data = part
    first = parameters[0].data
    return first.as_strided((sum(map(len, parameters)), *first.shape[1:]), first.stride())


def _follows(a: Tensor, b: Tensor) -> bool:
    is_one_memory = a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()
    return is_one_memory and a.is_contiguous() and b.is_contiguous() and a.data_ptr() + a.nbytes == b.data_ptr()
