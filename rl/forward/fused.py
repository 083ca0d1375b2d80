"""Fused norms and gates for layers of Llama's structure: the same numbers with less memory traffic.

transformers computes a norm in six kernels, and under autocast each product that reads it casts it again. Here a norm is one kernel
that writes the dtype of those products, and SiLU(gate) * up is another: on a GPU those of rl/forward/triton_kernels.py, on a CPU those of
rl/forward/cpu_kernels.py. The residual stream stays float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.activations import SiLUActivation

from rl.forward import cpu_kernels
from rl.forward.casts import product_dtype

Fused = Literal["auto", "none"]
# The children of a layer in which each norm is read by the products after it.
LAYER = {"input_layernorm", "self_attn", "post_attention_layernorm", "mlp"}
GATED = {"gate_proj", "up_proj", "down_proj"}


def why_not_fused(model: PreTrainedModel) -> str | None:
    """The reason why the model's layers cannot be fused; None if they can."""
    device = model.device.type
    if device == "cpu" and cpu_kernels.compiled is None:
        return "the compiled parts are not built (plumbline doctor)"
    if device != "cpu" and find_spec("triton") is None:
        return "Triton is not installed (pip install triton)"
    layers = getattr(getattr(model, "model", None), "layers", ())
    return None if layers and all(map(_is_like_llama, layers)) else "its layers do not have Llama's structure"


def kernel_errors() -> tuple[type[Exception], ...]:
    """The exceptions that Triton raises if it cannot build a kernel for this machine."""
    if find_spec("triton") is None:
        return ()
    from rl.forward.triton_kernels import TritonError

    return (TritonError,)


def _is_like_llama(layer: Any) -> bool:
    """Whether a layer has the same submodules as Llama's. rl/forward/choose_forward.py compares what they compute."""
    if _children(layer) != LAYER or _children(layer.mlp) != GATED:
        return False
    return _is_norm(layer.input_layernorm) and _is_norm(layer.post_attention_layernorm)


def _children(module: nn.Module) -> set[str]:
    """Names of the children that have parameters."""
    return {name for name, child in module.named_children() if any(True for _ in child.parameters())}


def _is_norm(module: Any) -> bool:
    return hasattr(module, "variance_epsilon") and isinstance(getattr(module, "weight", None), Tensor)


@contextmanager
def fused(model: PreTrainedModel) -> Iterator[None]:
    """Inside the block the norms and gates of the model's layers run as the kernels of rl/forward/triton_kernels.py.

    The layers must have Llama's structure. The modules' own forwards are restored at the end of the block.
    """
    parts = [(module, forward) for module, forward in _fused_forwards(model) if "forward" not in module.__dict__]
    for module, forward in parts:
        module.forward = partial(forward, module)
    try:
        yield
    finally:
        for module, _ in parts:
            module.__dict__.pop("forward", None)


def _fused_forwards(model: Any) -> Iterator[tuple[Any, Callable[..., Tensor]]]:
    """Each module to fuse, with the forward that replaces its own."""
    for layer in model.model.layers:
        yield layer.input_layernorm, _norm_before_products
        yield layer.post_attention_layernorm, _norm_before_products
        for norm in filter(_is_norm, (getattr(layer.self_attn, name, None) for name in ("q_norm", "k_norm"))):
            yield norm, _norm_of_heads
        if isinstance(layer.mlp.act_fn, nn.SiLU | SiLUActivation):
            yield layer.mlp, _gated


def _norm_before_products(norm: Any, x: Tensor) -> Tensor:
    return _norm(norm, x, product_dtype(x))


def _norm_of_heads(norm: Any, x: Tensor) -> Tensor:
    """A norm of queries or keys: rotary positions are applied to its result in the dtype of the weight."""
    return _norm(norm, x, torch.result_type(x, norm.weight))


def _norm(norm: Any, x: Tensor, dtype: torch.dtype) -> Tensor:
    return _kernels(x).rms_norm(x, norm.weight, norm.variance_epsilon, dtype)


def _gated(mlp: Any, x: Tensor) -> Tensor:
    return mlp.down_proj(_kernels(x).silu_times(mlp.gate_proj(x), mlp.up_proj(x)))


def _kernels(x: Tensor) -> Any:
    if x.device.type == "cpu":
        return cpu_kernels
    from rl.forward import triton_kernels  # imported here, as Triton may not be installed

    return triton_kernels
