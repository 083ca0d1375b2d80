"""`plumbline evaluate --suite`: samples published test sets one after another, into a folder from which a further call goes on."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from rewards.errors import UserError
from rewards.extract import AnswerForm
from rl.command.evaluate_model import opened, run_of
from rl.command.suite_results import Journal, SetResult, measured, record_of, write_results
from rl.policy.load import require_folder
from rl.run.evaluate import VOTED_ON
from rl.settings.checks import THINKING_OPTIONS
from rl.settings.defaults import TINY, resolved_dtype
from rl.settings.options import EvaluateOptions
from rl.view.progress import Progress
from rollout.collect import Collector
from rollout.published.load import Loaded, NotThere, load_set
from rollout.published.sets import SETS, named_sets
from rollout.records import Problem

# A checkpoint's run says how it is sampled. How it is asked and graded says the set, so that models can be compared.
FROM_RUN = ("max_tokens", "stop_strings")
# Options that have no meaning beside published sets, or would change what is measured.
REFUSED = (
    "dataset",
    "dataset_config",
    "split",
    "reward",
    "tools",
    "environment",
    "tool_format",
    "max_turns",
    "tool_deadline",
)
REFUSED += (
    "tool_workers",
    "python_state",
    "thinking_budget",
    "thinking_budgets",
    *THINKING_OPTIONS,
    "figure",
    "against",
    "ngram",
)
RECORDED = (
    "temperature",
    "seed",
    "prompt_style",
    "system_prompt",
    "answer_form",
    "grading",
    "verifier_deadline",
    "sampler",
)
PACKAGES = ("numpy",)  # which EvalPlus's tests import
WEIGHTS = (".safetensors", ".bin")
# Completions that are sampled, graded and written together. A call that was interrupted goes on at one of these bounds, so that each
# problem has the same neighbours in the engine as without the interruption, and its log-probs are the same bits.
AT_ONCE = {"cpu": 32, "accelerator": 1024}


def evaluate_suite(options: EvaluateOptions, progress: Progress) -> tuple[list[SetResult], dict[str, str]]:
    """(the results of the sets that are there, the others with the reason). Everything is written to options.out as it comes."""
    names = require_suite(options)
    loaded, absent = load_sets(names, options, progress)
    run, most = run_of(options), max(num_samples(name, options) for name in loaded)
    options = replace(options, **{name: run.get(name) for name in FROM_RUN if getattr(options, name) is None})
    assert options.out is not None
    options.out.mkdir(parents=True, exist_ok=True)
    results: list[SetResult] = []
    everything = [problem for one in loaded.values() for problem in one.problems]
    with opened(replace(options, samples=most), None, everything, "suite", progress, PACKAGES) as (collector, kept):
        of_model = model_settings(options, collector)
        all_planned = [plan(name, loaded[name], kept, of_model, options, collector) for name in loaded]
        try:
            for planned in all_planned:
                sample(planned, AT_ONCE["cpu" if device_of(options) == "cpu" else "accelerator"], progress)
                results.append(result_of(planned, options.answer_form))
                write_results(options.out, results, absent)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"interrupted; what is done is in {options.out}, and the same command goes on from there"
            ) from None
    return results, absent


def require_suite(options: EvaluateOptions) -> list[str]:
    """The names of the sets. Raises UserError for options that a suite does not go with."""
    names = named_sets(options.suite or ())
    default = {field.name: field.default for field in fields(options) if field.default is not MISSING}
    for name in REFUSED:
        if getattr(options, name) != default[name]:
            raise UserError(
                f"{name} is {getattr(options, name)!r}: a suite has its own problems, prompts and verifiers; leave out {name} or suite"
            )
    if options.model == TINY:
        raise UserError(
            "model is 'tiny': it has learnt nothing but its own tasks; name a pretrained model, or leave out suite"
        )
    if options.temperature == 0 and options.samples > 1:
        raise UserError(
            f"samples is {options.samples}: at temperature 0 all of them are the same; set samples 1, or a temperature"
        )
    if options.suite_files is not None and not options.suite_files.is_dir():
        raise UserError(f"suite_files is {str(options.suite_files)!r}: there is no such folder; give an existing one")
    require_folder(options.model)
    return names


def num_samples(name: str, options: EvaluateOptions) -> int:
    """Completions of each problem of the set."""
    return options.samples or (1 if options.temperature == 0 else SETS[name].samples)


def load_sets(
    names: Sequence[str], options: EvaluateOptions, progress: Progress
) -> tuple[dict[str, Loaded], dict[str, str]]:
    """(the problems of each set, the reason for each set that is not there). Raises UserError if none is."""
    loaded: dict[str, Loaded] = {}
    absent: dict[str, str] = {}
    for name in names:
        try:
            loaded[name] = load_set(name, options.suite_files, options.size)
        except NotThere as error:
            absent[name] = str(error)
            progress.message(f"{name} is not there: {error}")
    if not loaded:
        raise UserError(
            f"suite is {' '.join(names)!r}: none of these sets is there; without a network put them, as they are published, into a folder "
            f"as {names[0]}.jsonl and so on, and name it with suite_files"
        )
    return loaded, absent


def model_settings(options: EvaluateOptions, collector: Collector) -> dict[str, Any]:
    """What every set's completions depend on, as it is recorded."""
    device = device_of(options)
    packages = ("plumbline-rl", "torch", "transformers", *(("vllm",) if options.sampler == "vllm" else ()))
    template = str(collector.renderer.tokenizer.chat_template)
    return {
        "model": options.model,
        "revision": revision(options.model),
        **{name: getattr(options, name) for name in RECORDED},
        "max_tokens": collector.params.max_tokens,
        "max_prompt_tokens": options.max_prompt_tokens,
        "top_p": collector.params.top_p,
        "stop_strings": collector.params.stop_strings,
        "chat_template_sha256": hashlib.sha256(template.encode()).hexdigest(),
        "dtype": resolved_dtype(options.dtype, options.model, options.device),
        "device": torch.cuda.get_device_name() if device == "cuda" else device,
        **{f"{name} version": _version(name) for name in packages},
    }


def device_of(options: EvaluateOptions) -> str:
    """The kind of accelerator, "cpu" without one."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return accelerator.type if accelerator is not None and options.device == "auto" else "cpu"


def _version(package: str) -> str | None:
    """None where the package runs from its source, or goes by another name as vLLM's build for CPUs does."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def revision(model: str) -> str | None:
    """A hub model's commit; for a folder the SHA-256 of its weights, and of its adapters' configuration, which names their base."""
    folder = Path(model).expanduser()
    if not folder.is_dir():
        return getattr(AutoConfig.from_pretrained(model), "_commit_hash", None)
    found = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix in WEIGHTS or path.name == "adapter_config.json":
            with path.open("rb") as file:
                found.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return found.hexdigest()


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A set whose problems are sampled: those that can be, how many are left out, and a journal of those that are done."""

    name: str
    problems: Sequence[Problem]
    left_out: int
    collector: Collector
    journal: Journal

    @property
    def k(self) -> int:
        return self.collector.group_size

    @property
    def verifier(self) -> str:
        return next((problem.verifier for problem in self.problems), "")


def plan(
    name: str,
    loaded: Loaded,
    kept: Sequence[Problem],
    of_model: Mapping[str, Any],
    options: EvaluateOptions,
    collector: Collector,
) -> Planned:
    """kept: the problems of all sets that can be graded. Raises UserError if the set's journal was written with other settings."""
    own = {problem.id for problem in loaded.problems}
    problems = [problem for problem in kept if problem.id in own]
    collector = replace(collector, group_size=num_samples(name, options))
    settings = {
        **of_model,
        "set": name,
        "source": loaded.source,
        "licence": SETS[name].licence,
        "samples": collector.group_size,
        "problems": len(problems),
        "problems_sha256": digest(problems),
        "first_prompt": rendered(collector, problems[0]) if problems else None,
    }
    assert options.out is not None
    journal = Journal(options.out / f"{name}.jsonl", settings)
    return Planned(
        name=name, problems=problems, left_out=len(own) - len(problems), collector=collector, journal=journal
    )


def sample(planned: Planned, at_once: int, progress: Progress) -> None:
    """Samples the problems that the journal does not have, about `at_once` completions at a time."""
    problems, journal, chunk = planned.problems, planned.journal, max(1, at_once // planned.k)
    done = len(journal.records)
    journal.keep(done if done == len(problems) else done // chunk * chunk)
    for start in range(len(journal.records), len(problems), chunk):
        progress.start(f"{planned.name}: {start} of {len(problems)} problems, {planned.k} samples of each")
        groups = planned.collector.collect(problems[start : start + chunk], step=0).groups
        journal.add([record_of(group) for group in groups])


def result_of(planned: Planned, form: AnswerForm | None) -> SetResult:
    return measured(
        planned.name,
        planned.journal,
        k=planned.k,
        left_out=planned.left_out,
        voted=planned.verifier in VOTED_ON,
        form=form if planned.verifier == "math" else None,
    )


def rendered(collector: Collector, problem: Problem) -> str:
    """The prompt as the model reads it."""
    return str(collector.renderer.tokenizer.decode(list(collector.renderer.render(problem))))


def digest(problems: Sequence[Problem]) -> str:
    """SHA-256 of what is asked and of what is right."""
    found = hashlib.sha256()
    for problem in problems:
        found.update(json.dumps([problem.id, problem.prompt, problem.verifier, problem.reference]).encode())
    return found.hexdigest()
