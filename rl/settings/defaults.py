"""Names and numbers that several packages use as defaults, and the data type that "auto" stands for."""

from __future__ import annotations

from functools import cache

from rl.settings.options import AnyDType, DType

TINY = "tiny"
# Built-in tasks that the tiny model can be warm-started on.
TINY_TASKS = ("arithmetic", "small-programs", "number-programs", "large-products", "guess-number")
ALGORITHM, TINY_ALGORITHM = "plain", "grpo"
TINY_KL_WEIGHT = 0.001  # the tiny base model is wrong half of the time, so staying close to it is worth little
LORA_RATE = 10  # the best learning rate of adapters is that many times that of all weights (Schulman et al. 2025, LoRA Without Regret)
# Learning rates relative to the policy's. A new value head has few weights; for a separate critic JustRL-II has 5e-6 against 1e-6.
VALUE_HEAD_RATE, CRITIC_RATE, TINY_CRITIC_RATE = 10, 5, 1
REWARD_MODEL_RATE, TINY_REWARD_MODEL_RATE = 2e-5, 1e-3  # DeepSeekMath, section 4.2, has 2e-5
TOKEN_BUDGET = 8192  # tokens in one forward pass where the device's memory does not decide
CPU_TOKEN_BUDGET = 4096  # as fast as 8192 there, in half of the memory
# Parts of x86 processors that multiply in bfloat16. From the hidden size on, --dtype auto uses them: measured on AVX512-BF16, sampling and
# update are 1.2 and 1.3 times as fast as in float32 at 256, 1.7 and 1.5 times at 576.
BFLOAT16_UNITS, LEAST_HIDDEN_SIZE = ("avx512_bf16", "amx_bf16"), 256
MAX_ROWS = 1024  # completions that the embedded engine decodes at once, at most


def tiny_task(*datasets: str) -> str:
    """The built-in task that the tiny model is taught before a run on these data sets: the first that it can be, or else arithmetic."""
    return next((dataset for dataset in datasets if dataset in TINY_TASKS), "arithmetic")


def resolved_dtype(dtype: AnyDType, model: str, device: str = "auto") -> DType:
    """The data type that "auto" stands for: bfloat16 on a GPU or a CPU that multiplies in it, else float32.

    On a CPU, small models stay in float32 (LEAST_HIDDEN_SIZE).
    """
    if dtype != "auto":
        return dtype
    import torch  # takes a second, and `--help` needs none of it

    if device != "cpu" and torch.accelerator.is_available():
        has_bfloat16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    else:
        units = torch.cpu.get_capabilities()
        has_bfloat16 = any(units.get(u, False) for u in BFLOAT16_UNITS) and hidden_size(model) >= LEAST_HIDDEN_SIZE
    return "bfloat16" if has_bfloat16 else "float32"


@cache
def hidden_size(model: str) -> int:
    """A model's hidden size; 0 for the tiny model and where there is no config, which loading the model reports."""
    if model == TINY:
        return 0
    from transformers import AutoConfig

    try:
        return getattr(AutoConfig.from_pretrained(model).get_text_config(), "hidden_size", 0)
    except (OSError, ValueError):
        return 0
