"""Builds what samples, from a run's settings: the sampling engine, tools and environments."""

from __future__ import annotations

import copy
import json
from collections.abc import Set
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rewards.errors import UserError
from rewards.reward_spec import ENVIRONMENT, parse_rewards
from rl.processes.runtime import Runtime
from rl.settings.config import RunConfig
from rl.settings.options import DType, SamplingOptions
from rl.settings.resolve import RunSettings
from rl.update.learner import Learner
from rl.view.progress import Progress
from rollout.environment import Environments
from rollout.sampler import Sampler
from rollout.tool_rollout import DEFAULT_DEADLINE, ToolRollout
from rollout.turn import stop_token_ids
from rollout.vllm_server import VLLMServerSampler
from rollout.vllm_worker import FLOAT32_HEAD

Options = TypeVar("Options", bound=RunConfig | SamplingOptions)


def with_environments(options: Options) -> tuple[Options, Environments | None]:
    """The environments that the options name, None if they name none; and the options, with what the environments' own get_reward returns
    among the rewards. Raises UserError for environments whose rollouts no reward would grade."""
    given = options.reward or ()
    sources = [reward.source for reward in parse_rewards(given)]
    if not options.environment:
        if ENVIRONMENT in sources:
            raise UserError(
                f"reward is {given!r}: {ENVIRONMENT!r} is what the get_reward of an environment returns, and there is none; name one with "
                "--environment, or leave the reward out"
            )
        return options, None
    environments = Environments(options.environment, deadline=options.tool_deadline or DEFAULT_DEADLINE)
    if environments.have_reward and ENVIRONMENT not in sources:
        options = replace(options, reward=(*given, ENVIRONMENT))
        sources.append(ENVIRONMENT)
    without = [of.spec for of in environments.classes if not of.has_reward]
    if without and ENVIRONMENT in sources and not (environments.have_reward and len(sources) > 1):
        raise UserError(
            f"environment is {without[0]!r}: it has no get_reward, and the reward {ENVIRONMENT!r} needs one; add it, or name another reward "
            "with --reward"
        )
    return options, environments


def tool_rollout(
    options: RunSettings | SamplingOptions, tokenizer: PreTrainedTokenizerBase, environments: Environments | None
) -> ToolRollout | None:
    """The rollouts with the tools that the options name, in these environments; None if there are neither."""
    return ToolRollout.of(
        options.tools or (),
        tokenizer,
        tool_format=options.tool_format,
        max_turns=options.max_turns,
        deadline=options.tool_deadline,
        num_workers=options.tool_workers,
        keeps_state=options.python_state,
        allow_unsafe_code=options.allow_unsafe_code,
        environments=environments,
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
        float32_head=settings.head_dtype == "float32",
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
    require_same_dtype(servers, settings.sampler_dtype, float32_head=settings.head_dtype == "float32")
    return servers


def require_same_dtype(sampler: VLLMServerSampler, ours: DType, *, float32_head: bool) -> None:
    """Raises UserError for a server of another data type than the run expects, or with an output layer of another one: that decides how
    far log-probs may differ."""
    for server in sampler.servers:
        theirs = str(server.dtype).removeprefix("torch.")
        if theirs != ours:
            raise UserError(
                f"sampler_dtype is {ours!r}: {server.url} computes in {theirs}; give --sampler-dtype {theirs}, or serve the model "
                f"with --dtype {ours}"
            )
        if theirs == "float32" or server.float32_head == float32_head:
            continue
        if float32_head:
            raise UserError(
                f"head_dtype is 'float32': the output layer of {server.url} computes in {theirs}; serve the model with --head-dtype float32 "
                f"(vLLM's own server with --hf-overrides '{json.dumps(FLOAT32_HEAD)}'), or leave it out"
            )
        raise UserError(
            f"head_dtype is 'auto': the output layer of {server.url} computes in float32; give --head-dtype float32, or serve the model "
            "without it"
        )
