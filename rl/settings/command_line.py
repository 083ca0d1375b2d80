"""The options of a run from its command line, the file that --config names, the run that it resumes, and the recipe's defaults."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro

from rl.settings.config import RunConfig
from rl.settings.config_file import read_options

CONFIG_HELP = "YAML file of options, by the names that they have here (docs/configuration.md). Options of the command line win over it."


Beside = TypeVar("Beside")


@dataclass(frozen=True)
class NoOptions:
    """Of a recipe that has the options of a run alone."""


@dataclass(frozen=True, kw_only=True)
class Unchecked(RunConfig):
    """Options before all of them are known: what stands in one place may be refused only beside what another one leaves."""

    def __post_init__(self) -> None:
        pass


def run_options(arguments: Sequence[str], description: str, defaults: Mapping[str, Any]) -> RunConfig:
    """The options of a run. What the command line does not give is taken from the file that --config names, then from the run to
    resume or else from the recipe's defaults."""
    return options_beside(arguments, description, defaults, NoOptions)[0]


def options_beside(
    arguments: Sequence[str], description: str, defaults: Mapping[str, Any], beside: type[Beside]
) -> tuple[RunConfig, Beside]:
    """The options of a run as `run_options` has them, and those of the recipe's own class, which the command line alone gives."""
    if isinstance(one := defaults.get("dataset"), str):
        defaults = {**defaults, "dataset": (one,)}
    path, options, own = parsed(arguments, description, defaults, beside)
    given = {} if path is None else read_options(path)
    if given:
        _, options, own = parsed(arguments, description, {**defaults, **given}, beside)
    if options.resume and (of_run := options.of_existing_run()):
        _, options, own = parsed(arguments, description, {**vars(of_run), **given, "resume": True}, beside)
    return RunConfig(**vars(options)), own


def parsed(
    arguments: Sequence[str], description: str, defaults: Mapping[str, Any], beside: type[Beside]
) -> tuple[Path | None, Unchecked, Beside]:
    """The file that --config names, and the options that the arguments give over the defaults."""

    without = beside()

    def chosen(
        *,
        config: Annotated[Path | None, tyro.conf.arg(help=CONFIG_HELP)] = None,
        run: Annotated[Unchecked, tyro.conf.arg(name="")] = Unchecked(**defaults),
        own: Any = without,
    ) -> tuple[Path | None, Unchecked, Any]:
        return config, run, own

    chosen.__annotations__["own"] = Annotated[beside, tyro.conf.arg(name="")]  # as text its name would not be found
    return tyro.cli(chosen, args=list(arguments), description=description)
