"""A run is put together here, and whatever can be wrong with it is found here, before any training."""

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
from rewards.sandbox.isolation import MIN_LEVEL
from rewards.score import Outcome, Score, verify
from rewards.verifier_contract import checked_scores
from rewards.verifiers import Verifiers
from rl.capacity.account import Account
from rl.capacity.choose import OPEN, DeviceMemory, choose, described
from rl.policy.families import PolicyFamily, family_of
from rl.policy.load import context_length
from rl.policy.save_model import stored_dtype
from rl.processes.runtime import Runtime
from rl.run.build import (
    build_learner,
    build_optimizer,
    build_sampler,
    critic_skeleton,
    engine_of,
    told_of_checkpointing,
)
from rl.run.checkpoint import checkpoints, load_waiting, try_saving, writing
from rl.run.load_data import load_data, require_closing_token, require_room, within_limit
from rl.run.run_files import RunRecords, write_config
from rl.run.run_folder import fingerprints, require_same_data, resume
from rl.run.warm_start import WarmStart, warm_started
from rl.settings.config import RunConfig
from rl.settings.defaults import TINY, TINY_DEFAULTS, tiny_task
from rl.update.delivery import EXACT, ROUNDED, Delivery
from rl.update.learner import Learner
from rl.update.prefetch import Ahead
from rl.view.health_checks import Watch
from rl.view.metrics import read_metrics, write_whole
from rl.view.progress import Progress
from rollout.chat_template import choose_template
from rollout.collect import Collector
from rollout.demonstrations import demonstration
from rollout.problems import ProblemStream, repeated_word
from rollout.prompts import PromptRenderer
from rollout.records import SOLUTION, Problem
from rollout.sampler import Sampler, SampleRequest, SamplingParams, Text, completion_seed
from rollout.turn import describe_ends, turn_end_strings, vocabulary_size

PROBE = "probe.json"  # in the run's folder
PROBE_TEXTS, PROBE_TOKENS = 8, 16  # enough for a mean whose own noise is small
PROBE_FROM, PROBE_PROMPT = 64, 64  # of as many problems the shortest prompts, the end of each


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

    def close(self, *, at_once: bool = False) -> None:
        """at_once: without waiting for a thread that samples one step ahead."""
        if self.ahead is not None:
            self.ahead.close(wait=not at_once)
        self.collector.sampler.close()


def gradable(problems: Sequence[Problem], which: str, verifiers: Verifiers, progress: Progress) -> list[Problem]:
    """The problems, which are held-out ones or for training, whose reference can be judged against; the others are told and dropped."""
    scores: dict[str, Score] = {}
    for name in sorted({p.verifier for p in problems}):
        asking = [p for p in problems if p.verifier == name]
        checked = verifiers[name].check_references([p.reference for p in asking])
        checked = checked_scores(checked, verifier=name, problems=[p.id for p in asking])
        scores |= {p.id: s for p, s in zip(asking, checked, strict=True)}
    bad = [(p, scores[p.id]) for p in problems if scores[p.id].outcome is not Outcome.CORRECT]
    if bad:
        shown = "; ".join(f"problem {p.id!r}, reference {str(p.reference)[:60]!r}: {s.detail}" for p, s in bad[:3])
        if len(bad) == len(problems):
            raise UserError(
                f"dataset: none of its {len(problems)} reference answers can be judged against ({shown}); mend answer_column"
            )
        progress.message(
            f"{len(bad)} of {len(problems)} {which} problems are left out, their reference cannot be judged against: {shown}"
        )
    good = [p for p in problems if scores[p.id].outcome is Outcome.CORRECT]
    if word := repeated_word(good):
        progress.message(
            f"{word} ({which} problems): if that is no answer, name another answer_column or mend the data"
        )
    return good


def demonstrable(
    problems: Sequence[Problem], verifiers: Verifiers, renderer: PromptRenderer, max_tokens: int, progress: Progress
) -> list[Problem]:
    """The problems with a worked solution that is right and no longer than a completion may be; the others are told and dropped."""
    worked = [p for p in problems if p.metadata.get(SOLUTION)]
    scores: dict[str, Score] = {}
    for name in sorted({p.verifier for p in worked}):
        asking = [p for p in worked if p.verifier == name]
        solutions, references = [str(p.metadata[SOLUTION]) for p in asking], [p.reference for p in asking]
        judged = verify(verifiers[name], solutions, references, [p.question for p in asking])
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


def set_up(config: RunConfig, runtime: Runtime, verifiers: Verifiers, progress: Progress) -> Run:
    asked, config = config, config.on(runtime.device.type, shards=runtime.shards)
    assert config.run_dir is not None
    loaded = load_data(config, progress.message)
    data = fingerprints(*loaded)
    if config.resume:
        require_same_data(config.run_dir, data)
    parts = zip(loaded, ("training", "held-out"), strict=True)
    training, held_out = (gradable(problems, which, verifiers, progress) for problems, which in parts)
    if verifiers.isolation:
        unsafe = "UNSAFE, as allow_unsafe_code permits: " if verifiers.isolation.rank < MIN_LEVEL else ""
        progress.message(f"{unsafe}programs are run at isolation {verifiers.isolation.describe()}")
    if runtime.shards:
        require_shardable(config)
    source, family, model, tokenizer = load_base(config, runtime, verifiers, progress)
    style, system_prompt = config.prompt_style, config.system_prompt
    renderer = PromptRenderer(tokenizer, style=style, system_prompt=system_prompt, report=progress.message)
    training, held_out, longest = fitting(config, model, renderer, verifiers, (training, held_out), progress)
    options, keeps_caches = chosen(asked, model, runtime, progress, longest - (config.max_tokens or 1))
    config = replace(config, **options)
    assert config.run_dir is not None
    learner = build_learner(
        config, model, tokenizer, runtime, progress, family=family, stored_dtype=stored_dtype(source)
    )
    sampler = build_sampler(config, source, model, tokenizer, learner, runtime, progress, longest, keeps_caches)
    with closed_on_error(sampler):
        stream = ProblemStream(training, config.seed)
        if runtime.shards:
            learner.shard(lambda policy: build_optimizer(config, policy, None))
        step = resume(config, learner, stream, progress) if config.resume else 0
        if step == 0:
            progress.start("trying to save a checkpoint")
            try_saving(config.run_dir, learner, stream, tokenizer)
        collector = build_collector(config, sampler, verifiers, renderer, runtime)
        paths = {"update": str(learner.policy.choice), "sampling": sampler.path}
        for name, path in paths.items():
            progress.message(f"{name}: {path}")
        first_prompt = str(tokenizer.decode(list(renderer.render(training[0]))))
        progress.message(f"first prompt, of problem {training[0].id!r}, with its special tokens:\n{first_prompt}")
        progress.message(describe_ends(model, tokenizer, collector.params.stop_strings))
        texts = runtime.broadcast_from_main(
            lambda: probe_texts(config.run_dir, sampler, renderer, training, config.seed)
        )
        delivery = proven_delivery(config, learner, sampler, runtime, texts, step)
        return Run(
            config=config,
            run_dir=config.run_dir,
            learner=learner,
            collector=collector,
            verifiers=verifiers,
            stream=stream,
            held_out=held_out,
            delivery=delivery,
            ahead=ahead_of(config, runtime, step) if config.one_step_ahead else None,
            tokenizer=tokenizer,
            records=open_records(
                config, runtime, tokenizer, step, {"paths": paths, "first_prompt": first_prompt, "data": data}
            ),
            watch=Watch(read_metrics(config.run_dir)),
            step=step,
        )


@contextmanager
def closed_on_error(sampler: Sampler) -> Iterator[None]:
    """Its threads, processes and files do not outlive what goes wrong in the block."""
    try:
        yield
    except BaseException:
        sampler.close()
        raise


def fitting(
    config: RunConfig,
    model: PreTrainedModel,
    renderer: PromptRenderer,
    verifiers: Verifiers,
    problems: tuple[list[Problem], list[Problem]],
    progress: Progress,
) -> tuple[list[Problem], list[Problem], int]:
    """-> (training, held out, tokens of the longest prompt with a full completion): problems that the model and the run have room for."""
    limit, max_tokens = config.max_prompt_tokens, config.max_tokens or 1
    training = within_limit(renderer, problems[0], "training", limit, progress.message)
    held_out = within_limit(renderer, problems[1], "held-out", limit, progress.message)
    if config.chosen_algorithm().samples_from == "dataset":
        require_closing_token(renderer, vocabulary_size(model))
        training = demonstrable(training, verifiers, renderer, max_tokens, progress)
    longest = require_room(
        renderer,
        [*training, *held_out],
        max_tokens,
        context=context_length(model),
        token_budget=None if config.token_budget == "auto" else config.token_budget,
        vocabulary=vocabulary_size(model),
    )
    return training, held_out, longest


def build_collector(
    config: RunConfig, sampler: Sampler, verifiers: Verifiers, renderer: PromptRenderer, runtime: Runtime
) -> Collector:
    """A turn ends as the chat template ends it, and where the run's options say."""
    stop_strings = (*config.stop_strings, *turn_end_strings(renderer.tokenizer))
    return Collector(
        sampler=sampler,
        verifiers=verifiers,
        renderer=renderer,
        params=SamplingParams(
            max_tokens=config.max_tokens or 1, temperature=config.temperature, stop_strings=stop_strings
        ),
        group_size=config.group_size or 2,
        run_seed=config.seed,
        scores_steps=config.chosen_algorithm().scores_steps,
        processes=runtime.with_own_group() if config.one_step_ahead else runtime,
    )


def proven_delivery(
    config: RunConfig, learner: Learner, sampler: Sampler, runtime: Runtime, texts: Sequence[Text], step: int
) -> Delivery:
    """With its first delivery made: the engine samples from the weights that the run begins with."""
    exact = config.computing_dtype == config.sampling_dtype == "float32"
    delivery = Delivery(learner.policy, sampler, tolerance=EXACT if exact else ROUNDED, texts=texts, processes=runtime)
    delivery.deliver(version=step)
    return delivery


def ahead_of(config: RunConfig, runtime: Runtime, step: int) -> Ahead:
    """With the completions that a resumed run's last checkpoint holds for the step to come."""
    assert config.run_dir is not None
    waiting = load_waiting(checkpoints(config.run_dir)[-1]) if step else None
    return Ahead(config.num_steps or 1, waiting, device=runtime.device)


def chosen(
    asked: RunConfig, model: PreTrainedModel, runtime: Runtime, progress: Progress, prompt_length: int
) -> tuple[dict[str, Any], bool]:
    """What is "auto" and costs memory, as this device has room for it beside what is loaded (rl/capacity/choose.py); and whether the embedded
    engine's keys and values have room beside an update."""
    account = Account.of(
        asked,
        model,
        prompt_length=prompt_length,
        device=runtime.device.type,
        engine=engine_of(asked, runtime),
        processes=runtime.count,
        shards=runtime.shards,
        cpu_offload=runtime.offloads,
        critic=critic_skeleton(asked),
    )
    room = DeviceMemory(*map(min, zip(*runtime.gather([runtime.room(model)]), strict=True)))
    found = choose(account, room)
    if found.device == "cuda":
        progress.message(described(found, room))
    elif found.run.gradient_checkpointing and asked.gradient_checkpointing is None:
        progress.message(told_of_checkpointing(found.with_options(gradient_checkpointing=False), room))
    beside_an_update = found.needed(found.peak_of_update() + found.keys_and_values) <= room.available
    return {name: getattr(found.run, name) for name in OPEN}, found.device == "cuda" and beside_an_update


def load_base(
    config: RunConfig, runtime: Runtime, verifiers: Verifiers, progress: Progress
) -> tuple[str, PolicyFamily, PreTrainedModel, PreTrainedTokenizerBase]:
    """What the policy starts from: its folder or hub name, the same weights in every process, its tokenizer."""
    source = config.model
    if source == TINY:
        source = runtime.broadcast_from_main(
            lambda: str(tiny_base(config.dataset, verifiers, runtime.single_process(), progress))
        )
    nf4 = getattr(torch, config.computing_dtype) if config.lora_base == "nf4" else None
    rounded = config.rounds_base(runtime.device.type)
    family = family_of(source)
    model, tokenizer = family.load(source, runtime.device, nf4=nf4, rounded=rounded)
    runtime.require_equal(model, config.model)
    choose_template(tokenizer, config.chat_template)
    return source, family, model, tokenizer


def open_records(
    config: RunConfig, runtime: Runtime, tokenizer: PreTrainedTokenizerBase, step: int, found: dict[str, Any]
) -> RunRecords | None:
    """In the first process, which writes; what was written after `step` is taken back, and a resumed run's own options are written.
    found: what config.json tells beside options."""
    assert config.run_dir is not None
    records = None
    if runtime.is_main:
        with writing(config.run_dir):
            write_config(config.run_dir, config, found)
            records = RunRecords(config.run_dir, keep_through=step or -1, tokenizer=tokenizer)
    runtime.wait()
    return records


def probe_texts(
    run_dir: Path | None, sampler: Sampler, renderer: PromptRenderer, problems: Sequence[Problem], seed: int
) -> list[Text]:
    """What deliveries are proved on: short samples of the model that the run starts from, the same for the whole run, resumed or not."""
    assert run_dir is not None
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


def require_shardable(config: RunConfig) -> None:
    algorithm = config.chosen_algorithm()
    own_critic = algorithm.value_rule is not None and algorithm.critic != "shared"
    for name, value, is_in_the_way in (
        ("value", config.value or algorithm.critic, own_critic),
        ("lora_base", config.lora_base, config.lora_base in ("bfloat16", "nf4")),
        ("reference_dtype", config.reference_dtype, config.reference_dtype == "bfloat16"),
        ("optimizer", config.optimizer, config.optimizer != "adamw"),
        ("gradient_dtype", config.gradient_dtype, config.gradient_dtype != "float32"),
        ("offload", config.offload, config.offload != "none"),
    ):
        if is_in_the_way:
            raise UserError(
                f"{name} is {value!r}: it is unavailable with weights that FSDP2 shards over the processes; use --multi_gpu, with the "
                "whole model in each process (docs/scale.md; in place of --offload sharded weights have --fsdp_offload_params true)"
            )


def tiny_base(dataset: str, verifiers: Verifiers, runtime: Runtime, progress: Progress) -> Path:
    """The model warm-started on the built-in task that goes with the run's data, whatever the run's own options are."""
    task = tiny_task(dataset)
    recipe = WarmStart(dataset=task, **{k: TINY_DEFAULTS[task][k] for k in ("max_tokens", "eval_size")})
    return warm_started(recipe, verifiers, runtime, progress)
