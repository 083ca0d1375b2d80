"""DeepSeek-Prover's RL: statements of a middle pass rate, each asked with and without its natural-language part.

As DeepSeek-Prover-V1.5 (arXiv 2408.08152, section 2.3): SFT on proofs, then GRPO on the statements that the SFT model proves in some of
several attempts, so that a group has a proof and a failure to compare, with a binary reward by the prover. Each statement is asked in both
of its prompts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from rewards.errors import UserError
from rl.command.census import Profiled, as_row, profiled, write_rows
from rl.command.evaluate_model import opened
from rl.pipeline.pipeline import (
    ROWS,
    Pipeline,
    SupervisedOptions,
    as_json,
    folder_of,
    in_columns,
    on_rows,
    some_of,
    with_model_defaults,
)
from rl.pipeline.stages import Found, Stage, state_of
from rl.run.build import with_environments
from rl.run.load_data import joined, load_data
from rl.settings.config import RunConfig
from rl.settings.declare import Bound, at_least, require_possible
from rl.settings.defaults import LORA_RATE
from rl.settings.resolve import resolve
from rl.view.progress import Progress
from rollout.problem_memory import parse_difficulty
from rollout.records import INFORMAL, SOLUTION, Problem

STAGES = ("sft", "filter", "rl")
SFT, FILTER, RL = STAGES
STATEMENTS, PROOFS = "statements.jsonl", "proofs.jsonl"
RUN_DEFAULTS = {"algorithm": "grpo", "dataset": "theorems"}
RATES = Bound(partial(parse_difficulty, option="pass_rates"), "LOW:HIGH")
Informal = Literal["with", "without", "both"]


@dataclass(frozen=True, kw_only=True)
class ProverOptions(SupervisedOptions):
    """Options of the pipeline beside those of its runs."""

    stages: Annotated[tuple[str, ...], some_of(STAGES)] = STAGES
    """Stages to run, in this order: sft (of the base on the proofs in the column worked), filter (pass rates of the statements, those
    within pass_rates kept), rl (on what is kept). Without sft the base is filtered and trained. One that is done already is not run again."""
    informal: Informal = "both"
    """Whether prompts begin with the natural-language part, the column informal: with, without, or each statement in both prompts."""
    samples: Annotated[int, at_least(1)] = 8
    """Attempts at each prompt, from which filter takes its pass rate."""
    pass_rates: Annotated[str, RATES] = "0.1:0.9"
    """Pass rates that filter keeps, LOW:HIGH. 0:1 keeps all, also those whose attempts could not be graded."""
    problems: Annotated[int | None, at_least(1)] = None
    """Statements that are used, the first of the training data. Default: all."""
    proofs: Annotated[int | None, at_least(1)] = None
    """Statements whose proofs sft learns, the first that have one. Default: all."""

    def __post_init__(self) -> None:
        require_possible(self, declared_in=ProverOptions)


def run_prover(config: RunConfig, options: ProverOptions) -> Path:
    """Runs the stages and writes report.md. config: of the stage rl; the supervised one has its model, prompts and rewards."""
    rate = 2e-4 * (LORA_RATE if config.lora_rank else 1)
    filled = with_model_defaults(config, max_tokens=64, learning_rate=rate, num_steps=60)
    pipeline = Prover(config=filled, options=options, out=folder_of(config, "prover"))
    if options.informal == "with":
        pipeline.require_words()
    return pipeline.run(STAGES, options.stages, f"{config.model} proves {' '.join(config.dataset)}")


@dataclass(frozen=True, kw_only=True)
class Prover(Pipeline):
    """The stages of the prover."""

    options: ProverOptions
    tiny_sft_steps: int = 280

    def stage(self, name: str, progress: Progress) -> Stage:
        if name == SFT:
            return self.supervised(name, self.proofs(), self.options)
        if name == FILTER:
            return self.filter(progress)
        statements = on_rows(self.with_held_out(), self.kept_rows(FILTER))
        return self.reinforced(name, self.start, statements)

    @property
    def start(self) -> str | None:
        """The stage whose model is filtered and trained; None is the base."""
        return SFT if SFT in self.options.stages or state_of(self.out / SFT) else None

    def asked(self, problems: Iterable[Problem]) -> list[Problem]:
        """The statements in the prompts that they are asked in."""
        return list(asked(problems, self.options.informal))

    def file(
        self, name: str, options: Mapping[str, Any], make: Callable[[], Sequence[Sequence[Problem]]]
    ) -> tuple[Path, list[int]]:
        return super().file(name, {**options, "informal": self.options.informal}, make)

    def require_words(self) -> None:
        """Raises UserError if training or held-out statements have no prompt, as none has a natural-language part."""
        sources, held_out = load_data(resolve(self.config, "cpu"))
        for which, problems in (("training", joined(sources)), ("held-out", held_out)):
            if not self.asked(problems):
                raise UserError(
                    f"informal is {self.options.informal!r}: no {which} row of {' '.join(self.config.dataset)!r} has a text in the column "
                    f"{INFORMAL!r}; add it, or choose without"
                )

    def proofs(self) -> Path:
        """The statements with a worked proof; written once."""
        options = self.options

        def make() -> list[list[Problem]]:
            worked = [problem for problem in self.training_problems() if problem.metadata.get(SOLUTION)]
            if not worked:
                raise UserError(
                    f"dataset is {' '.join(self.config.dataset)!r}: it has no proofs in a column {SOLUTION!r} for the stage {SFT}; add them, "
                    f"or leave {SFT} out of stages"
                )
            return [self.asked(worked[: options.proofs])]

        return self.file(PROOFS, {"proofs": options.proofs}, make)[0]

    def filter(self, progress: Progress) -> Stage:
        options, model = self.options, self.model_of(self.start)
        census = self.census(model, options.samples)

        def make(folder: Path) -> Found:
            low, high = parse_difficulty(options.pass_rates)
            asking, environments = with_environments(census)
            statements = self.asked(self.training_problems()[: options.problems])
            with opened(asking, environments, statements, "training", progress) as (collector, problems):
                found = list(profiled(collector, problems, progress))
            bands = [band(one, low, high) for one in found]
            counts = Counter(bands)
            kept = [one for one, where in zip(found, bands, strict=True) if where == "kept"]
            if not kept:
                raise UserError(
                    f"pass_rates is {options.pass_rates!r}: no statement of {len(found)} is within them ({described(counts)}); widen them, "
                    "raise samples, or train the stage before for longer"
                )
            for name, those in ((STATEMENTS, found), (ROWS, kept)):
                write_rows(folder / name, (in_columns(as_row(one), self.config) for one in those))
            return {"asked": len(found), **counts}

        names = ("informal", "pass_rates", "problems")
        told = {**vars(census), **{name: getattr(options, name) for name in names}}
        return Stage(
            name=FILTER,
            does=f"{options.samples} attempts at each statement, those with a pass rate of {options.pass_rates} kept",
            options=as_json(told),
            make=make,
        )


def band(one: Profiled, low: float, high: float) -> str:
    """What becomes of a statement: kept, or why it is not."""
    if (low, high) == (0, 1):
        return "kept"
    if one.rate is None:
        return "not graded"
    return "too hard" if one.rate < low else "too easy" if one.rate > high else "kept"


def described(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {what}" for what, count in counts.most_common())


def asked(problems: Iterable[Problem], informal: Informal) -> Iterator[Problem]:
    """The problems in their prompts: as they are, and with their natural-language part before the last message of the user."""
    for problem in problems:
        if informal != "with":
            yield problem
        if informal != "without" and (words := problem.metadata.get(INFORMAL)):
            *before, last = problem.messages
            message = {**last, "content": f"{words}\n{last['content']}"}
            yield replace(problem, id=f"{problem.id}#{INFORMAL}", prompt=(*before, message))
