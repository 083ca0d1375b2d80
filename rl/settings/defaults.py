"""What options "by model" are where they are not given: for the tiny model, by its built-in task, and for real ones."""

from __future__ import annotations

from typing import Any

from rl.settings.options import AnyDType, DType

TINY = "tiny"


def tiny_task(dataset: str) -> str:
    """The built-in task that the tiny model is taught before a run on `dataset`: that one, or else arithmetic."""
    return dataset if dataset in TINY_DEFAULTS else "arithmetic"


ARITHMETIC_DEFAULTS: dict[str, Any] = {
    "prompt_style": "plain",
    "num_steps": 72,
    "problems_per_step": 96,
    "group_size": 10,
    "max_tokens": 32,
    "learning_rate": 4e-4,
    "schedule": "linear",
    "eval_every": 10,
    "eval_size": 400,
}
TINY_DEFAULTS: dict[str, dict[str, Any]] = {  # by built-in task
    "arithmetic": ARITHMETIC_DEFAULTS,
    "small-programs": {**ARITHMETIC_DEFAULTS, "problems_per_step": 80, "max_tokens": 24, "learning_rate": 6e-4},
}
TOKENS_ON_A_CPU = 8192  # in one forward, unless asked for otherwise
TINY_KL_WEIGHT = 0.001  # a base that is wrong half of the time is no policy to stay near to
LORA_RATE = 10  # that many times the best rate of all weights is the best of adapters (Schulman et al. 2025, LoRA Without Regret)
MODEL_DEFAULTS: dict[str, Any] = {
    "num_steps": 500,
    "problems_per_step": 32,
    "group_size": 8,
    "max_tokens": 1024,
    "learning_rate": 1e-6,
    "schedule": "constant",
    "eval_every": 25,
    "eval_size": 200,
}


def resolved_dtype(dtype: AnyDType, device: str = "auto") -> DType:
    """auto is bfloat16 on a GPU that computes in it, else float32."""
    if dtype != "auto":
        return dtype
    import torch  # takes a second, and `--help` needs none of it

    has_bfloat16 = device != "cpu" and torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    return "bfloat16" if has_bfloat16 else "float32"
