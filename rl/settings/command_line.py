"""The options of a run from its command line, the file that --config names, the run that it resumes, and the recipe's defaults."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from rl.settings.config import RunConfig
from rl.settings.config_file import read_options

CONFIG_HELP = "YAML file of options, by the names that they have here (docs/configuration.md). Options of the command line win over it."


@dataclass(frozen=True, kw_only=True)
class Unchecked(RunConfig):
    """Options before all of them are known: what stands in one place may be refused only beside what another one leaves."""

    def __post_init__(self) -> None:
        pass


def run_options(arguments: Sequence[str], description: str, defaults: Mapping[str, Any]) -> RunConfig:
    """The options of a run. What the command line does not give is taken from the file that --config names, then from the run to
    resume or else from the recipe's defaults."""
    if isinstance(one := defaults.get("dataset"), str):
        defaults = {**defaults, "dataset": (one,)}
    path, options = parsed(arguments, description, defaults)
    given = {} if path is None else read_options(path)
    if given:
        _, options = parsed(arguments, description, {**defaults, **given})
    if options.resume and (of_run := options.of_existing_run()):
        _, options = parsed(arguments, description, {**vars(of_run), **given, "resume": True})
    return RunConfig(**vars(options))


def parsed(arguments: Sequence[str], description: str, defaults: Mapping[str, Any]) -> tuple[Path | None, Unchecked]:
    """The file that --config names, and the options that the arguments give over the defaults."""

    def chosen(
        *,
        config: Annotated[Path | None, tyro.conf.arg(help=CONFIG_HELP)] = None,
        run: Annotated[Unchecked, tyro.conf.arg(name="")] = Unchecked(**defaults),
    ) -> tuple[Path | None, Unchecked]:
        return config, run

    return tyro.cli(chosen, args=list(arguments), description=description)
