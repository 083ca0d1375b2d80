"""Builds a run from its options. Every error in options, data, model or memory is found here, before any training."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rewards.errors import UserError
from rewards.verifiers import Verifiers
from rl.capacity.account import GIB, Account
from rl.capacity.choose import DeviceMemory, choose, described
from rl.policy.families import PolicyFamily, family_of
from rl.policy.load import context_length
from rl.policy.policy import Policy
from rl.policy.reward_model import RewardModel
from rl.policy.save_model import stored_dtype
from rl.processes.runtime import Runtime
from rl.run.build import build_sampler, tool_rollout
from rl.run.build_learner import build_learner, build_optimizer, build_reward_model, build_teacher, skeleton
from rl.run.checkpoint import checkpoints, load_waiting, try_saving, writing
from rl.run.load_data import fitting, gradable_data, joined, load_data, require_room
from rl.run.run_files import RunRecords, write_config
from rl.run.run_folder import fingerprints, require_same_data, resume
from rl.run.warm_start import WarmStart, warm_started
from rl.settings.config import RunConfig
from rl.settings.config_file import CONFIG_FILE, repeating
from rl.settings.defaults import TINY, tiny_task
from rl.settings.resolve import RunSettings, model_defaults, resolve
from rl.update.delivery import BFLOAT16_TOLERANCE, FLOAT32_TOLERANCE, Delivery
from rl.update.learner import Learner
from rl.update.prefetch import Prefetcher
from rl.view.health_checks import HealthChecks
from rl.view.metrics import read_metrics, write_whole
from rl.view.progress import Progress
from rollout.budget_forcing import rollout_within
from rollout.chat_template import choose_template
from rollout.collect import Collector
from rollout.environment import Environments
from rollout.problem_memory import PASS_RATE, Selection, parse_difficulty
from rollout.problem_stream import ProblemStream, Source
from rollout.prompts import PromptRenderer
from rollout.records import Problem
from rollout.rollouts import one_shot
from rollout.sampler import Sampler, SampleRequest, SamplingParams, Text, completion_seed
from rollout.tool_rollout import ToolRollout
from rollout.turn import describe_ends, turn_end_strings, vocabulary_size

PROBE = "probe.json"  # in the run's folder
PROBE_TEXTS, PROBE_TOKENS = 8, 16  # enough for a mean with little noise
PROBE_FROM, PROBE_PROMPT = 64, 64  # the shortest prompts of so many problems, cut to so many last tokens


@dataclass(kw_only=True)
class Run:
    """The parts of a run, ready for its next step. step: the last completed one."""

    settings: RunSettings
    learner: Learner
    collector: Collector
    verifiers: Verifiers
    stream: ProblemStream
    held_out: list[Problem]
    delivery: Delivery
    prefetcher: Prefetcher | None
    tokenizer: PreTrainedTokenizerBase
    records: RunRecords | None  # of the main process only
    health_checks: HealthChecks
    step: int

    @property
    def is_exhausted(self) -> bool:
        """Whether no problem is left to draw, and none that was drawn ahead waits for its step."""
        waits = self.prefetcher is not None and self.prefetcher.pending is not None
        return self.stream.num_left == 0 and not waits

    def close(self, *, at_once: bool = False) -> None:
        """Ends threads, engine and tools. at_once: without waiting for a thread that samples one step ahead."""
        if self.prefetcher is not None:
            self.prefetcher.close(wait=not at_once)
        self.collector.close()


def set_up(
    config: RunConfig,
    runtime: Runtime,
    verifiers: Verifiers,
    progress: Progress,
    environments: Environments | None = None,
) -> Run:
    """Loads data and model, builds every part of the run and proves that the sampler has the policy's weights."""
    settings = resolve(config, runtime.device.type, shards=runtime.shards)
    if runtime.shards:
        require_shardable(settings)
    loaded = load_data(settings, progress.message)
    data = fingerprints(joined(loaded[0]), loaded[1])
    if settings.resume:
        require_same_data(settings.run_dir, data)
    loaded = gradable_data(loaded, verifiers, progress)
    source, family, model, tokenizer = load_base(settings, runtime, verifiers, progress)
    tools = tool_rollout(settings, tokenizer, environments)
    renderer = PromptRenderer(
        tokenizer,
        style=settings.prompted_style,
        system_prompt=settings.system_prompt,
        answer_form=settings.answer_form,
        tools_of=tools.schemas_of if tools else lambda problem: (),
        report=progress.message,
    )
    sources, held_out = fitting(settings, renderer, verifiers, loaded, vocabulary_size(model), progress)
    training = joined(sources)
    stream = build_stream(settings, sources)
    longest = require_room(
        renderer,
        [*training, *held_out],
        settings.max_tokens,
        context=context_length(model),
        token_budget=None if config.token_budget == "auto" else config.token_budget,
        vocabulary=vocabulary_size(model),
    )
    reward_model = build_reward_model(settings, runtime)
    beside = 0 if reward_model is None else reward_model.bytes_of_training
    settings, keeps_caches = fitted_to_memory(config, model, runtime, progress, longest - settings.max_tokens, beside)
    teacher, stored = build_teacher(settings, tokenizer, runtime, progress, longest), stored_dtype(source)
    learner = build_learner(
        settings,
        model,
        tokenizer,
        runtime,
        family=family,
        stored_dtype=stored,
        longest=longest,
        teacher=teacher,
        reward_model=reward_model,
    )
    sampler = build_sampler(settings, source, model, tokenizer, learner, runtime, progress, longest, keeps_caches)
    with closed_on_error(sampler):
        if runtime.shards:
            learner.shard(lambda policy: build_optimizer(settings, policy, None))
        step = resume(settings, learner, stream, progress) if settings.resume else 0
        if step == 0:
            progress.start("trying to save a checkpoint")
            try_saving(settings.run_dir, learner, stream, tokenizer)
        collector = build_collector(settings, sampler, verifiers, renderer, runtime, tools, reward_model)
        if settings.thinking is not None:
            rollout = rollout_within(settings.thinking, learner.policy.model, renderer, collector.params, training[0])
            collector = replace(collector, rollout=rollout)
        found = {**announced(learner, collector, training[0], progress), "data": data}
        delivery = proven_delivery(settings, learner.policy, collector, runtime, training, step)
        waiting = load_waiting(checkpoints(settings.run_dir)[-1]) if settings.one_step_ahead and step else None
        return Run(
            settings=settings,
            learner=learner,
            collector=collector,
            verifiers=verifiers,
            stream=stream,
            held_out=held_out,
            delivery=delivery,
            prefetcher=Prefetcher(
                settings.num_steps, waiting, device=runtime.device, can_sample=lambda: stream.num_left > 0
            )
            if settings.one_step_ahead
            else None,
            tokenizer=tokenizer,
            records=open_records(settings, found, runtime, tokenizer, step),
            health_checks=HealthChecks(read_metrics(settings.run_dir)),
            step=step,
        )


@contextmanager
def closed_on_error(sampler: Sampler) -> Iterator[None]:
    """Closes the sampler (its threads, processes, files) if the block raises."""
    try:
        yield
    except BaseException:
        sampler.close()
        raise


def build_stream(settings: RunSettings, sources: Sequence[Source]) -> ProblemStream:
    """The stream of the training problems. Raises UserError where the bounds of their difficulty leave none to draw."""
    difficulty = None if settings.difficulty is None else parse_difficulty(settings.difficulty)
    selection = Selection(drop_mastered=settings.drop_mastered, difficulty=difficulty)
    stream = ProblemStream(sources, settings.seed, selection)
    if stream.num_left == 0:
        raise UserError(
            f"difficulty is {settings.difficulty!r}: the {PASS_RATE} of each of the {len(joined(sources))} training problems is outside of it; "
            "widen it, or give other problems"
        )
    return stream


def build_collector(
    settings: RunSettings,
    sampler: Sampler,
    verifiers: Verifiers,
    renderer: PromptRenderer,
    runtime: Runtime,
    tools: ToolRollout | None = None,
    reward_model: RewardModel | None = None,
) -> Collector:
    """The collector of a step's completions, whose turns end where the chat template ends them, and at the stop strings of the run and of
    its tools."""
    of_tools = tools.stop_strings if tools else ()
    stop_strings = (*settings.stop_strings, *of_tools, *turn_end_strings(renderer.tokenizer))
    return Collector(
        sampler=sampler,
        verifiers=verifiers,
        renderer=renderer,
        params=SamplingParams(
            max_tokens=settings.max_tokens, temperature=settings.temperature, stop_strings=stop_strings
        ),
        group_size=settings.group_size,
        run_seed=settings.seed,
        rollout=tools or one_shot,
        call_threads=tools.threads if tools else 0,
        scores_steps=settings.chosen_algorithm().scores_steps,
        rewarded=list if reward_model is None else reward_model.rewarded,
        max_refills=settings.max_refills,
        processes=runtime.with_own_group() if settings.one_step_ahead else runtime,
    )


def proven_delivery(
    settings: RunSettings,
    policy: Policy,
    collector: Collector,
    runtime: Runtime,
    problems: Sequence[Problem],
    step: int,
) -> Delivery:
    """A Delivery that has sent the policy's weights once, so that the engine samples from the weights that the run begins with."""
    sampler, renderer = collector.sampler, collector.renderer
    texts = runtime.broadcast_from_main(
        lambda: probe_texts(settings.run_dir, sampler, renderer, problems, settings.seed)
    )
    is_exact = settings.dtype == settings.sampler_dtype == "float32"
    tolerance = FLOAT32_TOLERANCE if is_exact else BFLOAT16_TOLERANCE
    delivery = Delivery(policy, sampler, tolerance=tolerance, texts=texts, processes=runtime)
    delivery.deliver(version=step)
    return delivery


def announced(learner: Learner, collector: Collector, problem: Problem, progress: Progress) -> dict[str, Any]:
    """Reports how the model is run and what it reads. -> what config.json holds of it beside the options."""
    renderer = collector.renderer
    paths = {"update": str(learner.policy.choice), "sampling": collector.sampler.path}
    for name, path in paths.items():
        progress.message(f"{name}: {path}")
    if collector.environments is not None:
        problem = collector.environments.begun(problem)
    first_prompt = str(renderer.tokenizer.decode(list(renderer.render(problem))))
    progress.message(f"first prompt, of problem {problem.id!r}, with its special tokens:\n{first_prompt}")
    progress.message(describe_ends(learner.policy.model, renderer.tokenizer, collector.params.stop_strings))
    return {"paths": paths, "first_prompt": first_prompt}


def fitted_to_memory(
    config: RunConfig, model: PreTrainedModel, runtime: Runtime, progress: Progress, prompt_length: int, beside: int = 0
) -> tuple[RunSettings, bool]:
    """The settings of the run, with what costs memory chosen so that it fits beside what is loaded (rl/capacity/choose.py) and `beside`
    more bytes; and whether the embedded engine's key-value cache fits beside an update."""
    asked = replace(config, dtype=runtime.dtype)
    account = Account.of(
        asked,
        model,
        prompt_length=prompt_length,
        device=runtime.device.type,
        engine=resolve(asked, runtime.device.type).sampler,
        processes=runtime.count,
        shards=runtime.shards,
        cpu_offload=runtime.offloads,
        critic=skeleton("critic_model", asked.critic_model),
        teacher=skeleton("teacher", asked.loaded_teacher),
    )
    available, total = map(min, zip(*runtime.gather([runtime.room(model)]), strict=True))
    memory = DeviceMemory(available - beside, total)
    found = choose(account, memory)
    if found.device == "cuda":
        progress.message(described(found, memory))
    elif found.run.gradient_checkpointing and config.gradient_checkpointing is None:
        progress.message(checkpointing_message(found.with_options(gradient_checkpointing=False), memory))
    beside_an_update = found.needed(found.peak_of_update() + found.keys_and_values) <= memory.available
    return found.run, found.device == "cuda" and beside_an_update


def checkpointing_message(account: Account, memory: DeviceMemory) -> str:
    """Why gradient checkpointing is on. account: of the run without it."""
    return (
        f"gradient checkpointing is on: without it an update of {account.run.token_budget} tokens at once would take about "
        f"{account.peak_of_update() / GIB:.1f} GiB, weights included, and {memory.available / GIB:.1f} GiB are available; a lower "
        "token_budget would make it unnecessary"
    )


def load_base(
    settings: RunSettings, runtime: Runtime, verifiers: Verifiers, progress: Progress
) -> tuple[str, PolicyFamily, PreTrainedModel, PreTrainedTokenizerBase]:
    """What the run starts from: its folder or hub name, its family, the model (the same weights in every process), its tokenizer."""
    source = settings.model
    if source == TINY:
        task = tiny_task(*(dataset.name for dataset in settings.datasets))
        source = runtime.broadcast_from_main(
            lambda: str(tiny_base(task, verifiers, runtime.single_process(), progress))
        )
    nf4 = getattr(torch, settings.dtype) if settings.lora_base == "nf4" else None
    rounded = settings.rounds_base(runtime.device.type)
    family = family_of(source)
    float32_head = settings.head_dtype == "float32"
    model, tokenizer = family.load(source, runtime.device, nf4=nf4, rounded=rounded, float32_head=float32_head)
    runtime.require_equal(model, settings.model)
    choose_template(tokenizer, settings.chat_template)
    return source, family, model, tokenizer


def open_records(
    settings: RunSettings, found: dict[str, Any], runtime: Runtime, tokenizer: PreTrainedTokenizerBase, step: int
) -> RunRecords | None:
    """The run's files, in the main process only. Writes config.json and config.yaml, and removes what was recorded of steps after `step`.

    found: what config.json holds beside the options.
    """
    records, run_dir = None, settings.run_dir
    if runtime.is_main:
        with writing(run_dir):
            write_config(run_dir, {**settings.as_json(), **found})
            write_whole(run_dir / CONFIG_FILE, repeating(settings))
            records = RunRecords(run_dir, keep_through=step or -1, tokenizer=tokenizer)
    runtime.wait()
    return records


def probe_texts(
    run_dir: Path, sampler: Sampler, renderer: PromptRenderer, problems: Sequence[Problem], seed: int
) -> list[Text]:
    """Texts that prove deliveries: short samples of the model that the run starts from. They are saved, so that a resumed run has the
    same ones."""
    kept = run_dir / PROBE
    if not kept.is_file():
        prompts = sorted({tuple(renderer.render(p)) for p in problems[:PROBE_FROM]}, key=lambda p: (len(p), p))
        requests = [
            SampleRequest(prompt[-PROBE_PROMPT:], (completion_seed(seed, 0, "probe", i),))
            for i, prompt in enumerate(prompts[:PROBE_TEXTS])
        ]
        sampled = sampler.sample(requests, SamplingParams(max_tokens=PROBE_TOKENS))
        texts = [(r.prompt_ids, c.token_ids) for r, (c,) in zip(requests, sampled, strict=True)]
        write_whole(kept, json.dumps(texts) + "\n")
    return [(tuple(prompt), tuple(completion)) for prompt, completion in json.loads(kept.read_text(encoding="utf-8"))]


def require_shardable(settings: RunSettings) -> None:
    """Raises UserError for options that FSDP2-sharded weights do not support."""
    algorithm = settings.chosen_algorithm()
    own_critic = algorithm.value_rule is not None and algorithm.critic != "shared"
    for name, value, is_unsupported in (
        ("value", settings.value or algorithm.critic, own_critic),
        ("teacher", settings.teacher, settings.teacher is not None),
        ("reward_model", settings.reward_model, settings.reward_model is not None),
        ("lora_base", settings.lora_base, settings.lora_base in ("bfloat16", "nf4")),
        ("reference_dtype", settings.reference_dtype, settings.reference_dtype == "bfloat16"),
        ("optimizer", settings.optimizer, settings.optimizer != "adamw"),
        ("gradient_dtype", settings.gradient_dtype, settings.gradient_dtype != "float32"),
        ("offload", settings.offload, settings.offload != "none"),
    ):
        if is_unsupported:
            raise UserError(
                f"{name} is {value!r}: it is unavailable with weights that FSDP2 shards over the processes; use --multi_gpu, with the "
                "whole model in each process (docs/scale.md; in place of --offload sharded weights have --fsdp_offload_params true)"
            )


def tiny_base(dataset: str, verifiers: Verifiers, runtime: Runtime, progress: Progress) -> Path:
    """Folder of the tiny model that a run on `dataset` starts from: warm-started with that task's defaults, whatever the run's options."""
    task = tiny_task(dataset)
    defaults = model_defaults(TINY, task)
    recipe = WarmStart(dataset=task, max_tokens=defaults["max_tokens"], eval_size=defaults["eval_size"])
    return warm_started(recipe, verifiers, runtime, progress)
