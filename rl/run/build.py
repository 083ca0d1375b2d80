"""Builds the parts of a run from its settings: policy, critic, reference, optimizer and sampling engine."""

from __future__ import annotations

import copy
from collections.abc import Set
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from rewards.errors import UserError
from rl.policy.critic import Critic
from rl.policy.families import CAUSAL, PolicyFamily
from rl.policy.load import load_pretrained
from rl.policy.lora import LoraPolicy, add_adapters, lora_critic
from rl.policy.policy import Policy
from rl.processes.runtime import Runtime
from rl.processes.sharding import Optimizer
from rl.settings.options import DType, SamplingOptions
from rl.settings.resolve import Adapters, RunSettings
from rl.update.learner import Learner
from rl.update.streamed_optimizer import StreamedOptimizer
from rl.view.progress import Progress
from rollout.sampler import Sampler
from rollout.tool_rollout import ToolRollout
from rollout.turn import stop_token_ids
from rollout.vllm_server import VLLMServerSampler


def tool_rollout(options: RunSettings | SamplingOptions, tokenizer: PreTrainedTokenizerBase) -> ToolRollout | None:
    """The rollouts with the tools that the options name; None if they name none."""
    return ToolRollout.of(
        options.tools or (),
        tokenizer,
        tool_format=options.tool_format,
        max_turns=options.max_turns,
        deadline=options.tool_deadline,
        num_workers=options.tool_workers,
    )


def build_sampler(
    settings: RunSettings,
    source: str | Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    learner: Learner,
    runtime: Runtime,
    progress: Progress,
    longest: int,
    keeps_caches: bool = False,
) -> Sampler:
    """The engine that samples the run's completions.

    longest: tokens of the longest prompt with a full completion. keeps_caches: the embedded engine may keep its key-value cache in
    memory during updates.
    """
    if settings.sampler == "torch":
        return learner.policy.family.sampler(
            # A copy where it samples from other weights than the policy's current ones.
            copy.deepcopy(model) if learner.initial_policy or settings.one_step_ahead or runtime.shards else model,
            tokenizer,
            max_rows=settings.sampler_rows,
            keeps_caches=keeps_caches,
            decode_dtype=getattr(torch, settings.sampler_dtype),
            autocast=runtime.autocast,
        )
    if not learner.policy.family.runs_in_vllm:
        raise UserError(
            f"sampler is {settings.sampler!r}: vLLM does not sample from a {learner.policy.family.name} policy; use torch"
        )
    stop_ids = stop_token_ids(model, tokenizer)
    if settings.sampler == "vllm-server":
        return build_servers(settings, tokenizer, stop_ids, runtime, progress, longest)
    if settings.vllm_tensor_parallel > 1 and runtime.count > 1:
        raise UserError(
            f"vllm_tensor_parallel is {settings.vllm_tensor_parallel}: each of the {runtime.count} processes has an engine on its own "
            "GPU; leave it out, or spread the model over other GPUs with plumbline serve-vllm and --sampler vllm-server"
        )
    from rollout.vllm_sampler import VLLMOptions, VLLMSampler  # importing it takes ten seconds, and vLLM is optional

    options = VLLMOptions(
        dtype=settings.sampler_dtype,
        max_length=longest,
        key_values=learner.cost.key_value,
        memory=settings.vllm_memory,
        max_rows=settings.vllm_max_rows,
        tensor_parallel=settings.vllm_tensor_parallel,
        processes=runtime.count,
    )
    return VLLMSampler(source, tokenizer, stop_ids, options)


def build_servers(
    settings: RunSettings,
    tokenizer: PreTrainedTokenizerBase,
    stop_ids: Set[int],
    runtime: Runtime,
    progress: Progress,
    longest: int,
) -> VLLMServerSampler:
    """A client of the vLLM servers at vllm_urls."""
    if settings.vllm_transfer == "nccl" and runtime.device.type != "cuda":
        raise UserError("vllm_transfer is 'nccl': it sends from GPU to GPU, and this process has no GPU; use file")
    servers = VLLMServerSampler(
        settings.vllm_urls,
        tokenizer,
        stop_ids,
        max_length=longest,
        transfer=settings.run_dir / "transfer" if settings.vllm_transfer == "file" else None,
        timeout=settings.vllm_patience,
        report=progress.message,
        processes=runtime,
        sharded=runtime.shards,
    )
    require_same_dtype(servers, settings.sampler_dtype)
    return servers


def require_same_dtype(sampler: VLLMServerSampler, ours: DType) -> None:
    """Raises UserError for a server of another data type than the run expects: that decides how far log-probs may differ."""
    for server in sampler.servers:
        theirs = str(server.dtype).removeprefix("torch.")
        if theirs != ours:
            raise UserError(
                f"sampler_dtype is {ours!r}: {server.url} computes in {theirs}; give --sampler-dtype {theirs}, or serve the model "
                f"with --dtype {ours}"
            )


def build_learner(
    settings: RunSettings,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    runtime: Runtime,
    *,
    family: PolicyFamily = CAUSAL,
    stored_dtype: torch.dtype = torch.float32,
) -> Learner:
    """Policy, reference, critic and optimizer, with the options of their update.

    stored_dtype: the dtype in which the base was stored, and checkpoints are.
    """
    algorithm = settings.chosen_algorithm()
    scoring = {
        "gradient_checkpointing": settings.gradient_checkpointing,
        "autocast": runtime.autocast,
        "attention": settings.attention,
        "fused": settings.fused,
    }
    policy = build_policy(model, settings.adapters, {**scoring, "family": family, "stored_dtype": stored_dtype})
    critic = None
    if algorithm.critic == "shared":
        policy = policy.with_value_head(settings.value_trunk_scale)
    elif algorithm.critic == "separate":
        critic = build_critic(settings, policy, tokenizer, scoring)
    reference = None
    if algorithm.kl_weight > 0:
        reference = policy.frozen_copy(
            rounded=settings.reference_dtype == "bfloat16", offloaded=settings.offload in ("reference", "all")
        )
    return Learner(
        policy=policy,
        reference=reference,
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
        max_skipped=settings.max_skipped,
    )


def build_policy(model: PreTrainedModel, adapters: Adapters | None, scoring: dict[str, Any]) -> Policy:
    """The trained policy: all weights of the model, or new adapters on it. scoring: how a Policy runs its model."""
    if adapters is None:
        return Policy.of(model, **scoring)
    return LoraPolicy.of(add_adapters(model, **vars(adapters)), **scoring)


def build_critic(
    settings: RunSettings, policy: Policy, tokenizer: PreTrainedTokenizerBase, scoring: dict[str, Any]
) -> Critic:
    """A critic with a trunk of its own."""
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
        model, critic_tokenizer = load_pretrained(settings.critic_model, policy.device, needs_head=False)
        if critic_tokenizer.get_vocab() != tokenizer.get_vocab():
            raise UserError(
                f"critic_model is {settings.critic_model!r}: its tokenizer has other tokens than the policy's, so it would read "
                f"another text; use a critic of {settings.model}'s family, or none for the policy's own weights"
            )
    return Critic.of(Policy.of(model, **scoring))


def build_optimizer(settings: RunSettings, policy: Policy, critic: Critic | None) -> Optimizer:
    """AdamW over the policy's trained weights and the critic's; each group has its learning rate relative to the policy's."""
    rate = settings.learning_rate
    groups: list[dict[str, Any]] = [{"params": policy.trainable_parameters()}]
    if critic is not None:
        groups.append({"params": critic.parameters(), "relative_rate": (settings.value_learning_rate or rate) / rate})
    elif policy.value_head is not None:
        relative = (settings.value_learning_rate or 10 * rate) / rate
        groups.append({"params": policy.value_head.parameters(), "relative_rate": relative})
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


def critic_skeleton(critic_model: str | None) -> PreTrainedModel | None:
    """A critic that is another model than the policy, on torch's device "meta": without weights."""
    if critic_model is None:
        return None
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(critic_model))
