"""`plumbline plan`: memory and floating-point operations of a step, computed from a model's config before the run."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from functools import cached_property
from itertools import islice
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from rewards.errors import UserError, first_line
from rl.capacity.account import CUDA_CONTEXT, FRAGMENTATION, GIB, ROUNDED, Account
from rl.capacity.choose import (
    MAX_REMEDIES,
    DeviceMemory,
    as_options,
    choose,
    described,
    fitting,
    remedies,
    with_defaults,
)
from rl.capacity.cost import FLOAT32, ModelCost, forward_flops, step_flops
from rl.capacity.memory import MicroBatchPlan, TrainedTrunk
from rl.command.dry_run import DryRun, dry_run, equal_batch
from rl.objective.names import CriticSource
from rl.run.setup import require_shardable
from rl.run.tiny import tiny_model, tiny_tokenizer
from rl.settings.config import RunConfig
from rl.settings.defaults import TINY
from rl.settings.options import PlanOptions
from rl.settings.resolve import RunSettings

CONFIGS = Path(__file__).parent / "model_configs"
SAMPLED_TOKEN = 14.0  # bytes per sampled token when rollouts are exchanged between processes: token, log-prob and text


def known_models() -> list[str]:
    return [TINY, *sorted(path.stem for path in CONFIGS.glob("*.json"))]


def load_config(model: str, option: str = "model") -> PretrainedConfig:
    """The config of a model: a folder, a file, one of known_models(), or a hub name that is in the cache. Nothing is downloaded.

    option: the one that names it, for messages.
    """
    if model == TINY:
        return tiny_model(tiny_tokenizer(), seed=0, device=torch.device("cpu")).config
    path, known = Path(model).expanduser(), CONFIGS / f"{model.lower()}.json"
    source = str(known) if model.lower() in known_models() else str(path if path.exists() else model)
    try:
        config = AutoConfig.from_pretrained(source, local_files_only=True)
    except (OSError, ValueError) as error:
        reason = f" ({first_line(error)})" if path.exists() else ""
        raise UserError(
            f"{option} is {model!r}: it is no known model, no folder or file of a config.json that can be read{reason}, and no hub "
            f"name in the cache; give one of {', '.join(known_models())}, or the path of a config.json"
        ) from None
    text = config.get_text_config()
    needed = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "vocab_size")
    missing = [name for name in needed if not isinstance(getattr(text, name, None), int)]
    if missing:
        raise UserError(
            f"{option} is {model!r}: its config has no {', '.join(missing)}, and the formulas are for models of Llama's shape; "
            f"give one of {', '.join(known_models())}, or the config.json of a Llama, Qwen or Mistral"
        )
    return text


@dataclass(frozen=True)
class Plan:
    """Memory on one GPU, in bytes, and operations of one step over all GPUs. device: "cpu" to compare with a run on one."""

    options: PlanOptions
    config: PretrainedConfig
    device: str = "cuda"

    def __post_init__(self) -> None:
        if self.options.shards:
            require_shardable(self.account.run)

    @property
    def asked(self) -> RunConfig:
        """The options of the planned run. RunConfig refuses impossible ones."""
        o = self.options
        same = {f.name for f in fields(PlanOptions)} & {f.name for f in fields(RunConfig)} - {"sampler"}
        return RunConfig(
            **{name: getattr(o, name) for name in same},
            lora_alpha=2.0 * o.lora_rank or None,
            max_tokens=o.completion_length,
            eval_size=1,  # a plan covers a training step, not an evaluation
            attention="varlen"
            if o.dtype == "bfloat16"
            else "dense",  # the attention that a GPU uses for these data types
        )

    @cached_property
    def skeleton(self) -> PreTrainedModel:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(self.config)

    @cached_property
    def teacher(self) -> PreTrainedModel | None:
        """The skeleton of a teacher on the same GPU."""
        name = self.asked.loaded_teacher
        if name is None:
            return None
        config = load_config(name, option="teacher")
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config)

    @cached_property
    def open_account(self) -> Account:
        """The account in which options that are "auto" are still open."""
        o = self.options
        return Account.of(
            self.asked,
            self.skeleton,
            prompt_length=o.prompt_length,
            device=self.device,
            engine=o.sampler,
            processes=o.gpus,
            shards=o.shards,
            cpu_offload=o.sharding == "offload",
            teacher=self.teacher,
        )

    @cached_property
    def account(self) -> Account:
        """The account of the planned run: "auto" is what a run would choose on the card, or its fixed default without a card that fits."""
        if self.options.card is not None:
            with suppress(UserError):
                return choose(self.open_account, DeviceMemory.of_card(self.options.gib))
        return with_defaults(self.open_account)

    @property
    def run(self) -> RunSettings:
        return self.account.run

    @property
    def cost(self) -> ModelCost:
        return self.account.cost

    @property
    def micro_batches(self) -> MicroBatchPlan:
        return self.account.micro_batches

    @property
    def policy(self) -> TrainedTrunk:
        return self.account.policy

    @property
    def value(self) -> CriticSource:
        return self.run.chosen_algorithm().critic

    def memory(self) -> dict[str, float]:
        return self.account.parts()

    def kept(self) -> float:
        return self.account.kept()

    def peak_of_update(self) -> float:
        return self.account.peak_of_update()

    def peak_of_sampling(self) -> float:
        return self.account.peak_of_sampling()

    def traffic(self) -> dict[str, float]:
        """Bytes that one GPU receives in a step.

        An all-reduce over n GPUs in a ring receives 2 (n - 1) / n of the tensor, an all-gather or reduce-scatter (n - 1) / n. Sharded
        weights are gathered for each forward and each backward of a micro-batch (with bfloat16 the layers' matrices in 16 bits), and
        gradients are reduce-scattered in float32 after each backward. Servers receive the weights in their own data type.
        """
        o, trained, every = self.options, self.policy.trained, self.cost.all_parameters
        rounds = self.run.dtype == "bfloat16"
        gathered = FLOAT32 * every - (FLOAT32 - ROUNDED) * rounds * self.cost.block
        sent = ROUNDED if self.run.sampler_dtype == "bfloat16" else FLOAT32
        part, micros = (o.gpus - 1) / o.gpus, self.micro_batches.count
        completions = o.problems_per_step * o.group_size * o.completion_length
        sharded = o.shards
        return {
            "gradients": part * FLOAT32 * trained * (micros if sharded else 2),
            "weights": part * gathered * micros * (3 if self.account.has_reference else 2) if sharded else 0.0,
            "weights to the sampler": FLOAT32 * every * part * sharded if o.sampler == "torch" else 1.0 * sent * every,
            "what was sampled": part * SAMPLED_TOKEN * completions,
        }

    def flops(self) -> dict[str, float]:
        """Operations of sampling, 2 (N_b T + V H S) + attention with each prompt once per group, and of the update (rl/capacity/cost.py)."""
        o = self.options
        whole = replace(
            self.micro_batches.whole,
            prompts=self.micro_batches.whole.prompts * o.gpus,
            sequences=o.problems_per_step * o.group_size,
        )
        updated = step_flops(
            self.cost,
            whole.workload,
            critic=self.value,
            has_reference=self.account.has_reference,
            frozen=o.lora_rank > 0,
            checkpointed=self.policy.checkpointed,
            prefers=self.run.chosen_algorithm().prefers,
        )
        sampled = replace(whole, prompts=o.problems_per_step).workload
        taught = {} if self.teacher is None else {"teacher": forward_flops(ModelCost.of(self.teacher), whole.workload)}
        return {"sampling": forward_flops(self.cost, sampled), **updated, **taught}

    def dry(self) -> DryRun:
        """The memory of the update, run on tensors without contents; on at most two micro-batches, since further ones equal the second."""
        o = self.options
        problems = min(o.own_problems, 2 * self.micro_batches.largest.prompts)
        batch = equal_batch(problems, o.group_size, o.prompt_length, o.completion_length)
        return dry_run(self.config, self.run, batch, device=self.device, shards=o.gpus if o.shards else 1)


def describe(plan: Plan, dry: DryRun | None) -> str:
    """The plan as text."""
    o, row = plan.options, plan.micro_batches.largest
    memory = plan.memory()
    beside = memory["sampler's weights"] + memory["teacher"]  # of which the dry run knows nothing

    def line(name: str, size: float, beside: str = "") -> str:
        return f"{name:<27}{size / GIB:>10.3f}{beside}"

    lines = [
        f"{o.model}, {plan.cost.all_parameters / 1e6:,.1f} M parameters, {plan.policy.trained / 1e6:,.1f} M trained",
        f"{plan.run.algorithm}, value {plan.value}, {o.dtype}, attention {plan.run.attention}; {plan.micro_batches.count} micro-batches, the "
        f"largest of {row.tokens:,} tokens, {row.scored:,} of them scored",
        "",
        f"{'GiB on one GPU':<27}{'formula':>10}",
        *(line(name, size) for name, size in memory.items()),
        "",
        f"{'GiB on one GPU':<27}{'formula':>10}" + (f"{'dry run':>12}" if dry else ""),
        line("peak of the update", plan.peak_of_update(), f"{(dry.peak + beside) / GIB:>12.3f}" if dry else ""),
        line("peak of sampling", plan.peak_of_sampling()),
        "",
        f"{'operations of a step':<27}{'TFLOP':>10}",
        *(f"{name:<27}{count / 1e12:>10,.1f}" for name, count in plan.flops().items()),
    ]
    if o.gpus > 1:
        lines += ["", f"{'GiB that one GPU receives':<27}{'a step':>10}"]
        lines += [line(name, size) for name, size in plan.traffic().items()]
    if o.card is not None:
        lines += ["", *on_the_card(plan, [dry.peak + beside] if dry else [])]
    return "\n".join(lines)


def on_the_card(plan: Plan, also: Sequence[float]) -> Iterator[str]:
    """Whether the run fits the card, what was chosen, and the largest sizes that fit. also: peaks measured by the dry run."""
    o, account, memory = plan.options, plan.account, DeviceMemory.of_card(plan.options.gib)
    need = (max(account.peak(), *also) if also else account.peak()) * FRAGMENTATION + CUDA_CONTEXT
    verdict = "fits" if need <= memory.total else "does not fit"
    yield (
        f"{verdict} a card of {o.gib:g} GiB: {need / GIB:.1f} GiB are needed, including {FRAGMENTATION - 1:.0%} for fragmentation and "
        f"{CUDA_CONTEXT / GIB:g} GiB for CUDA itself"
    )
    if need > memory.total:
        for changes, found in islice(remedies(plan.open_account, memory), MAX_REMEDIES):
            yield f"  it would fit with {as_options(changes)}: {(found.needed(found.peak()) + CUDA_CONTEXT) / GIB:.1f} GiB"
    else:
        yield f"  {described(account, memory)}"
    yield "the largest sizes that fit it, with all else as planned:"
    yield from (f"  {name:<25}{found}" for name, found in largest(plan, memory).items())


def largest(plan: Plan, memory: DeviceMemory) -> dict[str, str]:
    """The largest known model, group size and completion length that fit, changing one at a time; "auto" is chosen anew for each."""
    account, context = plan.open_account, getattr(plan.config, "max_position_embeddings", None) or 1 << 17

    def fits(changed: Account) -> bool:
        return fitting(changed, memory) is not None

    others = {name: Plan(replace(plan.options, model=name), load_config(name)) for name in known_models()}
    by_size = sorted(others, key=lambda name: others[name].open_account.cost.all_parameters, reverse=True)
    group = most(lambda n: fits(account.with_options(group_size=n)), 1 << 12)
    tokens = most(lambda n: fits(replace(account, completion_length=n)), context - account.prompt_length)
    return {
        "model": next((name for name in by_size if fits(others[name].open_account)), "none"),
        "group size": f"{group:,}" if group else "none",
        "completion length": f"{tokens:,}" if tokens else "none",
    }


def most(holds: Callable[[int], bool], bound: int) -> int:
    """The largest n in 2 ... bound with holds(n), for a condition that holds up to some n; 0 if it holds for none."""
    found = bisect_left(range(2, bound + 1), True, key=lambda n: not holds(n)) + 1
    return found if found > 1 else 0


def make_plan(options: PlanOptions) -> Plan:
    return Plan(options, load_config(options.model))
