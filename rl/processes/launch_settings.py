"""What accelerate's configuration asks for and this trainer does otherwise: refused by name, as it would be ignored or applied in part."""

from __future__ import annotations

from collections.abc import Mapping

from rewards.errors import UserError
from rl.settings.options import DType

# Variable that `accelerate launch` sets -> accelerate's name of the setting, the values that change nothing here, what to use instead.
SETTINGS = {
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": (
        "gradient_accumulation_steps",
        ("1", "auto"),
        "each update adds up all its micro-batches, whose size is --token-budget",
    ),
    "ACCELERATE_MIXED_PRECISION": ("mixed_precision", ("no",), "--dtype says what the run computes in"),
    "ACCELERATE_DYNAMO_BACKEND": ("dynamo_backend", ("no",), "--attention and --fused choose the kernels"),
    "ACCELERATE_GRADIENT_CLIPPING": ("gradient_clipping", ("none", "auto"), "--max-grad-norm clips"),
    "ACCELERATE_USE_DEEPSPEED": ("use_deepspeed", ("false",), "weights are sharded by FSDP2, see docs/scale.md"),
    "ACCELERATE_USE_MEGATRON_LM": ("use_megatron_lm", ("false",), "weights are sharded by FSDP2, see docs/scale.md"),
    "ACCELERATE_USE_PARALLELISM_CONFIG": ("use_parallelism_config", ("false",), "processes share out the problems"),
}
FSDP_SETTINGS = {
    "FSDP_VERSION": ("fsdp_version", ("2",), "weights are sharded by version 2 only"),
    "FSDP_OFFLOAD_PARAMS": ("fsdp_offload_params", ("false",), "sharded weights stay on the device"),
    "FSDP_ACTIVATION_CHECKPOINTING": (
        "fsdp_activation_checkpointing",
        ("false",),
        "--gradient-checkpointing runs the layers again in the backward pass",
    ),
    "FSDP_RESHARD_AFTER_FORWARD": ("fsdp_reshard_after_forward", ("true",), "layers are always freed again"),
    "FSDP_IGNORED_MODULES": ("fsdp_ignored_modules", ("none", ""), "all weights are sharded"),
}


def require_honoured(environment: Mapping[str, str], dtype: DType, *, shards: bool) -> None:
    """shards: several processes were started with FSDP."""
    with_fsdp = shards and environment.get("ACCELERATE_USE_FSDP", "").lower() == "true"
    asked = {**SETTINGS, **(FSDP_SETTINGS if with_fsdp else {})}
    for variable, (name, harmless, instead) in asked.items():
        value = environment.get(variable, "1" if variable == "FSDP_VERSION" else harmless[0])
        agrees = variable == "ACCELERATE_MIXED_PRECISION" and (value.lower(), dtype) == ("bf16", "bfloat16")
        if value.lower() not in harmless and not agrees:
            raise UserError(
                f"{name} is {value!r} in accelerate's configuration: {instead}; leave it out of `accelerate launch` and its "
                f"configuration, or set it to {harmless[0]}"
            )
