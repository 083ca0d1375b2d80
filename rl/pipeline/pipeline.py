"""What the pipelines have in common: one configuration, held-out problems that stay the same, and stages of SFT, RL and rejection."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any

from rewards.errors import UserError
from rl.command.census import problem_row, write_rows
from rl.command.evaluate_model import run_of, with_values_of
from rl.pipeline.rejection import Kept, reject
from rl.pipeline.stages import Found, Stage, checkpoint_of, run_stages, table, training
from rl.policy.merge import merge_adapters
from rl.run.load_data import joined, load_data
from rl.settings.checks import CRITIC_OPTIONS, ITERATIVE_OPTIONS, THINKING_OPTIONS
from rl.settings.config import OF_ALGORITHM, RunConfig
from rl.settings.declare import POSITIVE, Bound, at_least
from rl.settings.defaults import LORA_RATE, TINY
from rl.settings.options import CensusOptions
from rl.settings.resolve import resolve, run_defaults
from rl.view.metrics import read_metrics, write_whole
from rl.view.plots import stages_figure
from rl.view.progress import Progress
from rollout.records import Problem

HELD_OUT, ROWS, REPORT, FIGURE = "held_out.jsonl", "rows.jsonl", "report.md", "stages.png"
# Options of a run that supervised fine-tuning has no use for.
OF_SAMPLES = (*OF_ALGORITHM, *CRITIC_OPTIONS, *THINKING_OPTIONS, *ITERATIVE_OPTIONS, "thinking_budget", "group_size")
OF_SAMPLES += ("max_refills", "one_step_ahead", "teacher", "difficulty", "reward_normalization")
OF_SAMPLES += ("reward_model", "reward_model_weight", "reward_model_every")


def some_of(stages: Sequence[str]) -> Bound:
    """The bound of the option that names stages to run."""
    return Bound(lambda names: names and set(names) <= set(stages), f"among {', '.join(stages)}")


@dataclass(frozen=True, kw_only=True)
class SupervisedOptions:
    """Options of the supervised stages, beside those of the runs."""

    sft_steps: Annotated[int | None, at_least(1)] = None
    """Steps of each supervised stage. Default: 200; for the tiny model 60, or as many as the pipeline's own task needs."""
    sft_learning_rate: Annotated[float | None, POSITIVE] = None
    """Learning rate of the supervised stages. Default: 2e-3 for the tiny model, 1e-5 for others, as for R1's distilled models; with LoRA
    ten times that."""


@dataclass(frozen=True, kw_only=True)
class RejectionOptions:
    """Options of a stage that samples completions and keeps the correct and readable ones."""

    samples: Annotated[int, at_least(1)] = 8
    """Completions sampled of each problem."""
    per_problem: Annotated[int, at_least(1)] = 2
    """The most of them that are kept of one problem."""
    problems: Annotated[int | None, at_least(1)] = None
    """Problems that are sampled, the first of the training data. Default: all."""


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """Stages of one folder, each made when the one before it is done. config: of every RL stage, with the model's defaults; the
    supervised stages have its model, prompts and rewards."""

    config: RunConfig
    out: Path
    tiny_sft_steps: int = 60

    def stage(self, name: str, progress: Progress) -> Stage:
        raise NotImplementedError

    def run(self, names: Sequence[str], chosen: Sequence[str], title: str) -> Path:
        """Runs the chosen stages in the order of the names, and writes and prints report.md. -> its path."""
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise UserError(
                "num_processes is more than 1: the stages of a pipeline run in one process; start it with python, without accelerate launch"
            )
        with Progress(0) as progress:
            stages: Iterator[Stage] = (self.stage(name, progress) for name in names if name in chosen)
            run_stages(stages, self.out, progress.message)
        shown = f"# {title}\n\n{table(names, self.out)}\n"
        runs = {name: self.out / name for name in names if read_metrics(self.out / name)}
        if runs:
            stages_figure(runs, self.out / FIGURE)
        picture = f"\n![accuracy, reward and length by step, stage by stage]({FIGURE})\n" if runs else ""
        write_whole(self.out / REPORT, shown + picture)
        print(shown)
        return self.out / REPORT

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
            write_problems(path, self.held_out())
        with path.open(encoding="utf-8") as rows:
            return replace(self.config, eval_dataset=str(path), eval_size=sum(1 for _ in rows))

    def held_out(self) -> Sequence[Problem]:
        return load_data(resolve(self.config, "cpu"))[1]

    def training_problems(self) -> list[Problem]:
        return joined(load_data(resolve(self.with_held_out(), "cpu"))[0])

    def reinforced(self, name: str, start: str | None, config: RunConfig | None = None) -> Stage:
        """RL from the model of the stage `start`. config: where it is not the pipeline's own."""
        config = replace(config or self.with_held_out(), model=self.model_of(start))
        return training(name, f"{config.named_algorithm.name} from {start or 'the base'}", config)

    def kept_rows(self, of: str, needed_by: str) -> Path:
        """The rows that a stage wrote. Raises UserError if it has not."""
        rows = self.out / of / ROWS
        if not rows.exists():
            raise UserError(
                f"stages leaves out {of}: {needed_by} trains on what it keeps, and {str(self.out)!r} has none of it; name it in stages too"
            )
        return rows

    def supervised(self, name: str, dataset: str | Path, options: SupervisedOptions) -> Stage:
        """SFT of the base on the data set's worked solutions."""
        is_tiny = self.config.model == TINY
        rate = (2e-3 if is_tiny else 1e-5) * (LORA_RATE if self.config.lora_rank else 1)
        steps = options.sft_steps or (self.tiny_sft_steps if is_tiny else 200)
        defaults = {f.name: f.default for f in fields(RunConfig)}
        own = {name: defaults[name] for name in OF_SAMPLES} | {
            "algorithm": "sft",
            "dataset": (str(dataset),),
            "num_steps": steps,
            "eval_every": steps,
            "learning_rate": options.sft_learning_rate or rate,
        }
        return training(name, f"SFT of the base on {Path(dataset).name}", replace(self.with_held_out(), **own))

    def rejection(self, name: str, model: str, of_model: str, options: RejectionOptions, progress: Progress) -> Stage:
        """Samples of the training problems from the model, correct and readable ones kept. of_model: what the report calls it."""
        census = self.census(model, options.samples)
        kept = Kept(per_problem=options.per_problem, formats=self.config.format)

        def make(folder: Path) -> Found:
            return reject(census, self.training_problems()[: options.problems], kept, folder / ROWS, progress)

        told = {**vars(census), "per_problem": kept.per_problem, "formats": kept.formats, "problems": options.problems}
        return Stage(
            name=name,
            does=f"{options.samples} samples of each problem from {of_model}, correct and readable ones kept",
            options=as_json(told),
            make=make,
        )

    def census(self, model: str, samples: int) -> CensusOptions:
        """How completions of a model are sampled between runs: the base as the options say, a checkpoint of a run as its run did."""
        config = self.config
        asked = CensusOptions(
            model=model,
            dataset=" ".join(config.dataset),
            samples=samples,
            temperature=config.temperature,
            dtype=config.dtype,
            device=config.device,
            seed=config.seed,
            allow_unsafe_code=config.allow_unsafe_code,
        )
        run = {} if model == config.model else run_of(asked)
        return with_values_of(run or vars(config), asked)


def with_model_defaults(config: RunConfig, **of_tiny: object) -> RunConfig:
    """The options with the model's own defaults filled in: a later stage starts from a checkpoint, which has no name. of_tiny: defaults
    of the pipeline for the tiny model."""
    filled = {name: value for name, value in run_defaults(config).items() if getattr(config, name) is None}
    for name in ("run_dir", "gradient_checkpointing"):  # of each stage, as its memory allows
        filled.pop(name, None)
    if config.model == TINY:
        filled |= {name: value for name, value in of_tiny.items() if getattr(config, name) is None}
    return replace(config, **filled)


def as_json(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options as they are read back from a stage's file."""
    return json.loads(json.dumps(options, default=str))


def folder_of(config: RunConfig, pipeline: str) -> Path:
    """The pipeline's folder: run_dir, or one that the options name, so that the same command finds it again."""
    named = f"{pipeline}-{Path(config.model).name}-{config.datasets[0].stem}-seed{config.seed}"
    return config.run_dir or Path("runs") / named


def write_problems(path: Path, problems: Sequence[Problem]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_rows(path, map(problem_row, problems))
