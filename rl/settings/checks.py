"""What no run can be: a value out of range, an option that would do nothing, or what an algorithm cannot do with.

All of it is found before anything is loaded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from rewards.answer_format import format_rule
from rewards.errors import UserError
from rl.objective.algorithms import ALGORITHMS
from rl.objective.losses import likelihood
from rl.objective.values import ValueRule
from rollout.problems import is_on_hub

if TYPE_CHECKING:
    from rl.settings.config import RunConfig

LORA_OPTIONS = ("lora_alpha", "lora_targets")
SHARED_TRUNK_OPTIONS = ("value_trunk_scale", "value_weight")
RULE_OPTIONS = tuple(f.name for f in fields(ValueRule) if f.name not in ("source", "kl_in_reward"))
CRITIC_OPTIONS = (*RULE_OPTIONS, "value", "value_trunk_scale", "value_learning_rate")
CRITIC_OPTIONS += ("critic_model", "critic_warmup_steps", "kl_in")


def check(config: RunConfig) -> None:
    """Raises UserError."""
    for name, (holds, possible) in CHECKS.items():
        value = getattr(config, name)
        if value is not None and not holds(value):
            raise UserError(f"{name} is {value!r}: it must be {possible}")
    check_data(config)
    check_critic(config)
    check_samples(config)
    if ALGORITHMS[config.algorithm].surrogate is likelihood:
        require_unset(config, ("clip_low", "clip_high"), f"{config.algorithm} has no ratio to clip; leave it out")
    if config.lora_rank == 0:
        require_unset(config, LORA_OPTIONS, "there are no adapters; set lora_rank, or leave it out")
    check_precision(config)
    if config.top_p != 1:
        raise UserError(
            f"top_p is {config.top_p}: training needs 1, for log-probs of a truncated distribution are renormalised and "
            "the ratio against the full softmax would be biased; lower the temperature instead"
        )


def require_unset(config: RunConfig, names: Iterable[str], why: str) -> None:
    defaults = {f.name: f.default for f in fields(config)}
    for name in names:
        if getattr(config, name) not in (defaults[name], "none"):
            raise UserError(f"{name} is {getattr(config, name)!r}: {why}")


def check_data(config: RunConfig) -> None:
    if config.eval_dataset is None:
        require_unset(config, ("eval_config",), "there is no eval_dataset; name one, or leave it out")
    held_out = config.eval_dataset or config.dataset
    for dataset, names in (
        (config.dataset, ("dataset_config", "dataset_split")),
        (held_out, ("eval_config", "eval_split")),
    ):
        if not is_on_hub(dataset):
            require_unset(
                config,
                names,
                f"{dataset!r} is no data set of the hub and has no configurations or splits; leave it out",
            )


def check_precision(config: RunConfig) -> None:
    """float32 is what there is without the option, and what older runs wrote down."""
    if config.lora_rank == 0 and config.lora_base not in ("auto", "float32"):
        raise UserError(f"lora_base is {config.lora_base!r}: there are no adapters; set lora_rank, or leave it out")
    if config.lora_rank > 0 and config.reference_dtype != "auto":
        raise UserError(
            f"reference_dtype is {config.reference_dtype!r}: with lora_rank the reference is the policy's own base with its "
            "adapters off; leave it out, or use lora_base"
        )
    for name in ("lora_base", "reference_dtype"):
        if getattr(config, name) == "bfloat16" and config.dtype == "float32":
            raise UserError(
                f"{name} is 'bfloat16': the run computes in float32, which weights in 16 bits cannot be multiplied in; add "
                "--dtype bfloat16, or leave it out"
            )
    if config.lora_rank > 0 and config.offload in ("reference", "all"):
        raise UserError(
            f"offload is {config.offload!r}: with lora_rank there is no reference beside the policy's base; use optimizer or none"
        )


def check_critic(config: RunConfig) -> None:
    rule, algorithm = ALGORITHMS[config.algorithm].value_rule, config.algorithm
    if rule is None:
        why = f"{algorithm} has no critic; leave it out, or choose an algorithm that has one: {with_critic()}"
        require_unset(config, CRITIC_OPTIONS, why)
    elif config.value == "none":
        raise UserError(f"value is 'none': {algorithm} needs a critic; use shared or separate, or another algorithm")
    elif (config.value or rule.source) == "separate":
        why = "the critic has a trunk of its own; leave it out, or use --value shared"
        require_unset(config, SHARED_TRUNK_OPTIONS, why)
    else:
        require_unset(config, ("critic_model",), "the critic shares the policy's trunk; use --value separate")


def with_critic() -> str:
    return ", ".join(sorted(a.name for a in ALGORITHMS.values() if a.value_rule is not None))


def check_samples(config: RunConfig) -> None:
    """Whose completions are trained on, how many of a problem, how old."""
    named, algorithm = ALGORITHMS[config.algorithm], config.algorithm
    if config.one_step_ahead and named.samples_from != "live":
        raise UserError(
            f"one_step_ahead is True: {algorithm} does not sample from the policy that is trained; leave it out"
        )
    if config.one_step_ahead and config.vllm_transfer == "nccl":
        raise UserError(
            "vllm_transfer is 'nccl': one step ahead the policy changes while completions are sampled, so a server that comes "
            "back could not be given the weights it had; use file"
        )
    if config.one_step_ahead and named.importance_cap is None:
        raise UserError(
            f"one_step_ahead is True: {algorithm} has no importance weights, which correct for older samples; leave it out"
        )
    if config.group_size not in (None, 1) and named.samples_from == "dataset":
        raise UserError(
            f"group_size is {config.group_size}: {algorithm} has one worked solution of each problem; leave group_size out"
        )
    if config.group_size == 1 and named.compares_within_groups:
        raise UserError(
            f"group_size is 1: it must be at least 2 for {algorithm}, whose advantages are relative to the others of a "
            f"group; {with_critic()} can do with 1"
        )


Check = tuple[Callable[[Any], bool], str]


def _at_least(least: int) -> Check:
    return (lambda v: v >= least), f"at least {least}"


def _one_of(names: Any) -> Check:
    return (lambda v: v in names), "one of " + ", ".join(sorted(names))


def _auto_or_at_least(least: int) -> Check:
    return (lambda v: v == "auto" or v >= least), f"at least {least}, or auto"


_POSITIVE: Check = (lambda v: 0 < v < math.inf), "more than 0"
_NOT_NEGATIVE: Check = (lambda v: 0 <= v < math.inf), "0 or more"
_SHARE: Check = (lambda v: 0 <= v <= 1), "in [0, 1]"
_TRACKERS = ("tensorboard", "wandb", "trackio")

CHECKS: dict[str, Check] = {
    "algorithm": _one_of(ALGORITHMS),
    "group_size": _at_least(1),
    "kl_weight": _NOT_NEGATIVE,
    "clip_low": _NOT_NEGATIVE,
    "clip_high": _NOT_NEGATIVE,
    "entropy_weight": _NOT_NEGATIVE,
    "num_epochs": _at_least(1),
    "num_minibatches": _at_least(1),
    "value_trunk_scale": _SHARE,
    "value_weight": _NOT_NEGATIVE,
    "value_clip": _POSITIVE,
    "value_learning_rate": _POSITIVE,
    "critic_warmup_steps": _at_least(0),
    "gamma": _SHARE,
    "lam": _SHARE,
    "lam_critic": _SHARE,
    "num_steps": _at_least(1),
    "problems_per_step": _at_least(1),
    "max_tokens": _at_least(1),
    "max_prompt_tokens": _at_least(1),
    "stop_strings": ((lambda strings: "" not in strings), "strings that are not empty: an empty one is in every text"),
    "seed": ((lambda v: -(2**63) <= v < 2**63), "a number of 64 bits, from -2^63 to 2^63 - 1"),
    "temperature": _POSITIVE,
    "lora_rank": _at_least(0),
    "lora_alpha": _POSITIVE,
    "lora_targets": ((lambda names: names and all(names)), "names of linear layers, or all-linear"),
    "learning_rate": _POSITIVE,
    "warmup_steps": _at_least(0),
    "weight_decay": _NOT_NEGATIVE,
    "adam_beta2": ((lambda v: 0 <= v < 1), "in [0, 1)"),
    "max_grad_norm": _POSITIVE,
    "max_skipped": _at_least(0),
    "token_budget": _auto_or_at_least(1),
    "sampler_rows": _auto_or_at_least(1),
    "vllm_memory": ((lambda v: 0 < v < 1), "more than 0 and less than 1"),
    "vllm_max_rows": _at_least(1),
    "vllm_tensor_parallel": _at_least(1),
    "vllm_urls": (
        (lambda urls: urls and all(u.startswith("http") for u in urls)),
        "addresses such as http://host:8000",
    ),
    "vllm_patience": _POSITIVE,
    "format": ((lambda names: all(map(format_rule, names))), "names of rules"),
    "format_weight": ((lambda v: 0 < v < 1), "more than 0 and less than 1"),
    "verifier_workers": _at_least(1),
    "verifier_deadline": _POSITIVE,
    "max_unjudged": _SHARE,
    "eval_every": _at_least(1),
    "eval_size": _at_least(1),
    "eval_samples": _at_least(0),
    "save_every": _at_least(1),
    "save_total_limit": _at_least(1),
    "trackers": ((lambda v: set(v) <= set(_TRACKERS)), "among " + ", ".join(_TRACKERS)),
}
