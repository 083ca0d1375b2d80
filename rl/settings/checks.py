"""Validation of RunConfig: options that contradict each other, have no effect, or do not suit the algorithm.

It runs before anything is loaded. The bounds of each option stand beside it in rl/settings/config.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields
from typing import TYPE_CHECKING

from rewards.errors import UserError
from rl.objective.algorithms import ALGORITHMS, OutcomeSupervision
from rl.objective.losses import likelihood
from rl.objective.values import ValueRule
from rollout.code_fences import PYTHON, require_python_alone
from rollout.dataset_names import HubName
from rollout.problems import is_on_hub

if TYPE_CHECKING:
    from rl.objective.algorithms import Algorithm
    from rl.settings.config import RunConfig

TOOL_OPTIONS = ("tool_format", "max_turns", "tool_deadline", "tool_workers")
LORA_OPTIONS = ("lora_alpha", "lora_targets")
SHARED_TRUNK_OPTIONS = ("value_trunk_scale", "value_weight")
RULE_OPTIONS = tuple(f.name for f in fields(ValueRule) if f.name not in ("source", "kl_in_reward"))
ITERATIVE_OPTIONS = ("reward_model_replay", "reward_model_learning_rate")
THINKING_OPTIONS = ("thinking_waits", "thinking_end", "wait_phrase", "closing_phrase")
CRITIC_OPTIONS = (*RULE_OPTIONS, "value", "value_trunk_scale", "value_learning_rate")
CRITIC_OPTIONS += ("critic_model", "critic_warmup_steps", "critic_updates", "kl_in")


def check(config: RunConfig) -> None:
    """Raises UserError for options that contradict each other or would have no effect."""
    check_critic(config)
    for names, why in without_effect(config):
        require_unset(config, names, why)
    check_rewards(config)
    check_samples(config)
    check_thinking(config)
    check_tools(config)
    check_kl(config)
    check_teacher(config)
    check_reward_model(config)
    check_precision(config)
    if config.top_p != 1:
        raise UserError(
            f"top_p is {config.top_p}: training needs 1, for log-probs of a truncated distribution are renormalised and "
            "the ratio against the full softmax would be biased; lower the temperature instead"
        )


def without_effect(config: RunConfig) -> Iterator[tuple[tuple[str, ...], str]]:
    """-> names of options that have no effect beside the others, and the reason with what to do."""
    named = config.named_algorithm
    yield from without_effect_on_data(config)
    yield from without_effect_on_critic(config)
    if named.surrogate is likelihood:
        yield ("clip_low", "clip_high"), f"{named.name} has no ratio to clip; leave it out"
    if (named.kl_weight if config.kl_weight is None else config.kl_weight) == 0:
        yield ("refresh_reference_every",), "there is no KL, and so no reference; set kl_weight, or leave it out"
    if not named.prefers:
        yield ("dpo_beta",), f"{named.name} has no preferences; leave it out, or use dpo or online-dpo"
    if named.importance_cap is None:
        yield ("importance_cap",), f"{named.name} has no importance weights; leave it out"
    if named.samples_from == "dataset":
        yield ("count_silent",), f"{named.name} has no groups in which completions are compared; leave it out"
    if not named.dynamic_sampling:
        yield ("max_refills",), f"{named.name} does not sample dynamically; leave it out, or use dapo"
    if config.teacher is None:
        yield ("teacher_weight",), "there is no teacher; name one with teacher, or leave it out"
    if config.reward_model is None:
        why = "there is no reward model; name one with reward_model, or leave it out"
        yield ("reward_model_weight", "reward_model_every", *ITERATIVE_OPTIONS), why
    elif config.reward_model_every is None:
        yield ITERATIVE_OPTIONS, "the reward model is not trained; set reward_model_every, or leave it out"
    if not config.tools and not config.environment:
        yield TOOL_OPTIONS, "there are no tools; name them with tools or an environment, or leave it out"
    if PYTHON not in config.tools:
        yield ("python_state",), f"there is no tool {PYTHON}; name it with tools, or leave it out"
    if config.lora_rank == 0:
        yield LORA_OPTIONS, "there are no adapters; set lora_rank, or leave it out"
    if config.thinking_budget is None:
        yield THINKING_OPTIONS, "there is no thinking budget; set thinking_budget, or leave it out"
    elif config.thinking_waits == 0:
        yield ("wait_phrase",), "the model is not made to think on; set thinking_waits, or leave it out"


def require_unset(config: RunConfig, names: Iterable[str], why: str) -> None:
    """Raises UserError for an option with another value than its default: here it would have no effect, for the reason `why`."""
    defaults = {f.name: f.default for f in fields(config)}
    for name in names:
        if getattr(config, name) not in (defaults[name], "none"):
            raise UserError(f"{name} is {getattr(config, name)!r}: {why}")


def without_effect_on_data(config: RunConfig) -> Iterator[tuple[tuple[str, ...], str]]:
    """Configurations and splits exist on the hub only, and each is named once."""
    first, *others = (dataset.name for dataset in config.datasets)
    if others:
        why = f"there are {1 + len(others)} data sets; name each with its own, as in {first}:config/split, and leave it out"
        yield ("dataset_config", "dataset_split"), why
    if config.eval_dataset is None:
        yield ("eval_config",), "there is no eval_dataset; name one, or leave it out"
        if others:
            yield ("eval_split",), f"there are {1 + len(others)} data sets; name an eval_dataset, or leave it out"
    for dataset, of_config, of_split in (
        (first, "dataset_config", "dataset_split"),
        (config.eval_dataset, "eval_config", "eval_split"),
    ):
        if not is_on_hub(dataset or first):
            why = f"{dataset or first!r} is no data set of the hub and has no configurations or splits; leave it out"
            yield (of_config, of_split), why
        elif dataset is not None:
            hub = HubName.read(dataset)
            given = [option for option, value in ((of_config, hub.config), (of_split, hub.split)) if value is not None]
            yield tuple(given), f"{dataset!r} names its own; leave it out"


def check_rewards(config: RunConfig) -> None:
    """Options of several rewards: each can be normalised only where an algorithm normalises one reward for each completion."""
    if config.reward_normalization == "sum":
        return
    what = "reward_normalization is 'each'"
    if len(config.reward) < 2:
        raise UserError(f"{what}: it needs at least two rewards; name them with reward, or leave it out")
    if config.format:
        raise UserError(
            f"{what}: format changes the sum of the rewards; name the rules as rewards too, such as --reward ... boxed=0.1"
        )
    can = {
        name
        for name, algorithm in ALGORITHMS.items()
        if isinstance(algorithm.advantage_rule, OutcomeSupervision) and not algorithm.dynamic_sampling
    }
    algorithm = config.named_algorithm.name
    if algorithm not in can:
        raise UserError(
            f"{what}: {algorithm} does not normalise rewards over a group, or refills groups by their sums; use sum, or one of "
            + ", ".join(sorted(can))
        )


def check_tools(config: RunConfig) -> None:
    """Raises UserError where an algorithm has no rollouts of several turns, and beside a thinking budget, which bounds one turn."""
    option = "tools" if config.tools else "environment"
    given = getattr(config, option)
    if not given:
        return
    if config.thinking_budget is not None:
        raise UserError(
            f"thinking_budget is {config.thinking_budget!r}: it bounds the thinking of one turn, and {option} has several; leave one of "
            "them out"
        )
    named = config.named_algorithm
    if named.scores_steps or named.samples_from == "dataset":
        why = "scores the steps of one turn" if named.scores_steps else "samples nothing"
        raise UserError(f"{option} is {given!r}: {named.name} {why}; leave it out, or choose another algorithm")
    require_python_alone(config.tools, config.environment, config.tool_format)


def check_kl(config: RunConfig) -> None:
    """Raises UserError where the KL to the reference cannot be estimated, as the completions are not the policy's own."""
    named = config.named_algorithm
    if named.samples_from != "live" and (config.kl_weight or 0) > 0:
        raise UserError(
            f"kl_weight is {config.kl_weight}: {named.name} trains on completions that are not the current policy's, of which the KL to "
            "the reference cannot be estimated; leave it out, or use an algorithm that samples from the current policy, such as "
            "online-rft or online-dpo"
        )


def can_be_taught(algorithm: Algorithm) -> bool:
    """Whether a teacher's log-probs can be mixed into its advantages: the samples are the policy's, and there is a ratio."""
    return algorithm.samples_from == "live" and algorithm.surrogate is not likelihood


def check_teacher(config: RunConfig) -> None:
    """Raises UserError where an algorithm cannot have a teacher, or has none to learn from."""
    named = config.named_algorithm
    if config.teacher is None:
        if named.teacher_weight > 0:
            raise UserError(f"teacher is not given: {named.name} learns from a teacher; name one with --teacher")
        return
    if not can_be_taught(named):
        raise UserError(
            f"teacher is {config.teacher!r}: the loss of {named.name} has no place for a teacher; leave it out, or use one of "
            + names_where(can_be_taught)
        )
    if config.loaded_teacher is None and config.temperature != 1:
        raise UserError(
            f"temperature is {config.temperature}: a teacher behind a server reports log-probs at temperature 1, which are of another "
            "distribution; leave it out, or name a teacher that is loaded here"
        )


def check_reward_model(config: RunConfig) -> None:
    """Raises UserError where an algorithm learns from no rewards, and beside options that a reward model makes no sense with."""
    if config.reward_model is None:
        return
    what, named = f"reward_model is {config.reward_model!r}", config.named_algorithm
    if named.value_rule is None and not named.compares_within_groups:
        raise UserError(
            f"{what}: {named.name} does not learn from scores; leave it out, or choose an algorithm that compares rewards"
        )
    for option in ("tools", "environment"):
        if given := getattr(config, option):
            raise UserError(
                f"{option} is {given!r}: a reward model reads a question and one answer, and {option} has several turns; leave one of them out"
            )
    if config.reward_normalization == "each":
        raise UserError(
            f"{what}: reward_normalization 'each' is of the rewards of rules; use sum, and reward_model_weight"
        )
    if config.format and config.reward_model_weight == 1:
        raise UserError(
            f"{what}: it is the whole reward, and format {config.format!r} would have no effect; leave it out, or lower reward_model_weight"
        )
    if any(reward.name == "reward_model" for reward in config.rewards):
        raise UserError(
            f"reward is {config.reward!r}: the score's part reward_model is the reward model's; give the function another name"
        )


def check_precision(config: RunConfig) -> None:
    """Data types of frozen weights. float32 is always accepted for lora_base: earlier versions wrote it into config.json."""
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
                f"{name} is 'bfloat16': the run computes in float32 and cannot multiply by weights in 16 bits; add "
                "--dtype bfloat16, or leave it out"
            )
    if config.lora_rank > 0 and config.offload in ("reference", "all"):
        raise UserError(
            f"offload is {config.offload!r}: with lora_rank there is no reference beside the policy's base; use optimizer or none"
        )


def check_critic(config: RunConfig) -> None:
    """Raises UserError where an algorithm with a critic is to have none, or a critic's advantages two lambdas."""
    named = config.named_algorithm
    if named.value_rule is not None and config.value == "none":
        raise UserError(f"value is 'none': {named.name} needs a critic; use shared or separate, or another algorithm")
    if config.lam_length is not None and config.lam != 1:
        raise UserError(
            f"lam_length is {config.lam_length} and lam {config.lam}: each is the lambda of the advantages; leave one of them out"
        )


def without_effect_on_critic(config: RunConfig) -> Iterator[tuple[tuple[str, ...], str]]:
    """Options of a critic, by the algorithm and the kind of critic."""
    named = config.named_algorithm
    rule = named.value_rule
    if rule is None:
        with_critic = names_where(lambda a: a.value_rule is not None)
        why = f"{named.name} has no critic; leave it out, or choose an algorithm that has one: {with_critic}"
        yield CRITIC_OPTIONS, why
    elif (config.value or rule.source) == "separate":
        yield SHARED_TRUNK_OPTIONS, "the critic has a trunk of its own; leave it out, or use --value shared"
    else:
        yield ("critic_model",), "the critic shares the policy's trunk; use --value separate"
        yield (
            ("critic_updates",),
            "the critic shares the policy's trunk, which an update of the critic alone would change; leave it out, or use --value separate",
        )


def names_where(holds: Callable[[Algorithm], bool]) -> str:
    """The names of the algorithms for which it holds, for messages."""
    return ", ".join(sorted(a.name for a in ALGORITHMS.values() if holds(a)))


def check_samples(config: RunConfig) -> None:
    """Options of the samples against what the algorithm trains on: completions of which policy, how many per problem, how old."""
    named = config.named_algorithm
    algorithm = named.name
    if config.one_step_ahead and named.samples_from != "live":
        raise UserError(
            f"one_step_ahead is True: {algorithm} does not sample from the policy that is trained; leave it out"
        )
    if config.one_step_ahead and config.vllm_transfer == "nccl":
        raise UserError(
            "vllm_transfer is 'nccl': one step ahead the policy changes while completions are sampled, so a server that restarts "
            "could not get the weights that it had; use file"
        )
    if config.one_step_ahead and not config.chosen_algorithm().corrects_for_sampler:
        without = algorithm if named.importance_cap is None else f"{algorithm} with importance_cap 0"
        raise UserError(
            f"one_step_ahead is True: {without} has no importance weights, which correct for older samples; leave it out"
        )
    if named.samples_from == "dataset":
        require_unset(config, ("drop_mastered",), f"{algorithm} samples nothing and has no pass rates; leave it out")
    if config.group_size not in (None, 1) and named.samples_from == "dataset":
        raise UserError(
            f"group_size is {config.group_size}: {algorithm} has one worked solution of each problem; leave group_size out"
        )
    if config.group_size == 1 and named.compares_within_groups:
        alone = names_where(lambda a: not a.compares_within_groups and a.samples_from != "dataset")
        raise UserError(
            f"group_size is 1: it must be at least 2 for {algorithm}, whose advantages are relative to the others of a "
            f"group; {alone} can train with 1"
        )


def check_thinking(config: RunConfig) -> None:
    """Raises UserError for a thinking budget that an algorithm cannot have, that has no effect, or whose phrases end the completion."""
    budget, named = config.thinking, config.named_algorithm
    if budget is None:
        return
    what = f"thinking_budget is {config.thinking_budget!r}"
    if named.samples_from == "dataset":
        raise UserError(f"{what}: {named.name} samples nothing; leave it out")
    if named.scores_steps:
        raise UserError(
            f"{what}: {named.name} scores the steps of completions that the model writes in one turn; leave it out, or use grpo"
        )
    if config.max_tokens is not None and budget.most >= config.max_tokens:
        raise UserError(
            f"{what}: a completion has at most max_tokens {config.max_tokens}, so the budget would never end its thinking; lower it, or "
            "raise max_tokens"
        )
    for text in (budget.ending, budget.wait):
        for stop in config.stop_strings:
            if stop in text:
                raise UserError(
                    f"stop_strings has {stop!r}: a completion would end in {text!r}, which thinking_budget writes; leave out one of the two"
                )
