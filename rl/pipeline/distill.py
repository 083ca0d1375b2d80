"""DeepSeek-R1's distillation (arXiv 2501.12948, section 2.4): SFT of a student on the correct samples of a teacher, then RL if it is asked for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from rewards.errors import UserError
from rl.command.evaluate_model import run_of
from rl.pipeline.pipeline import Pipeline, RejectionOptions, SupervisedOptions, folder_of, some_of, with_model_defaults
from rl.pipeline.stages import Stage
from rl.policy.load import require_folder
from rl.settings.config import RunConfig
from rl.settings.declare import require_possible
from rl.settings.options import CensusOptions
from rl.view.progress import Progress

STAGES = ("samples", "sft", "rl")
SAMPLES, SFT, RL = STAGES
RUN_DEFAULTS = {"algorithm": "grpo"}
OF_PROMPTS = ("answer_form", "prompt_style", "system_prompt", "max_tokens")


@dataclass(frozen=True, kw_only=True)
class DistillOptions(SupervisedOptions, RejectionOptions):
    """Options of the pipeline beside those of its runs."""

    stages: Annotated[tuple[str, ...], some_of(STAGES)] = (SAMPLES, SFT)
    """Stages to run, in this order: samples (of samples_from, correct and readable ones kept), sft (of model on them), rl (from sft; the
    paper leaves it to others). One that is done already is not run again."""
    samples_from: str | None = None
    """The teacher whose completions model learns, named as model is: a checkpoint of a run is sampled as its run sampled it. Its tokenizer
    may be another than the student's."""

    def __post_init__(self) -> None:
        require_possible(self, declared_in=DistillOptions)


def run_distillation(config: RunConfig, options: DistillOptions) -> Path:
    """Runs the stages and writes report.md. config: its model is the student; the stage rl has all of it."""
    if options.samples_from is None:
        raise UserError(
            "samples_from is None: it names the teacher; give a checkpoint, a folder in Hugging Face format or a hub name"
        )
    require_folder(options.samples_from, "samples_from")
    filled = with_model_defaults(asked_as(options.samples_from, config))
    pipeline = Distillation(config=filled, options=options, out=folder_of(config, "distill"))
    return pipeline.run(STAGES, options.stages, f"{config.model} learns from samples of {options.samples_from}")


def asked_as(teacher: str, config: RunConfig) -> RunConfig:
    """The student's run, asked as the run of the teacher's checkpoint was where its own options do not say otherwise: it learns answers to
    these prompts, of this length."""
    run = run_of(CensusOptions(model=teacher, dataset=" ".join(config.dataset)))
    return replace(config, **{name: run.get(name) for name in OF_PROMPTS if getattr(config, name) is None})


@dataclass(frozen=True, kw_only=True)
class Distillation(Pipeline):
    """The stages of distillation."""

    options: DistillOptions

    def stage(self, name: str, progress: Progress) -> Stage:
        if name == SAMPLES:
            assert self.options.samples_from is not None
            return self.rejection(name, self.options.samples_from, "the teacher", self.options, progress)
        if name == SFT:
            return self.supervised(name, self.kept_rows(SAMPLES), self.options)
        return self.reinforced(name, SFT)
