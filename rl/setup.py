"""A run is put together here, and whatever can be wrong with it is found here, before any training."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rewards.errors import UserError
from rewards.sandbox.isolation import FLOOR
from rewards.score import Outcome, Score
from rewards.verifiers import Verifiers
from rl.ahead import Ahead
from rl.checkpoint import checkpoints, load_checkpoint, load_waiting, remove_old, set_aside_damaged, writing
from rl.config import TINY, TINY_DEFAULTS, RunConfig, tiny_task
from rl.cost import FLOAT32, activation_bytes
from rl.critic import Critic
from rl.deliver import EXACT, Delivery
from rl.lora import LoraCritic, LoraPolicy, add_adapters
from rl.metrics import read_metrics
from rl.policy import Policy, load_pretrained
from rl.progress import Progress
from rl.records import RunRecords, write_config
from rl.runtime import Runtime
from rl.step import Learner
from rl.warm_start import WarmStart, warm_started
from rl.watch import Watch
from rollout.collect import Collector
from rollout.demonstrations import demonstration
from rollout.problems import ProblemStream, load_problems, split_held_out, without_overlap
from rollout.prompts import PromptRenderer
from rollout.records import WORKED, Problem
from rollout.sampler import Sampler, SamplingParams
from rollout.torch_sampler import TorchSampler, stop_token_ids
from rollout.vllm_server import VLLMServerSampler

SAME_ON_RESUME = ("model", "dataset", "algorithm", "seed", "group_size", "problems_per_step", "learning_rate")
SAME_ON_RESUME += ("value", "lora_rank", "lora_alpha", "lora_targets", "lora_base", "one_step_ahead")


@dataclass(kw_only=True)
class Run:
    """Everything a run is made of, ready for its next step. `step`: the last one that is done."""

    config: RunConfig
    run_dir: Path
    learner: Learner
    collector: Collector
    verifiers: Verifiers
    stream: ProblemStream
    held_out: list[Problem]
    delivery: Delivery
    ahead: Ahead | None
    tokenizer: PreTrainedTokenizerBase
    records: RunRecords | None  # of the main process
    watch: Watch
    step: int

    def close(self) -> None:
        if self.ahead is not None:
            self.ahead.close()
        self.collector.sampler.close()


def opened(config: RunConfig) -> RunConfig:
    """The same, with the run's folder there and writable; a new one unless the run is resumed or one is named."""
    assert config.run_dir is not None
    run_dir = config.run_dir
    is_taken = (run_dir / "config.json").exists()
    if config.resume and not is_taken:
        raise UserError(f"run_dir is {str(run_dir)!r}: it holds no run to resume; run it without --resume")
    if is_taken and not config.resume:
        raise UserError(f"run_dir is {str(run_dir)!r}: it holds a run already; add --resume, or name another folder")
    try:
        (run_dir / "checkpoints").mkdir(parents=True, exist_ok=True)
        (run_dir / "checkpoints" / ".writable").touch()
        (run_dir / "checkpoints" / ".writable").unlink()
    except OSError as error:
        raise UserError(
            f"run_dir is {str(run_dir)!r}: it cannot be written ({error.strerror}); name another folder"
        ) from None
    return config


def load_data(config: RunConfig) -> tuple[list[Problem], list[Problem]]:
    """(training, held out), without overlap."""
    load = partial(load_problems, prompt_column=config.prompt_column, answer_column=config.answer_column)
    problems = load(config.dataset)
    size = config.eval_size or 1
    if config.eval_dataset is None:
        return split_held_out(problems, size)
    held_out = load(config.eval_dataset, split="test")[:size]
    training = without_overlap(problems, held_out)
    if not training:
        raise UserError(
            f"dataset is {config.dataset!r}: every problem of it is in eval_dataset {config.eval_dataset!r} too"
        )
    return training, held_out


def gradable(problems: Sequence[Problem], verifiers: Verifiers, progress: Progress) -> list[Problem]:
    """The problems whose reference can be judged against; the others are told and dropped."""
    scores: dict[str, Score] = {}
    for name in sorted({p.verifier for p in problems}):
        asking = [p for p in problems if p.verifier == name]
        checked = verifiers[name].check_references([p.reference for p in asking])
        scores |= {p.id: s for p, s in zip(asking, checked, strict=True)}
    bad = [(p, scores[p.id]) for p in problems if scores[p.id].outcome is not Outcome.CORRECT]
    if bad:
        shown = "; ".join(f"problem {p.id!r}, reference {str(p.reference)[:60]!r}: {s.detail}" for p, s in bad[:3])
        if len(bad) == len(problems):
            raise UserError(
                f"dataset: none of its {len(problems)} reference answers can be judged against ({shown}); mend answer_column"
            )
        progress.message(
            f"{len(bad)} of {len(problems)} problems are left out, their reference cannot be judged against: {shown}"
        )
    return [p for p in problems if scores[p.id].outcome is Outcome.CORRECT]


def demonstrable(
    problems: Sequence[Problem], verifiers: Verifiers, renderer: PromptRenderer, max_tokens: int, progress: Progress
) -> list[Problem]:
    """The problems with a worked solution that is right and no longer than a completion may be; the others are told and dropped."""
    worked = [p for p in problems if p.metadata.get(WORKED)]
    scores: dict[str, Score] = {}
    for name in sorted({p.verifier for p in worked}):
        asking = [p for p in worked if p.verifier == name]
        judged = verifiers[name].verify_batch([str(p.metadata[WORKED]) for p in asking], [p.reference for p in asking])
        scores |= {p.id: s for p, s in zip(asking, judged, strict=True)}
    right = [p for p in worked if scores[p.id].outcome is Outcome.CORRECT]
    kept = [p for p in right if len(demonstration(p, renderer).rollouts[0].completion.token_ids) <= max_tokens]
    why = f"{len(problems) - len(worked)} have no worked solution, of {len(worked) - len(right)} it is not judged right, of "
    why += f"{len(right) - len(kept)} it is longer than max_tokens {max_tokens}"
    wrong = next((f"; problem {i!r}: {s.detail}" for i, s in scores.items() if s.outcome is not Outcome.CORRECT), "")
    if not kept:
        raise UserError(
            f"dataset: sft has nothing to learn from its {len(problems)} problems: {why}{wrong}. Give worked solutions that state "
            "their final answer, in the answer column or in one named worked"
        )
    if len(kept) < len(problems):
        progress.message(f"{len(problems) - len(kept)} of {len(problems)} problems are left out: {why}{wrong}")
    return kept


def require_room(config: RunConfig, renderer: PromptRenderer, problems: Sequence[Problem], context: int | None) -> int:
    """Every prompt with a full completion fits the model's context and one forward. -> the tokens of the longest."""
    longest, length = max(((p, len(renderer.render(p))) for p in problems), key=lambda pair: pair[1])
    total = length + (config.max_tokens or 0)
    what = f"problem {longest.id!r} has a prompt of {length} tokens and max_tokens is {config.max_tokens}, together {total}"
    if context is not None and total > context:
        raise UserError(f"{what}: the model's context is {context}; lower max_tokens or leave out long prompts")
    if total - 1 > config.token_budget:
        raise UserError(
            f"token_budget is {config.token_budget}: {what}, more than fits one forward; raise token_budget"
        )
    return total


def set_up(config: RunConfig, runtime: Runtime, verifiers: Verifiers, progress: Progress) -> Run:
    assert config.run_dir is not None
    training, held_out = (gradable(part, verifiers, progress) for part in load_data(config))
    if verifiers.isolation:
        unsafe = "UNSAFE, as allow_unsafe_code permits: " if verifiers.isolation.rank < FLOOR else ""
        progress.message(f"{unsafe}programs are run at isolation {verifiers.isolation.describe()}")
    algorithm = config.chosen_algorithm()
    if runtime.shards:
        require_shardable(config, runtime.zero_stage)
    max_tokens = config.max_tokens or 1
    source = config.model
    if config.model == TINY:
        source = runtime.from_main(lambda: str(tiny_base(config.dataset, verifiers, runtime.alone(), progress)))
    nf4 = getattr(torch, config.dtype) if config.lora_base == "nf4" else None
    model, tokenizer = load_pretrained(source, runtime.device, nf4=nf4)
    runtime.require_equal(model, config.model)
    renderer = PromptRenderer(tokenizer, style=config.prompt_style, system_prompt=config.system_prompt)
    if algorithm.samples_from == "dataset":
        training = demonstrable(training, verifiers, renderer, max_tokens, progress)
    learner = build_learner(config, model, tokenizer, runtime, progress)
    longest = require_room(config, renderer, [*training, *held_out], learner.policy.context_length)
    sampler = build_sampler(config, source, model, tokenizer, learner, runtime, progress, longest)
    stream = ProblemStream(training, config.seed)
    step = resume(config, learner, stream, progress) if config.resume else 0
    if runtime.shards:
        learner.shard(lambda policy: build_optimizer(config, policy, None))
    collector = Collector(
        sampler=sampler,
        verifiers=verifiers,
        renderer=renderer,
        params=SamplingParams(max_tokens=max_tokens, temperature=config.temperature),
        group_size=config.group_size or 2,
        run_seed=config.seed,
        scores_steps=algorithm.scores_steps,
        processes=runtime,
    )
    exact = config.dtype == config.sampling_dtype == "float32"
    tolerance = EXACT if exact else 0.25  # bf16 keeps 8 bits: logits near 10 round to 0.06
    delivery = Delivery(learner.policy, sampler, tolerance=tolerance)
    delivery.deliver(version=step)
    records = None
    if runtime.is_main:
        with writing(config.run_dir):
            if step == 0:
                write_config(config.run_dir, config)
            records = RunRecords(config.run_dir, keep_through=step or -1)
    runtime.wait()
    return Run(
        config=config,
        run_dir=config.run_dir,
        learner=learner,
        collector=collector,
        verifiers=verifiers,
        stream=stream,
        held_out=held_out,
        delivery=delivery,
        ahead=Ahead(config.num_steps or 1, load_waiting(checkpoints(config.run_dir)[-1]) if step else None)
        if config.one_step_ahead
        else None,
        tokenizer=tokenizer,
        records=records,
        watch=Watch(read_metrics(config.run_dir)),
        step=step,
    )


def require_shardable(config: RunConfig, stage: int = 0) -> None:
    """stage: DeepSpeed's; 0 for FSDP2."""
    algorithm = config.chosen_algorithm()
    shared = algorithm.critic == "shared" and not stage
    for name, value, is_in_the_way in (
        ("value", config.value or algorithm.critic, algorithm.value_rule is not None and not shared),
        ("lora_base", config.lora_base, config.lora_base != "float32"),
        ("lora_rank", config.lora_rank, config.lora_rank > 0 and stage == 3),
        ("algorithm", config.algorithm, algorithm.refresh_reference_every > 0 and stage == 3),
    ):
        if is_in_the_way:
            how = f"by DeepSpeed at stage {stage}; use --use_fsdp --fsdp_version 2" if stage else "by FSDP2"
            raise UserError(
                f"{name} is {value!r}: that is not there for weights that are spread over processes {how}, or --multi_gpu with the "
                "whole model in each process"
            )


def build_sampler(
    config: RunConfig,
    source: str | Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    learner: Learner,
    runtime: Runtime,
    progress: Progress,
    longest: int,
) -> Sampler:
    """longest: tokens of a prompt and a full completion."""
    several = f"each of {runtime.count} processes would need an engine of its own on its own GPU"
    if config.sampler == "vllm" and runtime.count > 1:
        raise UserError(f"sampler is 'vllm': {several}; use --sampler vllm-server, or torch")
    if config.one_step_ahead and runtime.count > 1:
        raise UserError(f"one_step_ahead is True: it needs one process, and there are {runtime.count}; leave it out")
    if config.sampler == "torch" or (
        config.sampler == "auto" and not (runtime.device.type == "cuda" and find_spec("vllm") and runtime.count == 1)
    ):
        return TorchSampler(
            # A copy where other weights than the policy's as it is are sampled with.
            copy.deepcopy(model) if learner.start or config.one_step_ahead or runtime.shards else model,
            tokenizer,
            decode_dtype=getattr(torch, config.sampling_dtype),
            autocast=runtime.autocast,
        )
    stop_ids = stop_token_ids(model, tokenizer)
    if config.sampler == "vllm-server":
        assert config.run_dir is not None
        if config.vllm_transfer == "nccl" and runtime.device.type != "cuda":
            raise UserError("vllm_transfer is 'nccl': it goes from GPU to GPU, and this process has none; use file")
        return VLLMServerSampler(
            config.vllm_urls,
            tokenizer,
            stop_ids,
            max_length=longest,
            transfer=config.run_dir / "transfer" if config.vllm_transfer == "file" else None,
            patience=config.vllm_patience,
            report=progress.message,
            processes=runtime,
        )
    from rollout.vllm_sampler import VLLMOptions, VLLMSampler  # takes ten seconds, and is not everywhere

    options = VLLMOptions(
        dtype=config.sampling_dtype,
        max_length=longest,
        key_values=learner.cost.key_value,
        memory=config.vllm_memory,
        max_rows=config.vllm_max_rows,
        tensor_parallel=config.vllm_tensor_parallel,
    )
    return VLLMSampler(source, tokenizer, stop_ids, options)


def build_learner(
    config: RunConfig,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    runtime: Runtime,
    progress: Progress,
) -> Learner:
    algorithm = config.chosen_algorithm()
    policy = build_policy(config, model, runtime, progress)
    critic = build_critic(config, policy, tokenizer, runtime, progress)
    return Learner(
        policy=policy,
        reference=policy.frozen_copy() if algorithm.kl_weight > 0 else None,
        start=policy.frozen_copy() if algorithm.samples_from == "start" else None,
        critic=critic,
        optimizer=build_optimizer(config, policy, critic),
        runtime=runtime,
        algorithm=algorithm,
        temperature=config.temperature,
        token_budget=config.token_budget,
        max_grad_norm=config.max_grad_norm,
        num_epochs=config.num_epochs,
        num_minibatches=config.num_minibatches,
        max_skipped=config.max_skipped,
    )


def build_policy(config: RunConfig, model: PreTrainedModel, runtime: Runtime, progress: Progress) -> Policy:
    """The model with all its weights to be trained, or with adapters that are."""
    options = {
        "gradient_checkpointing": must_checkpoint(config, model, runtime, progress),
        "autocast": runtime.autocast,
        "attention": config.attention,
    }
    if config.lora_rank == 0:
        return Policy(model, **options)
    rank, alpha = config.lora_rank, config.lora_alpha or 1.0
    return LoraPolicy(
        add_adapters(model, rank=rank, alpha=alpha, targets=config.lora_targets, seed=config.seed), **options
    )


def build_critic(
    config: RunConfig, policy: Policy, tokenizer: PreTrainedTokenizerBase, runtime: Runtime, progress: Progress
) -> Critic | None:
    """A critic of its own; one that shares the policy's trunk is put there."""
    rule = config.chosen_algorithm().value_rule
    if rule is None:
        return None
    if rule.source == "shared":
        policy.share_trunk(config.value_trunk_scale)
        return None
    if isinstance(policy, LoraPolicy):
        if config.critic_model is not None:
            raise UserError(
                f"critic_model is {config.critic_model!r}: with lora_rank the critic is a second set of adapters on the policy's "
                "own base; leave it out, or set lora_rank 0"
            )
        return LoraCritic(policy, seed=config.seed)
    if config.critic_model is None:
        model = copy.deepcopy(policy.model)
    else:
        model, words = load_pretrained(config.critic_model, runtime.device)
        if words.get_vocab() != tokenizer.get_vocab():
            raise UserError(
                f"critic_model is {config.critic_model!r}: its tokenizer has other tokens than the policy's, so it would read "
                f"another text; use a critic of {config.model}'s family, or none for the policy's own weights"
            )
    return Critic(
        model,
        gradient_checkpointing=must_checkpoint(config, model, runtime, progress),
        autocast=runtime.autocast,
        attention=config.attention,
    )


def build_optimizer(config: RunConfig, policy: Policy, critic: Critic | None) -> torch.optim.AdamW:
    rate = config.learning_rate or 1.0
    groups: list[dict[str, Any]] = [{"params": policy.trainable_parameters()}]
    if critic is not None:
        groups.append({"params": critic.parameters(), "relative_rate": (config.value_learning_rate or rate) / rate})
    elif policy.value_head is not None:
        relative = (config.value_learning_rate or 10 * rate) / rate
        groups.append({"params": policy.value_head.parameters(), "relative_rate": relative})
    return torch.optim.AdamW(
        groups, lr=rate, betas=(0.9, config.adam_beta2), weight_decay=config.weight_decay, fused=True
    )


def must_checkpoint(config: RunConfig, model: PreTrainedModel, runtime: Runtime, progress: Progress) -> bool:
    """As asked for; else where a forward would keep more than nine tenths of the memory that is left beside the optimiser."""
    if config.gradient_checkpointing is not None:
        return config.gradient_checkpointing
    kept = activation_bytes(model, config.token_budget, 2 if config.dtype == "bfloat16" else FLOAT32)
    trained = sum(p.numel() for p in model.parameters()) if config.lora_rank == 0 else 0
    free = runtime.free_memory() - 3 * FLOAT32 * trained  # the gradient and two moments
    if kept <= 0.9 * free:
        return False
    gib = 1 << 30
    progress.message(
        f"gradient checkpointing is on: a forward of {config.token_budget} tokens would keep about {kept / gib:.1f} GiB, "
        f"{max(0, free) / gib:.1f} GiB are free; a lower token_budget would do without"
    )
    return True


def tiny_base(dataset: str, verifiers: Verifiers, runtime: Runtime, progress: Progress) -> Path:
    """The model warm-started on the built-in task that goes with the run's data, whatever the run's own options are."""
    task = tiny_task(dataset)
    recipe = WarmStart(dataset=task, **{k: TINY_DEFAULTS[task][k] for k in ("max_tokens", "eval_size")})
    return warm_started(recipe, verifiers, runtime, progress)


def resume(config: RunConfig, learner: Learner, stream: ProblemStream, progress: Progress) -> int:
    """Back to the last checkpoint of the run folder that is as it was saved; to the beginning where there is none. -> its step."""
    assert config.run_dir is not None
    written = json.loads((config.run_dir / "config.json").read_text(encoding="utf-8"))
    now, default = config.as_json(), RunConfig().as_json()  # an option younger than the run had its default
    for name in SAME_ON_RESUME:
        was = written.get(name, default[name])
        if was != now[name]:
            raise UserError(
                f"{name} is {now[name]!r}: the run in {str(config.run_dir)!r} has {was!r}; resume with that"
            )
    run_dir = config.run_dir
    for wrong in learner.runtime.from_main(lambda: list(set_aside_damaged(run_dir))):
        progress.message(wrong)
    found = checkpoints(run_dir)
    if not found:
        progress.message("there is no checkpoint to resume from: the run begins again")
        return 0
    if learner.runtime.is_main:  # a run that was killed between saving and removing has one too many
        remove_old(run_dir, config.save_total_limit)
    return load_checkpoint(found[-1], learner, stream)
