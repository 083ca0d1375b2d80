"""Checks of accelerate's launch settings: those that this trainer would ignore or apply in part are refused by name."""

from __future__ import annotations

from collections.abc import Mapping

from rewards.errors import UserError
from rl.settings.options import DType

# Environment variable that `accelerate launch` sets -> (accelerate's name, values without effect here, what to use instead).
SETTINGS = {
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": (
        "gradient_accumulation_steps",
        ("1", "auto"),
        "each update adds up all its micro-batches, whose size is --token-budget",
    ),
    "ACCELERATE_MIXED_PRECISION": ("mixed_precision", ("no",), "--dtype sets the precision of the run"),
    "ACCELERATE_DYNAMO_BACKEND": ("dynamo_backend", ("no",), "--attention and --fused choose the kernels"),
    "ACCELERATE_GRADIENT_CLIPPING": ("gradient_clipping", ("none", "auto"), "--max-grad-norm clips"),
    "ACCELERATE_USE_DEEPSPEED": ("use_deepspeed", ("false",), "weights are sharded by FSDP2, see docs/scale.md"),
    "ACCELERATE_USE_MEGATRON_LM": ("use_megatron_lm", ("false",), "weights are sharded by FSDP2, see docs/scale.md"),
    "ACCELERATE_USE_PARALLELISM_CONFIG": ("use_parallelism_config", ("false",), "processes divide the problems"),
}
FSDP_SETTINGS = {
    "FSDP_VERSION": ("fsdp_version", ("2",), "weights are sharded by version 2 only"),
    "FSDP_ACTIVATION_CHECKPOINTING": (
        "fsdp_activation_checkpointing",
        ("false",),
        "--gradient-checkpointing runs the layers again in the backward pass",
    ),
    "FSDP_RESHARD_AFTER_FORWARD": ("fsdp_reshard_after_forward", ("true",), "layers are always resharded"),
    "FSDP_IGNORED_MODULES": ("fsdp_ignored_modules", ("none", ""), "all weights are sharded"),
}


def uses_fsdp(environment: Mapping[str, str]) -> bool:
    return environment.get("ACCELERATE_USE_FSDP", "").lower() == "true"


def offloads_parameters(environment: Mapping[str, str]) -> bool:
    """With this setting accelerate also gives CPU tensors a process group (gloo) beside the GPUs' (NCCL)."""
    return environment.get("FSDP_OFFLOAD_PARAMS", "").lower() == "true"


def require_supported(environment: Mapping[str, str], dtype: DType, *, shards: bool) -> None:
    """Raises UserError for a setting that has another value than the ones supported. shards: FSDP runs in several processes."""
    for variable, (name, supported, instead) in {**SETTINGS, **(FSDP_SETTINGS if shards else {})}.items():
        value = environment.get(variable, "1" if variable == "FSDP_VERSION" else supported[0])
        agrees = variable == "ACCELERATE_MIXED_PRECISION" and (value.lower(), dtype) == ("bf16", "bfloat16")
        if value.lower() not in supported and not agrees:
            raise UserError(
                f"{name} is {value!r} in accelerate's configuration: {instead}; leave it out of `accelerate launch` and its "
                f"configuration, or set it to {supported[0]}"
            )
