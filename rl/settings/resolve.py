"""From the options that a user gives to the settings of a run, in one step: every default is filled in, nothing is "auto"."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from rewards.errors import UserError
from rl.settings.config import RunConfig
from rl.settings.declare import ByModel, declared
from rl.settings.defaults import (
    CPU_TOKEN_BUDGET,
    CRITIC_RATE,
    LORA_RATE,
    MAX_ROWS,
    REWARD_MODEL_RATE,
    TINY,
    TINY_CRITIC_RATE,
    TINY_KL_WEIGHT,
    TINY_REWARD_MODEL_RATE,
    TOKEN_BUDGET,
    VALUE_HEAD_RATE,
    resolved_dtype,
    tiny_task,
)
from rl.settings.options import DType, Engine


@dataclass(frozen=True, kw_only=True)
class Adapters:
    """LoRA adapters: their rank, alpha (their output is scaled by alpha / rank), layers, and the seed of their first weights."""

    rank: int
    alpha: float
    targets: tuple[str, ...]
    seed: int


@dataclass(frozen=True, kw_only=True)
class RunSettings(RunConfig):
    """The options of a run as it is: RunConfig with every default filled in for its model, algorithm and device.

    An option that may still be None is off (a limit that is not set, a data set that is not named) or leaves the value to the
    algorithm (chosen_algorithm). reference_dtype is "auto" with LoRA only, where the reference has no weights of its own;
    attention and fused are tried on the model itself (rl/forward/forward.py); head_dtype "auto" is the dtype of each side.
    """

    num_steps: int = field()
    problems_per_step: int = field()
    group_size: int = field()
    max_tokens: int = field()
    learning_rate: float = field()
    adam_beta2: float = field()
    algorithm: str = field()
    schedule: Literal["constant", "linear"] = field()
    eval_every: int = field()
    eval_size: int = field()
    run_dir: Path = field()
    dtype: DType = field()
    lora_base: Literal["float32", "bfloat16", "nf4"] = field()
    sampler: Engine = field()
    sampler_dtype: DType = field()
    sampler_rows: int = field()
    token_budget: int = field()
    gradient_checkpointing: bool = field()

    def learning_rate_at(self, step: int) -> float:
        """The learning rate of a step (from 1). It depends on nothing else, so that a resumed run needs no saved state of it."""
        rate = self.learning_rate * min(1.0, step / max(1, self.warmup_steps))
        return rate * (1 - (step - 1) / self.num_steps) if self.schedule == "linear" else rate

    @property
    def adapters(self) -> Adapters | None:
        """None where all weights are trained."""
        if self.lora_alpha is None:
            return None
        return Adapters(rank=self.lora_rank, alpha=self.lora_alpha, targets=self.lora_targets, seed=self.seed)

    def rounds_teacher(self, device_type: str) -> bool:
        """Whether a teacher's weights are stored in bfloat16: where its layers would round them anyway."""
        return self.dtype == "bfloat16" and device_type == "cuda"

    def rounds_base(self, device_type: str) -> bool:
        """Whether frozen weights are stored in bfloat16: all of them, or those outside of the layers that nf4 stores in 4 bits."""
        in_4_bits = self.lora_base == "nf4" and self.dtype == "bfloat16" and device_type == "cuda"
        return self.lora_base == "bfloat16" or in_4_bits


def resolve(config: RunConfig, device_type: str, *, shards: bool = False) -> RunSettings:
    """The settings of a run on a device of this type ("cpu", "cuda"). shards: weights are spread over processes (FSDP2).

    token_budget, gradient_checkpointing and sampler_rows get defaults that do not depend on the device's memory;
    rl/capacity/choose.py replaces these by what fits.
    """
    defaults = run_defaults(config)
    if config.critic_warmup_steps >= (num_steps := config.num_steps or defaults["num_steps"]):
        raise UserError(
            f"critic_warmup_steps is {config.critic_warmup_steps}: it must be less than num_steps, {num_steps}, for the policy to "
            "be trained at all; lower it, or raise num_steps"
        )
    automatic = automatic_values(config, device_type, shards)
    given = vars(config)
    filled = {name: value for name, value in defaults.items() if given[name] is None}
    filled |= {name: value for name, value in automatic.items() if given[name] == "auto"}
    settings = RunSettings(**{**given, **filled})
    if settings.head_dtype == settings.dtype == settings.sampler_dtype == "float32":
        raise UserError(
            "head_dtype is 'float32': the whole run computes in float32, so it has no effect; leave it out, or add --dtype bfloat16"
        )
    return settings


def model_defaults(model: str, dataset: str) -> dict[str, Any]:
    """The defaults of the options that RunConfig declares by model."""
    found = {}
    for name, default in declared(RunConfig, ByModel).items():
        tiny = dict(default.by_task).get(tiny_task(dataset), default.tiny)
        found[name] = tiny if model == TINY else default.pretrained
    return found


def run_defaults(config: RunConfig) -> dict[str, Any]:
    """What stands for options that are None, by the model, the algorithm and the other options."""
    defaults = model_defaults(config.model, tiny_task(*(dataset.name for dataset in config.datasets)))
    defaults |= {"gradient_checkpointing": False, "run_dir": next(config.possible_run_dirs())}
    named = config.named_algorithm
    if config.model == TINY and named.kl_weight > 0:
        defaults["kl_weight"] = TINY_KL_WEIGHT
    if named.drop_mastered is not None:
        defaults["drop_mastered"] = named.drop_mastered
    if named.samples_from == "dataset":
        defaults["group_size"] = 1
    if config.lora_rank > 0:
        defaults["lora_alpha"] = 2.0 * config.lora_rank
        defaults["learning_rate"] *= LORA_RATE
    if config.reward_model_every is not None:
        defaults["reward_model_learning_rate"] = TINY_REWARD_MODEL_RATE if config.model == TINY else REWARD_MODEL_RATE
    critic = config.chosen_algorithm().critic
    if critic != "none":
        of_separate = TINY_CRITIC_RATE if config.model == TINY else CRITIC_RATE
        relative = VALUE_HEAD_RATE if critic == "shared" else of_separate
        defaults["value_learning_rate"] = relative * (config.learning_rate or defaults["learning_rate"])
    return defaults


def automatic_values(config: RunConfig, device_type: str, shards: bool) -> dict[str, Any]:
    """What "auto" stands for. Sharded weights are all of one type, float32."""
    dtype = resolved_dtype(config.dtype, config.model, config.device)
    rounds = dtype == "bfloat16" and device_type == "cuda" and not shards
    frozen = "bfloat16" if rounds else "float32"
    values: dict[str, Any] = {
        "dtype": dtype,
        "lora_base": frozen if config.lora_rank else "float32",
        "sampler": "vllm" if device_type == "cuda" and has_vllm() else "torch",
        "sampler_dtype": dtype,
        "sampler_rows": MAX_ROWS,
        "token_budget": CPU_TOKEN_BUDGET if device_type == "cpu" else TOKEN_BUDGET,
    }
    return values if config.lora_rank else {**values, "reference_dtype": frozen}


@cache
def has_vllm() -> bool:
    return find_spec("vllm") is not None
