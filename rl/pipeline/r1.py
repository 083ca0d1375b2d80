"""DeepSeek-R1's stages (arXiv 2501.12948, section 2): cold start, RL, rejection sampling, SFT of the base, RL again; and R1-Zero."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from rewards.errors import UserError
from rl.pipeline.pipeline import (
    Pipeline,
    RejectionOptions,
    SupervisedOptions,
    folder_of,
    some_of,
    with_model_defaults,
)
from rl.pipeline.stages import Stage
from rl.settings.config import RunConfig
from rl.settings.declare import require_possible
from rl.settings.defaults import TINY
from rl.view.progress import Progress
from rollout.records import SOLUTION, Problem

STAGES = ("zero", "cold-start", "rl", "rejection", "sft", "final-rl")
ZERO, COLD_START, FIRST_RL, REJECTION, SFT, FINAL_RL = STAGES
COLD_START_FILE = "cold_start.jsonl"
TRACES = 1024
BUILT_IN = ("arithmetic",)
RUN_DEFAULTS = {
    "algorithm": "grpo",
    "answer_form": "tags",
    "format": ("think-answer",),
    "gate_format": False,  # accuracy and format are rewarded apart, section 2.2.2
}


@dataclass(frozen=True, kw_only=True)
class R1Options(SupervisedOptions, RejectionOptions):
    """Options of the pipeline beside those of its runs."""

    stages: Annotated[tuple[str, ...], some_of(STAGES)] = STAGES[1:]
    """Stages to run, in this order: zero (R1-Zero: RL of the base), cold-start (SFT of the base on cold_start), rl, rejection (sampling
    from rl), sft (of the base on what is kept), final-rl. One that is done already is not run again."""
    cold_start: str | None = None
    """Data set of a few worked solutions in the form that format asks for. Default: for the built-in arithmetic 1,024 are made."""

    def __post_init__(self) -> None:
        require_possible(self, declared_in=R1Options)


def run_r1(config: RunConfig, options: R1Options) -> Path:
    """Runs the stages and writes report.md. config: of every RL stage; the supervised ones have its model, prompts and rewards."""
    filled = with_model_defaults(config, max_tokens=64)  # the tags are 32 bytes
    if config.model != TINY and config.prompt_style is None and config.system_prompt is None:
        filled = replace(filled, prompt_style="r1")
    pipeline = R1(config=filled, options=options, out=folder_of(config, "r1"))
    return pipeline.run(STAGES, options.stages, f"R1's stages of {config.model} on {' '.join(config.dataset)}")


@dataclass(frozen=True, kw_only=True)
class R1(Pipeline):
    """The stages of R1."""

    options: R1Options

    def stage(self, name: str, progress: Progress) -> Stage:
        if name == REJECTION:
            return self.rejection(name, self.model_of(FIRST_RL), FIRST_RL, self.options, progress)
        if name == COLD_START:
            return self.supervised(name, self.cold_start(), self.options)
        if name == SFT:
            return self.supervised(name, self.kept_rows(REJECTION), self.options)
        return self.reinforced(name, {ZERO: None, FIRST_RL: COLD_START, FINAL_RL: SFT}[name])

    def cold_start(self) -> str:
        """The data set of worked solutions; made and written once for the built-in arithmetic."""
        if self.options.cold_start is not None:
            return self.options.cold_start
        if self.config.dataset != BUILT_IN or "think-answer" not in self.config.format:
            raise UserError(
                "cold_start is None: only the built-in arithmetic in the form think-answer has worked solutions of its own; name a data set "
                "with a column worked, or leave out the stage cold-start"
            )
        return str(self.file(COLD_START_FILE, {}, lambda: [list(map(in_tags, self.training_problems()[:TRACES]))])[0])


def in_tags(problem: Problem) -> Problem:
    """The problem with its worked solution in R1's form: the steps between think tags, the answer between answer tags."""
    steps = str(problem.metadata[SOLUTION]).rpartition("\n")[0]
    worked = f"<think>{steps}</think><answer>{problem.reference}</answer>"
    return replace(problem, metadata={**problem.metadata, SOLUTION: worked})
