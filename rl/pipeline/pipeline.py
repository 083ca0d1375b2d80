"""What the pipelines have in common: one configuration, held-out problems that stay the same, and stages of SFT, RL and rejection."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from rewards.errors import UserError, first_line
from rl.command.census import problem_row, write_rows
from rl.command.evaluate_model import run_of, with_values_of
from rl.pipeline.rejection import Kept, reject
from rl.pipeline.stages import (
    Found,
    Stage,
    checkpoint_of,
    require_same,
    run_stages,
    state_of,
    table,
    training,
)
from rl.policy.merge import merge_adapters
from rl.run.load_data import joined, load_data, load_eval_dataset
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
# Options that decide which problems there are, and under which columns they are read.
OF_DATA = ("dataset", "dataset_config", "dataset_split", "eval_dataset", "eval_config", "eval_split")
OF_DATA += ("prompt_column", "answer_column", "system_column", "reward")


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
        if os.environ.get("WORLD_SIZE", "1") != "1":
            raise UserError(
                "num_processes is more than 1: the stages of a pipeline run in one process; start it with python, without accelerate launch"
            )
        for name in ("tools", "environment"):
            if getattr(self.config, name):
                raise UserError(
                    f"{name} is {getattr(self.config, name)!r}: the stages of a pipeline have one turn; leave it out, or give the runs one by one"
                )
        try:
            (self.out / "data").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"run_dir is {str(self.out)!r}: it cannot be written in ({first_line(error)}); name a folder that can"
            ) from None
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
        folder = self.ended(stage)
        checkpoint, merged = checkpoint_of(folder), folder / "merged"
        if self.config.lora_rank == 0:
            return str(checkpoint)
        return str(merged if merged.exists() else merge_adapters(checkpoint, merged))

    def ended(self, stage: str) -> Path:
        """The folder of a stage that is done. Raises UserError for one that is not."""
        folder = self.out / stage
        if "found" not in state_of(folder):
            raise UserError(
                f"stages leaves out {stage}: a later stage begins with it, and in {str(self.out)!r} it is not done; name it in stages too"
            )
        return folder

    def with_held_out(self) -> RunConfig:
        """The run with held-out problems that are the same in every stage, from a file that is written once."""
        settings = resolve(self.config, "cpu")

        def make() -> list[list[Problem]]:
            has_own = self.config.has_eval_data
            found = load_eval_dataset(settings) if has_own else load_data(settings)[1]
            # What is evaluated, and what is only not trained on.
            return [list(self.asked(part)) for part in (found[: settings.eval_size], found[settings.eval_size :])]

        path, counts = self.file(HELD_OUT, {"eval_size": settings.eval_size}, make)
        return replace(self.config, eval_dataset=str(path), eval_config=None, eval_split=None, eval_size=counts[0])

    def asked(self, problems: Iterable[Problem]) -> Iterable[Problem]:
        """The problems in the prompts of this pipeline."""
        return problems

    def file(
        self, name: str, options: Mapping[str, Any], make: Callable[[], Sequence[Sequence[Problem]]]
    ) -> tuple[Path, list[int]]:
        """A data set in the folder data, which is made once of the data and these options, and the numbers of problems of its parts.
        Raises UserError if it was made of others."""
        path = self.out / "data" / name
        made = path.with_suffix(".json")
        told = as_json({option: getattr(self.config, option) for option in OF_DATA} | dict(options))
        if not made.exists():
            parts = make()
            write_problems(path, [problem for part in parts for problem in part], self.config)
            write_whole(made, json.dumps({"options": told, "problems": list(map(len, parts))}, indent=2) + "\n")
        written = json.loads(made.read_text(encoding="utf-8"))
        require_same(written["options"], told, path)
        return path, written["problems"]

    def training_problems(self) -> list[Problem]:
        """Those of every data set that has a weight, without held-out ones."""
        return joined([source for source in load_data(resolve(self.config, "cpu"))[0] if source.weight > 0])

    def reinforced(self, name: str, start: str | None, config: RunConfig | None = None) -> Stage:
        """RL from the model of the stage `start`. config: where it is not the pipeline's own."""
        config = replace(config or self.with_held_out(), model=self.model_of(start))
        return training(name, f"{config.named_algorithm.name} from {start or 'the base'}", config)

    def kept_rows(self, of: str) -> Path:
        """The rows that a stage wrote."""
        return self.ended(of) / ROWS

    def supervised(self, name: str, dataset: str | Path, options: SupervisedOptions) -> Stage:
        """SFT of the base on the data set's worked solutions."""
        is_tiny = self.config.model == TINY
        rate = (2e-3 if is_tiny else 1e-5) * (LORA_RATE if self.config.lora_rank else 1)
        steps = options.sft_steps or (self.tiny_sft_steps if is_tiny else 200)
        defaults = {f.name: f.default for f in fields(RunConfig)}
        own = {name: defaults[name] for name in OF_SAMPLES} | {
            "algorithm": "sft",
            "num_steps": steps,
            "eval_every": steps,
            "learning_rate": options.sft_learning_rate or rate,
        }
        config = replace(on_rows(self.with_held_out(), dataset), **own)
        return training(name, f"SFT of the base on {Path(dataset).name}", config)

    def rejection(self, name: str, model: str, of_model: str, options: RejectionOptions, progress: Progress) -> Stage:
        """Samples of the training problems from the model, correct and readable ones kept. of_model: what the report calls it."""
        census = self.census(model, options.samples)
        kept = Kept(per_problem=options.per_problem, formats=self.config.format)

        def make(folder: Path) -> Found:
            problems = self.training_problems()[: options.problems]
            return reject(census, problems, kept, folder / ROWS, progress, partial(in_columns, config=self.config))

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
            sampler="vllm" if config.sampler == "vllm" else "torch",
            # How it is graded is never the other run's.
            answer_form=config.answer_form,
            reward=config.reward,
            grading=config.grading,
            verifier_deadline=config.verifier_deadline,
            chat_template=config.chat_template if model == config.model else None,
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


def on_rows(config: RunConfig, dataset: str | Path) -> RunConfig:
    """The run on this data set, which is no configuration or split of the pipeline's own."""
    return replace(config, dataset=(str(dataset),), dataset_config=None, dataset_split="train")


def write_problems(path: Path, problems: Sequence[Problem], config: RunConfig | None = None) -> None:
    """A data set of the problems, under the columns that the run reads, else under their usual names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = map(problem_row, problems)
    write_rows(path, rows if config is None else (in_columns(row, config) for row in rows))


def in_columns(row: dict[str, Any], config: RunConfig) -> dict[str, Any]:
    """A row with its prompt and its answer under the columns that the run names for them."""
    named = {"prompt": config.prompt_column, "answer": config.answer_column}
    moved = {own: row[name] for name, own in named.items() if own is not None and name in row}
    return {key: value for key, value in row.items() if named.get(key) is None} | moved
