"""`train`: the options of a run as keyword arguments, with functions and rows in place of files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from plumbline.finished_run import Run
from plumbline.names_of_functions import Reference, environment_reference_to, reference_to, tool_reference_to
from plumbline.rows import written_rows
from rewards.errors import UserError
from rewards.functions.source import KEPT
from rl.run.loop import Callbacks
from rl.run.loop import train as train_run
from rl.settings.config import RunConfig
from rl.settings.config_file import SPECS, nearest, python_value, read_options
from rollout.environment_names import with_name
from rollout.records import RolloutGroup

Reward = str | Callable[..., Any]
Environment = str | Callable[[], Any]
Dataset = str | Path | Iterable[Mapping[str, Any]]


def train(
    *,
    model: str | None = None,
    dataset: Dataset | Sequence[str] | None = None,
    reward: Reward | Sequence[Reward] | Mapping[Reward, float] | None = None,
    tools: Reward | Sequence[Reward] | None = None,
    environment: Environment | Mapping[str, Environment] | None = None,
    eval_dataset: Dataset | None = None,
    config: str | Path | None = None,
    on_step: Callable[[Mapping[str, float | None], Sequence[RolloutGroup]], None] | None = None,
    on_evaluation: Callable[[Mapping[str, float | None]], None] | None = None,
    **options: Any,
) -> Run:
    """Trains, as a recipe does from the command line. -> the finished run.

    model: "tiny" (the default), a folder in Hugging Face format, or a hub name.
    dataset, eval_dataset: a name or file as for --dataset, or the rows themselves: a list of dicts or a datasets.Dataset.
        Rows are written to a file in the cache folder, which is named after their content, so that a run can be resumed.
    reward: a function or a name as for --reward, several of them, or a mapping of them to weights. Without it the
        verifiers of the problems grade.
    tools: functions that the model may call, or names as for --tools, one or several.
    environment: a class whose methods are the model's tools, or a name as for --environment, or a mapping of the names that rows have
        in their column environment to them (docs/environments.md). Without a dataset each episode is a row with a seed.
    config: a YAML file of options as for --config. What is given here wins over it.
    on_step: called after each step with its metrics and its sampled groups. on_evaluation: called after each evaluation
        with the metrics of its step. Both in the main process only; an exception ends the run.
    options: every other option of a run by its name, such as num_steps=20, lora_rank=8.

    Raises UserError for a mistake in the options, the data or the model, before any training.
    """
    for name, function in {"on_step": on_step, "on_evaluation": on_evaluation}.items():
        if function is not None and not callable(function):
            raise UserError(f"{name} is {function!r}: it must be a function")
    for name in sorted(options.keys() - SPECS.keys()):
        raise UserError(f"{name} is not an option; {nearest(name)}")
    given = {} if config is None else read_options(Path(config))
    given |= {name: python_value(name, value) for name, value in options.items()}
    if dataset is not None:
        given["dataset"] = written_rows(dataset)
    if eval_dataset is not None:
        given["eval_dataset"] = _one_name(written_rows(eval_dataset))
    if model is not None:
        given["model"] = str(model)
    if reward is not None:
        given["reward"] = _named(reward)
    if tools is not None:
        given["tools"] = _tools(tools)
    if environment is not None:
        given["environment"] = _environments(environment)
        given.setdefault("dataset", ("episodes",))
    chosen = RunConfig(**given)
    if chosen.resume and (of_run := chosen.of_existing_run()):  # options that are not given keep the run's values
        chosen = RunConfig(**{**vars(of_run), **given})
    functions = dict(KEPT)  # a later training may keep others by these names
    return Run(train_run(chosen, Callbacks(on_step=on_step, on_evaluation=on_evaluation)), functions)


def _named(reward: Reward | Sequence[Reward] | Mapping[Reward, float]) -> tuple[str, ...]:
    """The rewards as --reward names them."""
    named = _references(reward, reference_to)
    if not named:
        raise UserError("reward is empty; name a function, or leave it out for the verifiers of the problems")
    if isinstance(reward, Mapping):
        return tuple(f"{name}={_weight(name, weight)!r}" for name, weight in zip(named, reward.values()))
    return named


def _weight(name: str, weight: Any) -> float:
    try:
        return float(weight)
    except (TypeError, ValueError):
        raise UserError(f"reward: the weight of {name!r} is {weight!r}: it must be a number such as 0.5") from None


def _tools(tools: Reward | Sequence[Reward]) -> tuple[str, ...]:
    """The tools as --tools names them."""
    if isinstance(tools, Mapping):
        raise UserError(
            f"tools is a mapping of {list(tools)}: the model calls a function by its own name; give the functions alone"
        )
    return _not_empty("tools", _references(tools, tool_reference_to))


def _environments(environment: Environment | Mapping[str, Environment]) -> tuple[str, ...]:
    """The environments as --environment names them."""
    if not isinstance(environment, Mapping):
        return _not_empty("environment", _references(environment, environment_reference_to))
    named = _references(tuple(environment.values()), environment_reference_to)
    return _not_empty("environment", tuple(with_name(name, reference) for name, reference in zip(environment, named)))


def _not_empty(option: str, named: tuple[str, ...]) -> tuple[str, ...]:
    if not named:
        raise UserError(f"{option} is empty; name at least one, or leave {option} out")
    return named


def _references(given: Any, reference_to: Reference) -> tuple[str, ...]:
    """One or several functions or names, as an option of the command line names them."""
    named: list[str] = []
    for one in (given,) if isinstance(given, str) or not isinstance(given, Iterable) else given:
        named.append(one if isinstance(one, str) else reference_to(one, named))
    return tuple(named)


def _one_name(eval_dataset: Any) -> Any:
    if isinstance(eval_dataset, tuple):
        raise UserError(f"eval_dataset is {list(eval_dataset)!r}: it takes one name or file, or the rows themselves")
    return eval_dataset
