"""Builds what is trained, from a run's settings: policy, critic and optimizer, and the frozen models beside them."""

from __future__ import annotations

import copy
from importlib.util import find_spec
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from rewards.errors import UserError, first_line
from rl.policy.critic import Critic
from rl.policy.families import CAUSAL, PolicyFamily
from rl.policy.load import context_length, load_pretrained, require_folder
from rl.policy.lora import LoraPolicy, add_adapters, lora_critic
from rl.policy.policy import Policy
from rl.policy.reward_model import RewardModel
from rl.policy.served_teacher import ServedTeacher
from rl.processes.runtime import Runtime
from rl.processes.sharding import Optimizer
from rl.settings.resolve import Adapters, RunSettings
from rl.update.learner import Learner
from rl.update.reward_training import RewardTrainer
from rl.update.streamed_optimizer import StreamedOptimizer
from rl.view.progress import Progress


def build_learner(
    settings: RunSettings,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    runtime: Runtime,
    *,
    family: PolicyFamily = CAUSAL,
    stored_dtype: torch.dtype = torch.float32,
    longest: int = 0,
    teacher: Policy | ServedTeacher | None = None,
    reward_model: RewardModel | None = None,
) -> Learner:
    """Policy, reference, critic and optimizer, with the options of their update.

    stored_dtype: the dtype in which the base was stored, and checkpoints are. longest: tokens of the longest prompt with a full
    completion. teacher: see build_teacher. reward_model: is trained, if it is to be.
    """
    algorithm = settings.chosen_algorithm()
    scoring = scoring_of(settings, runtime)
    policy = build_policy(model, settings.adapters, {**scoring, "family": family, "stored_dtype": stored_dtype})
    critic = None
    if algorithm.critic == "shared":
        policy = policy.with_value_head(settings.value_trunk_scale)
    elif algorithm.critic == "separate":
        critic = build_critic(settings, policy, tokenizer, scoring, longest)
    reference = None
    if algorithm.needs_reference:
        reference = policy.frozen_copy(
            rounded=settings.reference_dtype == "bfloat16", offloaded=settings.offload in ("reference", "all")
        )
    return Learner(
        policy=policy,
        reference=reference,
        teacher=teacher,
        reward_trainer=reward_trainer(settings, reward_model, runtime),
        initial_policy=policy.frozen_copy() if algorithm.samples_from == "start" else None,
        critic=critic,
        optimizer=build_optimizer(settings, policy, critic),
        runtime=runtime,
        algorithm=algorithm,
        temperature=settings.temperature,
        token_budget=settings.token_budget,
        max_grad_norm=settings.max_grad_norm,
        num_epochs=settings.num_epochs,
        num_minibatches=settings.num_minibatches,
        critic_updates=settings.critic_updates,
        max_skipped=settings.max_skipped,
    )


def scoring_of(settings: RunSettings, runtime: Runtime) -> dict[str, Any]:
    """How a Policy of the run runs its model."""
    return {
        "gradient_checkpointing": settings.gradient_checkpointing,
        "autocast": runtime.autocast,
        "attention": settings.attention,
        "fused": settings.fused,
    }


def build_policy(model: PreTrainedModel, adapters: Adapters | None, scoring: dict[str, Any]) -> Policy:
    """The trained policy: all weights of the model, or new adapters on it. scoring: how a Policy runs its model."""
    if adapters is None:
        return Policy.of(model, **scoring)
    return LoraPolicy.of(add_adapters(model, **vars(adapters)), **scoring)


def load_beside(
    option: str,
    settings: RunSettings,
    device: torch.device,
    tokenizer: PreTrainedTokenizerBase,
    longest: int,
    **how: Any,
) -> PreTrainedModel:
    """The model that the option names, loaded to read what the policy writes. how: see load_pretrained.

    Raises UserError unless it has the policy's tokens and a context of `longest` tokens.
    """
    what = f"{option} is {getattr(settings, option)!r}"
    model, its_tokenizer = load_pretrained(getattr(settings, option), device, **how)
    if its_tokenizer.get_vocab() != tokenizer.get_vocab():
        raise UserError(
            f"{what}: its tokenizer has other tokens than the policy's, so it would read another text; use a model of "
            f"{settings.model}'s family, or leave it out"
        )
    context = context_length(model)
    if context is not None and context < longest:
        raise UserError(
            f"{what}: its context is {context}, and the longest prompt with max_tokens {settings.max_tokens} has {longest} tokens; lower "
            f"max_tokens, leave out long prompts with --max-prompt-tokens {max(1, context - settings.max_tokens)}, or use another model"
        )
    return model


def build_critic(
    settings: RunSettings, policy: Policy, tokenizer: PreTrainedTokenizerBase, scoring: dict[str, Any], longest: int
) -> Critic:
    """A critic with a trunk of its own. longest: see load_beside."""
    if isinstance(policy, LoraPolicy):
        if settings.critic_model is not None:
            raise UserError(
                f"critic_model is {settings.critic_model!r}: with lora_rank the critic is a second set of adapters on the policy's "
                "own base; leave it out, or set lora_rank 0"
            )
        return lora_critic(policy, seed=settings.seed)
    if settings.critic_model is None:
        model = copy.deepcopy(policy.model)
    else:
        model = load_beside("critic_model", settings, policy.device, tokenizer, longest, needs_head=False)
    return Critic.of(Policy.of(model, **scoring))


def build_teacher(
    settings: RunSettings,
    tokenizer: PreTrainedTokenizerBase,
    runtime: Runtime,
    progress: Progress,
    longest: int,
) -> Policy | ServedTeacher | None:
    """The frozen model that the policy learns from; None without one. longest: see load_beside."""
    if settings.teacher is None:
        return None
    if settings.loaded_teacher is None:
        patience = settings.vllm_patience
        return ServedTeacher.at(settings.teacher, tokenizer, longest=longest, timeout=patience, report=progress.message)
    how = {
        "rounded": settings.rounds_teacher(runtime.device.type),
        "float32_head": settings.head_dtype == "float32",
    }
    model = load_beside("teacher", settings, runtime.device, tokenizer, longest, **how)
    scoring = {**scoring_of(settings, runtime), "gradient_checkpointing": False}
    teacher = Policy.of(model.requires_grad_(False), **scoring)
    return teacher.offloaded() if settings.offload in ("reference", "all") else teacher


def build_reward_model(settings: RunSettings, runtime: Runtime) -> RewardModel | None:
    """The model that scores the policy's answers, or their steps where the algorithm rewards steps; None without one."""
    name, algorithm = settings.reward_model, settings.chosen_algorithm()
    if name is None:
        return None
    is_trained = settings.reward_model_every is not None
    model = RewardModel.load(
        name,
        runtime.device,
        weight=settings.reward_model_weight,
        token_budget=settings.token_budget,
        rounded=settings.rounds_teacher(runtime.device.type) and not is_trained,
        autocast=runtime.autocast,
    )
    runtime.require_equal(model.model, name)
    if model.scores_steps and not algorithm.scores_steps:
        raise UserError(f"reward_model is {name!r}: it scores steps, and {algorithm.name} has none; use grpo-process")
    if model.scores_steps and is_trained:
        raise UserError(
            f"reward_model_every is {settings.reward_model_every}: {name!r} scores steps, and the rules' labels are of answers; leave it out, "
            "or use a model for sequence classification"
        )
    if is_trained:
        model.model.requires_grad_(True)
    elif settings.offload in ("reference", "all"):
        return model.offloaded()
    return model


def reward_trainer(settings: RunSettings, model: RewardModel | None, runtime: Runtime) -> RewardTrainer | None:
    if model is None or settings.reward_model_every is None:
        return None
    assert settings.reward_model_learning_rate is not None
    return RewardTrainer.of(
        model,
        runtime,
        learning_rate=settings.reward_model_learning_rate,
        every=settings.reward_model_every,
        replay=settings.reward_model_replay,
        seed=settings.seed,
    )


# AdamW's eps for a value head. It starts at the mean reward, where its bias may have no gradient but the rounding of a sum, 1e-8: AdamW's
# own 1e-8 would make half a step of that, in another direction with another number of processes.
VALUE_HEAD_EPS = 1e-6


def build_optimizer(settings: RunSettings, policy: Policy, critic: Critic | None) -> Optimizer:
    """AdamW over the policy's trained weights and the critic's; each group has its learning rate relative to the policy's."""
    rate = settings.learning_rate
    groups: list[dict[str, Any]] = [{"params": policy.trainable_parameters()}]
    of_critic = critic or policy.value_head
    if of_critic is not None:
        assert settings.value_learning_rate is not None
        groups.append({"params": of_critic.parameters(), "relative_rate": settings.value_learning_rate / rate})
        if critic is None:
            groups[-1]["eps"] = VALUE_HEAD_EPS
    options: dict[str, Any] = {
        "lr": rate,
        "betas": (0.9, settings.adam_beta2),
        "weight_decay": settings.weight_decay,
    }
    if settings.optimizer == "adamw-8bit":
        optimizer = adamw_8bit(groups, options)
    else:
        optimizer = torch.optim.AdamW(groups, fused=True, **options)
    offloads = settings.offload in ("optimizer", "all")
    if settings.gradient_dtype == "float32" and not offloads:
        return optimizer
    return StreamedOptimizer(optimizer, gradient_dtype=getattr(torch, settings.gradient_dtype), offloads=offloads)


def adamw_8bit(groups: list[dict[str, Any]], options: dict[str, Any]) -> torch.optim.Optimizer:
    if find_spec("bitsandbytes") is None:
        raise UserError(
            "optimizer is 'adamw-8bit': it needs bitsandbytes, which is not installed; pip install 'plumbline-rl[8bit]', or use adamw"
        )
    from bitsandbytes.optim.adamw import AdamW8bit  # importing it takes seconds, and it is optional

    return AdamW8bit(groups, **options)


def skeleton(option: str, model: str | None) -> PreTrainedModel | None:
    """The model that the option names, on torch's device "meta": without weights. Raises UserError if there is none."""
    if model is None:
        return None
    require_folder(model, option)
    try:
        config = AutoConfig.from_pretrained(model)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{option} is {model!r}: its config.json cannot be read ({first_line(error)}); give a folder in Hugging Face format or a hub name"
        ) from None
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)
