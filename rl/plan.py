"""What a step of a run needs, before the run: memory and floating-point operations, from a model's config alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from rewards.errors import UserError
from rl.config import RunConfig
from rl.cost import (
    FLOAT32,
    ModelCost,
    forward_flops,
    key_value_bytes,
    step_flops,
)
from rl.defaults import TINY
from rl.dry_run import DryRun, dry_run, equal_batch
from rl.memory import Cut, TrainedTrunk, adapter_numbers
from rl.options import CriticSource, PlanOptions
from rl.setup import require_shardable
from rl.tiny import tiny_model, tiny_tokenizer

CONFIGS = Path(__file__).parent / "model_configs"
GIB = 1 << 30
MAX_ROWS = 1024  # that the embedded sampler decodes at once
SAMPLED_TOKEN = 14.0  # bytes of a completion's token, its log-prob and its text, as one process tells them to another


def known_models() -> list[str]:
    return [TINY, *sorted(path.stem for path in CONFIGS.glob("*.json"))]


def load_config(model: str) -> PretrainedConfig:
    """Of a folder, a file, one of known_models(), or a hub name that is in the cache. Nothing is downloaded."""
    if model == TINY:
        return tiny_model(tiny_tokenizer(), seed=0, device=torch.device("cpu")).config
    path, known = Path(model).expanduser(), CONFIGS / f"{model.lower()}.json"
    source = str(known) if model.lower() in known_models() else str(path if path.exists() else model)
    try:
        config = AutoConfig.from_pretrained(source, local_files_only=True)
    except (OSError, ValueError) as error:
        reason = f" ({str(error).strip().splitlines()[0]})" if path.exists() else ""
        raise UserError(
            f"model is {model!r}: it is no known model, no folder or file of a config.json that can be read{reason}, and no hub "
            f"name in the cache; give one of {', '.join(known_models())}, or the path of a config.json"
        ) from None
    text = config.get_text_config()
    needed = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "vocab_size")
    missing = [name for name in needed if not isinstance(getattr(text, name, None), int)]
    if missing:
        raise UserError(
            f"model is {model!r}: its config has no {', '.join(missing)}, and the formulas are for models of Llama's shape; "
            f"give one of {', '.join(known_models())}, or the config.json of a Llama, Qwen or Mistral"
        )
    return text


@dataclass(frozen=True)
class Plan:
    """Bytes on one GPU and operations of one step, all GPUs together."""

    options: PlanOptions
    config: PretrainedConfig

    def __post_init__(self) -> None:
        if self.options.sharding == "full":
            require_shardable(self.run)

    @cached_property
    def run(self) -> RunConfig:
        """The options of the run that is planned; those that cannot be are refused there."""
        o = self.options
        return RunConfig(
            algorithm=o.algorithm,
            value=o.value,
            kl_weight=o.kl_weight,
            lora_rank=o.lora_rank,
            lora_alpha=2.0 * o.lora_rank or None,
            group_size=o.group_size,
            problems_per_step=o.problems_per_step,
            max_tokens=o.completion_length,
            token_budget=o.token_budget,
            dtype=o.dtype,
            gradient_checkpointing=o.gradient_checkpointing,
            attention="varlen" if o.dtype == "bfloat16" else "dense",  # what a GPU has for these
        )

    @cached_property
    def skeleton(self) -> PreTrainedModel:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(self.config)

    @cached_property
    def cost(self) -> ModelCost:
        return ModelCost.of(self.skeleton)

    @cached_property
    def cut(self) -> Cut:
        o = self.options
        return Cut.of(o.own_problems, o.group_size, o.prompt_length, o.completion_length, o.token_budget)

    @cached_property
    def policy(self) -> TrainedTrunk:
        o = self.options
        return TrainedTrunk(
            cost=self.cost,
            config=self.config,
            is_bfloat16=o.dtype == "bfloat16",
            checkpointed=o.gradient_checkpointing,
            dense=self.run.attention == "dense",
            lora_rank=o.lora_rank,
            adapters=adapter_numbers(self.skeleton, o.lora_rank),
            two_passes=self.value == "shared",
        )

    @property
    def value(self) -> CriticSource:
        return self.run.chosen_algorithm().critic

    @property
    def has_reference(self) -> bool:
        return self.run.chosen_algorithm().kl_weight > 0

    @cached_property
    def critic(self) -> TrainedTrunk | None:
        return replace(self.policy, has_head=False) if self.value == "separate" else None

    @property
    def value_head(self) -> int:
        return 0 if self.value == "none" else self.config.hidden_size + 1

    def memory(self) -> dict[str, float]:
        """Bytes on one GPU. Sharding divides what is kept, not what a micro-batch needs.

        critic: 16 bytes a number of its trunk and head; with LoRA a second set of adapters on the policy's base. gathered: with
        sharding, what is outside of the layers and two of them. An embedded sampler has a whole float32 copy then.
        """
        o, row = self.options, self.cut.largest
        trained, shards = self.policy.trained, o.gpus if o.sharding == "full" else 1
        of_critic = self.value_head + (self.critic.trained if self.critic else 0)
        weights = self.cost.all_parameters + (trained if o.lora_rank else 0)
        of_reference = 0 if not self.has_reference else trained if o.lora_rank else self.cost.all_parameters
        gathered = self.policy.outside + 2 * self.cost.block / self.config.num_hidden_layers
        rows = min(o.own_problems * o.group_size, max(MAX_ROWS, o.group_size))
        width = self.policy.width
        # What the sampler multiplies with: the trainer's own weights, unless they are of another type or have adapters.
        copied = self.cost.all_parameters if width != FLOAT32 else self.cost.block if o.lora_rank else 0
        copy = width * copied + (FLOAT32 * self.cost.all_parameters if shards > 1 else 0)
        samples = o.sampler == "torch"
        head = self.policy.head(row)
        return {
            "parameters": FLOAT32 * weights / shards,
            "gradients": FLOAT32 * trained / shards,
            "optimiser": 2 * FLOAT32 * trained / shards,
            "reference": FLOAT32 * of_reference / shards,
            "critic": 4 * FLOAT32 * of_critic / shards,
            "gathered": 0.0 if shards == 1 else FLOAT32 * gathered,
            "activations": float(self.policy.kept(row) + (self.policy.layer(row) if o.gradient_checkpointing else 0)),
            "head, a chunk": float(head["chunk"]),
            "head, gradient": float(head["gradient"]),
            "sampler's weights": float(samples * copy),
            "key-value cache": samples
            * float(
                key_value_bytes(self.cost, rows // o.group_size, rows, o.prompt_length, o.completion_length, width)
            ),
            "sampler's logits": samples * 2.0 * FLOAT32 * rows * self.config.vocab_size,
        }

    def traffic(self) -> dict[str, float]:
        """Bytes that one GPU receives in a step.

        A sum over n GPUs in a ring is 2 (n - 1) / n of the numbers, putting together or taking apart (n - 1) / n. Sharded weights are
        put together for each forward and each backward of a micro-batch, and gradients taken apart after each. To servers: what the
        first process sends, which each of them receives.
        """
        o, trained, every = self.options, self.policy.trained, self.cost.all_parameters
        part, micros = (o.gpus - 1) / o.gpus, self.cut.micro_batches
        completions = o.problems_per_step * o.group_size * o.completion_length
        sharded = o.sharding == "full"
        return {
            "gradients": part * FLOAT32 * trained * (micros if sharded else 2),
            "weights": part * FLOAT32 * every * micros * (3 if self.has_reference else 2) if sharded else 0.0,
            "weights to the sampler": FLOAT32 * every * (part * sharded if o.sampler == "torch" else 1.0),
            "what was sampled": part * SAMPLED_TOKEN * completions,
        }

    def kept(self) -> float:
        """What is there between updates: weights, moments, reference, the critic's."""
        memory = self.memory()
        named = ("parameters", "optimiser", "reference")
        return sum(memory[name] for name in named) + 3 / 4 * memory["critic"]

    def peak_of_update(self) -> float:
        """kept + the most of: the critic's pass, the policy's with the critic's gradients beside it, the optimiser's step.

        From a second micro-batch on there are all gradients beforehand. The sampler's copy stays meanwhile.
        """
        memory, row, is_first = self.memory(), self.cut.largest, self.cut.micro_batches == 1
        sharded = self.options.sharding == "full"
        of_critic = memory["critic"] / 4
        before = 0.0 if is_first else memory["gradients"]
        passes = [
            memory["gradients"] + of_critic,
            before + of_critic + self.policy.peak(row, is_first=is_first, sharded=sharded),
        ]
        if self.critic is not None:
            passes.append(before + (0 if is_first else of_critic) + self.critic.peak(row, is_first=is_first))
        return self.kept() + memory["sampler's weights"] + max(passes)

    def peak_of_sampling(self) -> float:
        memory = self.memory()
        return self.kept() + sum(memory[name] for name in ("sampler's weights", "key-value cache", "sampler's logits"))

    def flops(self) -> dict[str, float]:
        """sampling 2 (N_b T + V H S) + attention, every prompt once for its group; the update by rl/cost.py."""
        o = self.options
        whole = replace(
            self.cut.whole, prompts=self.cut.whole.prompts * o.gpus, sequences=o.problems_per_step * o.group_size
        )
        updated = step_flops(
            self.cost,
            whole.work,
            critic=self.value,
            has_reference=self.has_reference,
            frozen=o.lora_rank > 0,
            checkpointed=o.gradient_checkpointing,
        )
        sampled = replace(whole, prompts=o.problems_per_step).work
        return {"sampling": forward_flops(self.cost, sampled), **updated}

    def dry(self) -> DryRun:
        """The update itself, run without numbers, on at most two micro-batches: any further one is like the second."""
        o = self.options
        problems = min(o.own_problems, 2 * self.cut.largest.prompts)
        batch = equal_batch(problems, o.group_size, o.prompt_length, o.completion_length)
        return dry_run(self.config, self.run, batch, shards=o.gpus if o.sharding == "full" else 1)


def describe(plan: Plan, dry: DryRun | None) -> str:
    """As text for a person."""
    o, row = plan.options, plan.cut.largest
    sampler = plan.memory()["sampler's weights"]

    def line(name: str, size: float, beside: str = "") -> str:
        return f"{name:<27}{size / GIB:>10.3f}{beside}"

    lines = [
        f"{o.model}, {plan.cost.all_parameters / 1e6:,.1f} M parameters, {plan.policy.trained / 1e6:,.1f} M trained",
        f"{o.algorithm}, value {plan.value}, {o.dtype}, attention {plan.run.attention}; {plan.cut.micro_batches} micro-batches, the "
        f"largest of {row.tokens:,} tokens, {row.scored:,} of them scored",
        "",
        f"{'GiB on one GPU':<27}{'formula':>10}",
        *(line(name, size) for name, size in plan.memory().items()),
        "",
        f"{'GiB on one GPU':<27}{'formula':>10}" + (f"{'dry run':>12}" if dry else ""),
        line("peak of the update", plan.peak_of_update(), f"{(dry.peak + sampler) / GIB:>12.3f}" if dry else ""),
        line("peak of sampling", plan.peak_of_sampling()),
        "",
        f"{'operations of a step':<27}{'TFLOP':>10}",
        *(f"{name:<27}{count / 1e12:>10,.1f}" for name, count in plan.flops().items()),
    ]
    if o.gpus > 1:
        lines += ["", f"{'GiB that one GPU receives':<27}{'a step':>10}"]
        lines += [line(name, size) for name, size in plan.traffic().items()]
    if o.card is not None:
        peaks = [plan.peak_of_update(), plan.peak_of_sampling(), *([dry.peak + sampler] if dry else [])]
        need = max(peaks) / GIB
        verdict = "fits" if need <= o.card else "does not fit"
        lines += ["", f"{verdict} a card of {o.card:g} GiB: {need:.1f} GiB are needed"]
    return "\n".join(lines)


def make_plan(options: PlanOptions) -> Plan:
    return Plan(options, load_config(options.model))
