"""What tests/rl/test_fused.py asks of the kernels of norms and gates, printed as JSON.

python -m tests.rl.check_fused triton      rl/forward/triton_kernels.py by Triton's interpreter, on a CPU
python -m tests.rl.check_fused compiled    rl/forward/cpu_kernels.py
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

import rl.forward.fused
from rl.forward.choose_forward import _why_fused_differs
from rl.forward.forward import enable_gradient_checkpointing, in_fused, packed_forward, plain_forward
from rl.forward.fused import fused, why_not_fused
from rl.policy.lora import add_adapters
from tests.rl.families import of_family
from tests.rl.models import random_batch

if sys.argv[1] == "triton":
    from rl.forward import triton_kernels as kernels_under_test

    rl.forward.fused._kernels = lambda x: kernels_under_test
else:
    from rl.forward import cpu_kernels as kernels_under_test

rms_norm, silu_times = kernels_under_test.rms_norm, kernels_under_test.silu_times
BFLOAT16, FLOAT32 = torch.bfloat16, torch.float32
FUSED_OR_NOT = ("Qwen2", "Qwen3", "Llama", "Granite", "SmolLM3", "Gemma", "OLMo 2", "GPT-2", "Mixtral")


def relative(found: Iterable[Tensor], right: Iterable[Tensor]) -> float:
    return max(((a.double() - b).norm() / b.norm()).item() for a, b in zip(found, right, strict=True))


def through(run: Callable[..., Tensor], leaves: list[Tensor], direction: Tensor) -> list[Tensor]:
    """The value and its gradients."""
    leaves = [leaf.detach().requires_grad_() for leaf in leaves]
    value = run(*leaves)
    return [value.detach(), *torch.autograd.grad(value, leaves, direction.to(value.dtype))]


def error_of_norm(rows: int, columns: int, dtype: torch.dtype, out: torch.dtype) -> float:
    x, weight, direction = (
        torch.randn(rows, columns).to(dtype),
        torch.rand(columns) + 0.5,
        torch.randn(rows, columns).to(out),
    )
    found = through(lambda x, weight: rms_norm(x, weight, 1e-5, out), [x, weight], direction)
    exact = through(lambda x, w: F.rms_norm(x, (columns,), w, 1e-5), [x.double(), weight.double()], direction)
    return relative(found, exact)


def error_of_gate(rows: int, columns: int, dtype: torch.dtype) -> float:
    gate, up, direction = (torch.randn(rows, columns).to(dtype) for _ in range(3))
    found = through(silu_times, [gate, up.t().contiguous().t()], direction)  # one of them not contiguous
    return relative(found, through(lambda g, u: F.silu(g) * u, [gate.double(), up.double()], direction))


def kernels() -> dict[str, float]:
    torch.manual_seed(0)
    return {
        # more rows than the backward has programs, columns that are no power of two
        "norm, float32": error_of_norm(720, 1500, FLOAT32, FLOAT32),
        "norm, float32 to bfloat16": error_of_norm(7, 100, FLOAT32, BFLOAT16),
        "norm, bfloat16": error_of_norm(7, 16, BFLOAT16, BFLOAT16),
        "gate, float32": error_of_gate(37, 100, FLOAT32),
        "gate, bfloat16": error_of_gate(37, 100, BFLOAT16),
    }


def scored(forward: Any, model: PreTrainedModel, *, autocast: bool) -> list[Tensor]:
    """Log-probs, and the gradient of a loss in which log-probs and entropies count."""
    model.zero_grad()
    (micro,) = random_batch(groups=2, size=3, longest=20).micro_batches(10_000)
    with torch.autocast("cpu", BFLOAT16, enabled=autocast):
        scores = forward.score(model, micro, 0.7)
    (micro.weights * (micro.advantages * scores.logprobs + 0.3 * scores.entropies)).sum().backward()
    trained = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return [scores.logprobs.detach(), torch.cat(trained)]


def of_a_model(family: str, *, lora: bool) -> dict[str, Any]:
    """Errors in float32; under autocast as shares of those of the model's own forward there; by recomputing in the backward, the
    difference that it makes."""
    model, ours = of_family(family), in_fused(packed_forward)
    if lora:
        add_adapters(model, rank=4, alpha=8.0, targets=("all-linear",), seed=0)
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                nn.init.normal_(parameter, std=0.1)
    exact, own = (scored(plain_forward, model, autocast=autocast) for autocast in (False, True))
    found = scored(ours, model, autocast=True)
    reason = _why_fused_differs(packed_forward, model)
    in_float32 = relative(scored(ours, model, autocast=False), exact)
    enable_gradient_checkpointing(model, fuses=True)
    return {
        "float32": in_float32,
        "bfloat16": [relative([f], [e]) / relative([o], [e]) for f, o, e in zip(found, own, exact, strict=True)],
        "recomputed": relative(scored(ours, model, autocast=True), found),
        "refused": reason,
        "left": sum("forward" in module.__dict__ for module in model.modules()),
    }


def types(*tensors: Tensor) -> str:
    return " ".join(str(tensor.dtype).removeprefix("torch.") for tensor in tensors)


def types_of_a_layer() -> dict[str, list[str]]:
    """What goes through it under autocast, fused and not."""
    model, found = of_family("Qwen3"), {}
    layer = model.model.layers[1]
    (micro,) = random_batch(groups=1).micro_batches(10_000)
    for name, around in (("plain", nullcontext()), ("fused", fused(model))):
        seen: list[str] = []
        hooks = [
            part.register_forward_hook(lambda module, inputs, out, s=seen: s.append(types(inputs[0], out)))
            for part in (layer.self_attn.q_norm, layer.mlp.gate_proj, layer.mlp, layer)
        ]
        with around, torch.autocast("cpu", BFLOAT16):
            packed_forward.score(model, micro, 1.0)
        for hook in hooks:
            hook.remove()
        found[name] = seen
    return found


def of_another_norm() -> str | None:
    """Why a model is not fused whose norms look like Llama's and compute something else."""
    model = of_family("Qwen2")
    like = type(model.model.layers[0].input_layernorm)

    class Other(like):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * (1 + self.weight)

    for layer in model.model.layers:
        layer.input_layernorm.__class__ = Other
    return _why_fused_differs(packed_forward, model)


def main() -> None:
    families = {name: why_not_fused(of_family(name)) for name in FUSED_OR_NOT}
    found = {
        "kernels": kernels(),
        "models": {
            "Qwen2": of_a_model("Qwen2", lora=False),
            "Qwen3": of_a_model("Qwen3", lora=False),
            "Qwen2, LoRA": of_a_model("Qwen2", lora=True),
        },
        "types": types_of_a_layer(),
        "another norm": of_another_norm(),
        "families": families,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
