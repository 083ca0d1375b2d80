"""The parts of a run: its policy, critic, optimiser and engine, as its options ask for them."""

from __future__ import annotations

import copy
from collections.abc import Set
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from rewards.errors import UserError
from rl.capacity.account import GIB, MAX_ROWS, Account, Engine
from rl.capacity.choose import DeviceMemory, with_defaults
from rl.policy.critic import Critic
from rl.policy.families import CAUSAL, PolicyFamily
from rl.policy.load import load_pretrained
from rl.policy.lora import LoraPolicy, add_adapters, lora_critic
from rl.policy.policy import Policy
from rl.processes.runtime import Runtime
from rl.processes.sharding import Optimizer
from rl.settings.config import RunConfig
from rl.update.learner import Learner
from rl.update.streamed_optimizer import StreamedOptimizer
from rl.view.progress import Progress
from rollout.sampler import Sampler
from rollout.turn import stop_token_ids
from rollout.vllm_server import VLLMServerSampler


def build_sampler(
    config: RunConfig,
    source: str | Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    learner: Learner,
    runtime: Runtime,
    progress: Progress,
    longest: int,
    keeps_caches: bool = False,
) -> Sampler:
    """longest: tokens of a prompt and a full completion. keeps_caches: the embedded engine's keys and values may stay during updates."""
    if engine_of(config, runtime) == "torch":
        return learner.policy.family.sampler(
            # A copy where other weights than the policy's as it is are sampled with.
            copy.deepcopy(model) if learner.initial_policy or config.one_step_ahead or runtime.shards else model,
            tokenizer,
            max_rows=MAX_ROWS if config.sampler_rows == "auto" else config.sampler_rows,
            keeps_caches=keeps_caches,
            decode_dtype=getattr(torch, config.sampling_dtype),
            autocast=runtime.autocast,
        )
    if not learner.policy.family.runs_in_vllm:
        raise UserError(
            f"sampler is {config.sampler!r}: vLLM does not sample from a {learner.policy.family.name} policy; use torch"
        )
    stop_ids = stop_token_ids(model, tokenizer)
    if config.sampler == "vllm-server":
        return build_servers(config, tokenizer, stop_ids, runtime, progress, longest)
    if config.vllm_tensor_parallel > 1 and runtime.count > 1:
        raise UserError(
            f"vllm_tensor_parallel is {config.vllm_tensor_parallel}: each of the {runtime.count} processes has an engine on its own "
            "GPU; leave it out, or spread the model over other GPUs with plumbline serve-vllm and --sampler vllm-server"
        )
    from rollout.vllm_sampler import VLLMOptions, VLLMSampler  # takes ten seconds, and is not everywhere

    options = VLLMOptions(
        dtype=config.sampling_dtype,
        max_length=longest,
        key_values=learner.cost.key_value,
        memory=config.vllm_memory,
        max_rows=config.vllm_max_rows,
        tensor_parallel=config.vllm_tensor_parallel,
        processes=runtime.count,
    )
    return VLLMSampler(source, tokenizer, stop_ids, options)


def build_servers(
    config: RunConfig,
    tokenizer: PreTrainedTokenizerBase,
    stop_ids: Set[int],
    runtime: Runtime,
    progress: Progress,
    longest: int,
) -> VLLMServerSampler:
    assert config.run_dir is not None
    if config.vllm_transfer == "nccl" and runtime.device.type != "cuda":
        raise UserError("vllm_transfer is 'nccl': it goes from GPU to GPU, and this process has none; use file")
    servers = VLLMServerSampler(
        config.vllm_urls,
        tokenizer,
        stop_ids,
        max_length=longest,
        transfer=config.run_dir / "transfer" if config.vllm_transfer == "file" else None,
        timeout=config.vllm_patience,
        report=progress.message,
        processes=runtime,
        sharded=runtime.shards,
    )
    require_same_dtype(config, servers)
    return servers


def engine_of(config: RunConfig, runtime: Runtime) -> Engine:
    """Of "auto" vLLM in this process, where there is a GPU and vLLM."""
    if config.sampler != "auto":
        return config.sampler
    return "vllm" if runtime.device.type == "cuda" and find_spec("vllm") else "torch"


def require_same_dtype(config: RunConfig, sampler: VLLMServerSampler) -> None:
    """Servers have a type of their own, which decides how far their log-probs may be from the trainer's."""
    for server in sampler.servers:
        theirs = str(server.dtype).removeprefix("torch.")
        if theirs != config.sampling_dtype:
            raise UserError(
                f"sampler_dtype is {config.sampling_dtype!r}: {server.url} computes in {theirs}; give --sampler-dtype {theirs}, or "
                f"serve the model with --dtype {config.sampling_dtype}"
            )


def build_learner(
    config: RunConfig,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    runtime: Runtime,
    progress: Progress,
    *,
    family: PolicyFamily = CAUSAL,
    stored_dtype: torch.dtype = torch.float32,
) -> Learner:
    """stored_dtype: that of the base, and so of checkpoints."""
    algorithm = config.chosen_algorithm()
    policy = build_policy(config, model, runtime, progress, family=family, stored_dtype=stored_dtype)
    critic = None
    if algorithm.critic == "shared":
        policy = policy.with_value_head(config.value_trunk_scale)
    elif algorithm.critic == "separate":
        critic = build_critic(config, policy, tokenizer, runtime, progress)
    return Learner(
        policy=policy,
        reference=build_reference(config, policy) if algorithm.kl_weight > 0 else None,
        initial_policy=policy.frozen_copy() if algorithm.samples_from == "start" else None,
        critic=critic,
        optimizer=build_optimizer(config, policy, critic),
        runtime=runtime,
        algorithm=algorithm,
        temperature=config.temperature,
        token_budget=config.tokens_at_once,
        max_grad_norm=config.max_grad_norm,
        num_epochs=config.num_epochs,
        num_minibatches=config.num_minibatches,
        max_skipped=config.max_skipped,
    )


def build_reference(config: RunConfig, policy: Policy) -> Policy:
    return policy.frozen_copy(
        rounded=config.reference_dtype == "bfloat16", offloaded=config.offload in ("reference", "all")
    )


def build_policy(
    config: RunConfig, model: PreTrainedModel, runtime: Runtime, progress: Progress, **fields: Any
) -> Policy:
    """The model with all its weights to be trained, or with adapters that are."""
    options = scoring_options(config, model, runtime, progress)
    if config.lora_rank == 0:
        return Policy.of(model, **options, **fields)
    rank, alpha = config.lora_rank, config.lora_alpha or 1.0
    adapted = add_adapters(model, rank=rank, alpha=alpha, targets=config.lora_targets, seed=config.seed)
    return LoraPolicy.of(adapted, **options, **fields)


def scoring_options(config: RunConfig, model: PreTrainedModel, runtime: Runtime, progress: Progress) -> dict[str, Any]:
    """Of a Policy: how it runs the model."""
    return {
        "gradient_checkpointing": must_checkpoint(config, model, runtime, progress),
        "autocast": runtime.autocast,
        "attention": config.attention,
        "fused": config.fused,
    }


def build_critic(
    config: RunConfig, policy: Policy, tokenizer: PreTrainedTokenizerBase, runtime: Runtime, progress: Progress
) -> Critic:
    """A critic with a trunk of its own."""
    if isinstance(policy, LoraPolicy):
        if config.critic_model is not None:
            raise UserError(
                f"critic_model is {config.critic_model!r}: with lora_rank the critic is a second set of adapters on the policy's "
                "own base; leave it out, or set lora_rank 0"
            )
        return lora_critic(policy, seed=config.seed)
    if config.critic_model is None:
        model = copy.deepcopy(policy.model)
    else:
        model, words = load_pretrained(config.critic_model, runtime.device, needs_head=False)
        if words.get_vocab() != tokenizer.get_vocab():
            raise UserError(
                f"critic_model is {config.critic_model!r}: its tokenizer has other tokens than the policy's, so it would read "
                f"another text; use a critic of {config.model}'s family, or none for the policy's own weights"
            )
    return Critic.of(Policy.of(model, **scoring_options(config, model, runtime, progress)))


def build_optimizer(config: RunConfig, policy: Policy, critic: Critic | None) -> Optimizer:
    rate = config.learning_rate or 1.0
    groups: list[dict[str, Any]] = [{"params": policy.trainable_parameters()}]
    if critic is not None:
        groups.append({"params": critic.parameters(), "relative_rate": (config.value_learning_rate or rate) / rate})
    elif policy.value_head is not None:
        relative = (config.value_learning_rate or 10 * rate) / rate
        groups.append({"params": policy.value_head.parameters(), "relative_rate": relative})
    options: dict[str, Any] = {"lr": rate, "betas": (0.9, config.adam_beta2), "weight_decay": config.weight_decay}
    if config.optimizer == "adamw-8bit":
        optimizer = adamw_8bit(groups, options)
    else:
        optimizer = torch.optim.AdamW(groups, fused=True, **options)
    offloads = config.offload in ("optimizer", "all")
    if config.gradient_dtype == "float32" and not offloads:
        return optimizer
    return StreamedOptimizer(optimizer, gradient_dtype=getattr(torch, config.gradient_dtype), offloads=offloads)


def adamw_8bit(groups: list[dict[str, Any]], options: dict[str, Any]) -> torch.optim.Optimizer:
    if find_spec("bitsandbytes") is None:
        raise UserError(
            "optimizer is 'adamw-8bit': it needs bitsandbytes, which is not installed; pip install 'plumbline-rl[8bit]', or use adamw"
        )
    from bitsandbytes.optim.adamw import AdamW8bit  # takes seconds, and is not everywhere

    return AdamW8bit(groups, **options)


def critic_skeleton(config: RunConfig) -> PreTrainedModel | None:
    """A critic that is another model than the policy, without its weights."""
    if config.critic_model is None:
        return None
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(config.critic_model))


def must_checkpoint(config: RunConfig, model: PreTrainedModel, runtime: Runtime, progress: Progress) -> bool:
    """As asked for or chosen; else where an update would not fit without: of a short prompt, as nobody knows it here."""
    if config.gradient_checkpointing is not None:
        return config.gradient_checkpointing
    taken = sum(p.nbytes for p in model.parameters())
    short = replace(config, max_tokens=min(config.max_tokens or config.tokens_at_once, config.tokens_at_once))
    skeleton = critic_skeleton(config)
    account = with_defaults(Account.of(short, model, prompt_length=1, device=model.device.type, critic=skeleton))
    room = DeviceMemory(runtime.free_memory() + taken, 0)
    if account.peak_of_update() <= room.available:
        return False
    progress.message(told_of_checkpointing(account, room))
    return True


def told_of_checkpointing(account: Account, room: DeviceMemory) -> str:
    return (
        f"gradient checkpointing is on: without it an update of {account.run.tokens_at_once} tokens at once would take about "
        f"{account.peak_of_update() / GIB:.1f} GiB, weights included, and {room.available / GIB:.1f} GiB are there; a lower token_budget "
        "would do without"
    )
