"""DeepSeek-R1's stages (arXiv 2501.12948, section 2): cold start, RL, rejection sampling, SFT of the base, RL again; and R1-Zero."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated

from rewards.errors import UserError
from rl.command.census import problem_row, write_rows
from rl.pipeline.rejection import Kept, reject
from rl.pipeline.stages import Found, Stage, checkpoint_of, run_stages, table, training
from rl.policy.merge import merge_adapters
from rl.run.load_data import joined, load_data
from rl.settings.checks import CRITIC_OPTIONS, ITERATIVE_OPTIONS, THINKING_OPTIONS
from rl.settings.config import OF_ALGORITHM, RunConfig
from rl.settings.declare import POSITIVE, Bound, at_least, require_possible
from rl.settings.defaults import LORA_RATE, TINY
from rl.settings.options import CensusOptions
from rl.settings.resolve import resolve, run_defaults
from rl.view.metrics import write_whole
from rl.view.progress import Progress
from rollout.records import SOLUTION, Problem

STAGES = ("zero", "cold-start", "rl", "rejection", "sft", "final-rl")
ZERO, COLD_START, FIRST_RL, REJECTION, SFT, FINAL_RL = STAGES
ORDER = Bound(lambda names: names and set(names) <= set(STAGES), f"among {', '.join(STAGES)}")
HELD_OUT, COLD_START_FILE, ROWS = "held_out.jsonl", "cold_start.jsonl", "rows.jsonl"
REPORT = "report.md"
TRACES = 1024
BUILT_IN = ("arithmetic",)
# Options of a run that supervised fine-tuning has no use for.
OF_SAMPLES = (*OF_ALGORITHM, *CRITIC_OPTIONS, *THINKING_OPTIONS, *ITERATIVE_OPTIONS, "thinking_budget", "group_size")
OF_SAMPLES += ("max_refills", "one_step_ahead", "teacher", "difficulty", "reward_normalization")
OF_SAMPLES += ("reward_model", "reward_model_weight", "reward_model_every")
RUN_DEFAULTS = {
    "algorithm": "grpo",
    "answer_form": "tags",
    "format": ("think-answer",),
    "gate_format": False,  # accuracy and format are rewarded apart, section 2.2.2
}


@dataclass(frozen=True, kw_only=True)
class R1Options:
    """Options of the pipeline beside those of its runs."""

    stages: Annotated[tuple[str, ...], ORDER] = STAGES[1:]
    """Stages to run, in this order: zero (R1-Zero: RL of the base), cold-start (SFT of the base on cold_start), rl, rejection (sampling
    from rl), sft (of the base on what is kept), final-rl. One that is done already is not run again."""
    cold_start: str | None = None
    """Data set of a few worked solutions in the form that format asks for. Default: for the built-in arithmetic 1,024 are made."""
    sft_steps: Annotated[int | None, at_least(1)] = None
    """Steps of each supervised stage. Default: 60 for the tiny model, 200 for others."""
    sft_learning_rate: Annotated[float | None, POSITIVE] = None
    """Learning rate of the supervised stages. Default: 2e-3 for the tiny model, 1e-5 for others, as for R1's distilled models; with LoRA
    ten times that."""
    samples: Annotated[int, at_least(1)] = 8
    """Completions that rejection samples of each problem."""
    per_problem: Annotated[int, at_least(1)] = 2
    """The most of them that it keeps of one problem."""
    problems: Annotated[int | None, at_least(1)] = None
    """Problems that rejection samples, the first of the training data. Default: all."""

    def __post_init__(self) -> None:
        require_possible(self, declared_in=R1Options)


def run_r1(config: RunConfig, options: R1Options) -> Path:
    """Runs the stages and writes report.md. config: of every RL stage; the supervised ones have its model, prompts and rewards."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(
            "num_processes is more than 1: the stages of r1 run in one process; start it with python, without accelerate launch"
        )
    out = config.run_dir or Path("runs") / f"r1-{Path(config.model).name}-{config.datasets[0].stem}-seed{config.seed}"
    pipeline = Pipeline(config=with_model_defaults(config), options=options, out=out)
    with Progress(0) as progress:
        run_stages((pipeline.stage(name, progress) for name in STAGES if name in options.stages), out, progress.message)
    shown = f"# R1's stages of {config.model} on {' '.join(config.dataset)}\n\n{table(STAGES, out)}\n"
    write_whole(out / REPORT, shown)
    print(shown)
    return out / REPORT


def with_model_defaults(config: RunConfig) -> RunConfig:
    """The options with the model's own defaults filled in: a later stage starts from a checkpoint, which has no name."""
    filled = {name: value for name, value in run_defaults(config).items() if getattr(config, name) is None}
    for name in ("run_dir", "gradient_checkpointing"):  # of each stage, as its memory allows
        filled.pop(name, None)
    if config.model == TINY and config.max_tokens is None:
        filled["max_tokens"] = 64  # the tags are 32 bytes
    if config.model != TINY and config.prompt_style is None and config.system_prompt is None:
        filled["prompt_style"] = "r1"
    return replace(config, **filled)


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """Makes the stages, each when the one before it is done. config: with the model's defaults."""

    config: RunConfig
    options: R1Options
    out: Path

    def stage(self, name: str, progress: Progress) -> Stage:
        if name == REJECTION:
            return self.rejection(progress)
        if name in (COLD_START, SFT):
            return self.supervised(name)
        start = {ZERO: None, FIRST_RL: COLD_START, FINAL_RL: SFT}[name]
        config = replace(self.with_held_out(), model=self.model_of(start))
        return training(name, f"{config.named_algorithm.name} from {start or 'the base'}", config)

    def model_of(self, stage: str | None) -> str:
        """The model that a stage ended with, adapters merged; None is the base."""
        if stage is None:
            return self.config.model
        folder = self.out / stage
        checkpoint, merged = checkpoint_of(folder), folder / "merged"
        if self.config.lora_rank == 0:
            return str(checkpoint)
        return str(merged if merged.exists() else merge_adapters(checkpoint, merged))

    def with_held_out(self) -> RunConfig:
        """The run with held-out problems that are the same in every stage: written once, unless another data set has them."""
        if self.config.has_eval_data:
            return self.config
        path = self.out / "data" / HELD_OUT
        if not path.exists():
            write_problems(path, load_data(resolve(self.config, "cpu"))[1])
        return replace(self.config, eval_dataset=str(path))

    def supervised(self, name: str) -> Stage:
        is_tiny = self.config.model == TINY
        dataset = str(self.out / REJECTION / ROWS) if name == SFT else self.cold_start()
        if name == SFT and not Path(dataset).exists():
            raise UserError(
                f"stages leaves out {REJECTION}: {SFT} trains on what it keeps, and {str(self.out)!r} has none of it; name it in stages too"
            )
        rate = (2e-3 if is_tiny else 1e-5) * (LORA_RATE if self.config.lora_rank else 1)
        steps = self.options.sft_steps or (60 if is_tiny else 200)
        defaults = {f.name: f.default for f in fields(RunConfig)}
        own = {name: defaults[name] for name in OF_SAMPLES} | {
            "algorithm": "sft",
            "dataset": (dataset,),
            "num_steps": steps,
            "eval_every": steps,
            "learning_rate": self.options.sft_learning_rate or rate,
        }
        return training(name, f"SFT of the base on {Path(dataset).name}", replace(self.with_held_out(), **own))

    def cold_start(self) -> str:
        """The data set of worked solutions; made and written once for the built-in arithmetic."""
        if self.options.cold_start is not None:
            return self.options.cold_start
        path = self.out / "data" / COLD_START_FILE
        if self.config.dataset != BUILT_IN or "think-answer" not in self.config.format:
            raise UserError(
                "cold_start is None: only the built-in arithmetic in the form think-answer has worked solutions of its own; name a data set "
                "with a column worked, or leave out the stage cold-start"
            )
        if not path.exists():
            problems = joined(load_data(resolve(self.with_held_out(), "cpu"))[0])[:TRACES]
            write_problems(path, [in_tags(problem) for problem in problems])
        return str(path)

    def rejection(self, progress: Progress) -> Stage:
        model = self.model_of(FIRST_RL)
        config, options = self.with_held_out(), self.options
        census = CensusOptions(
            model=model,
            dataset=" ".join(config.dataset),
            samples=options.samples,
            temperature=config.temperature,
            dtype=config.dtype,
            device=config.device,
            seed=config.seed,
            allow_unsafe_code=config.allow_unsafe_code,
        )
        kept = Kept(per_problem=options.per_problem, formats=config.format)

        def make(folder: Path) -> Found:
            problems = joined(load_data(resolve(config, "cpu"))[0])[: options.problems]
            return reject(census, problems, kept, folder / ROWS, progress)

        told = {**vars(census), "per_problem": kept.per_problem, "formats": kept.formats, "problems": options.problems}
        return Stage(
            name=REJECTION,
            does=f"{options.samples} samples of each problem from {FIRST_RL}, correct and readable ones kept",
            options=json.loads(json.dumps(told, default=str)),
            make=make,
        )


def in_tags(problem: Problem) -> Problem:
    """The problem with its worked solution in R1's form: the steps between think tags, the answer between answer tags."""
    steps = str(problem.metadata[SOLUTION]).rpartition("\n")[0]
    worked = f"<think>{steps}</think><answer>{problem.reference}</answer>"
    return replace(problem, metadata={**problem.metadata, SOLUTION: worked})


def write_problems(path: Path, problems: Sequence[Problem]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_rows(path, map(problem_row, problems))
