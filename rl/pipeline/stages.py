"""Stages in one folder: each is done once, and the same command goes on where the last one ended."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rewards.errors import UserError, first_line
from rl.run.checkpoint import CHECKSUMS, checkpoints
from rl.run.loop import train
from rl.settings.config import RunConfig
from rl.settings.written_config import holds_run
from rl.view.metrics import read_metrics, series, write_whole

STATE = "stage.json"
NOT_COMPARED = ("resume", "run_dir", "trackers", "push_to_hub", "verifier_workers", "tool_workers")
SHOWN = ("eval/accuracy", "eval/reward", "eval/length")  # of a run: their first and last values are in the report
Found = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """name: of its folder. does: a line for the report. options: as JSON; a stage that began with others is not gone on with.
    make: fills the folder or goes on with it, and returns what the report says of it."""

    name: str
    does: str
    options: Mapping[str, Any]
    make: Callable[[Path], Found]


def run_stages(stages: Iterable[Stage], out: Path, report: Callable[[str], None]) -> None:
    """Runs the stages that are not done, in their order."""
    for stage in stages:
        folder = out / stage.name
        written = state_of(folder)
        require_same(written.get("options", stage.options), stage.options, folder)
        if "found" in written:
            report(f"{stage.name}: done before")
            continue
        report(f"{stage.name}: {stage.does}")
        folder.mkdir(parents=True, exist_ok=True)
        begun = {"does": stage.does, "options": dict(stage.options)}
        write_whole(folder / STATE, json.dumps(begun, indent=2) + "\n")
        started = time.perf_counter()
        try:
            found = stage.make(folder)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"stopped in the stage {stage.name}; the same command goes on from here") from None
        found["seconds"] = round(time.perf_counter() - started, 1)
        write_whole(folder / STATE, json.dumps({**begun, "found": found}, indent=2) + "\n")


def state_of(folder: Path) -> dict[str, Any]:
    """What is written of a stage; {} before it has begun."""
    try:
        return json.loads((folder / STATE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(
            f"run_dir is {str(folder.parent)!r}: {folder.name}/{STATE} cannot be read ({first_line(error)}); remove the folder "
            f"{folder.name} to make this stage anew"
        ) from None


def require_same(written: Mapping[str, Any], options: Mapping[str, Any], folder: Path) -> None:
    """Raises UserError if the stage in the folder was begun with other options."""
    for name in [*options, *(name for name in written if name not in options)]:
        before, now = (json.dumps(of.get(name)) for of in (written, options))
        if before != now and name not in NOT_COMPARED:
            raise UserError(
                f"{name} is {now}: {folder.name} in {str(folder.parent)!r} began with {before}; give this value again, remove {folder.name} "
                "and what was made of it to make it anew, or name another run_dir"
            )


def training(name: str, does: str, config: RunConfig) -> Stage:
    """A stage that is a run, in the stage's folder."""

    def make(folder: Path) -> Found:
        own = vars(config) | {"run_dir": folder, "resume": holds_run(folder)}
        train(RunConfig(**own))
        rows = read_metrics(folder)
        measured = {key: series(rows, key)[1] for key in SHOWN}
        ends = {key: [values[0], values[-1]] for key, values in measured.items() if values}
        return {"steps": int(rows[-1]["step"] or 0), **ends}

    read = {"content of model": digest(config.model), "content of dataset": [digest(name) for name in config.dataset]}
    return Stage(name=name, does=does, options=config.as_json() | read, make=make)


def digest(name: str) -> str | None:
    """Of a file, or of a checkpoint by its checksums: of another content a stage is another one. None of what is neither."""
    path = Path(name)
    path = path / CHECKSUMS if path.is_dir() else path
    if not path.is_file():
        return None
    with path.open("rb") as file:  # which may be larger than the memory
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=8)).hexdigest()


def checkpoint_of(folder: Path) -> Path:
    """The last checkpoint of a stage's run. Raises UserError without one."""
    found = checkpoints(folder)
    if not found:
        raise UserError(
            f"stages leaves out {folder.name}: it must be there for a later stage, and {str(folder.parent)!r} has no checkpoint of it; "
            "name it in stages too"
        )
    return found[-1]


def table(stages: Sequence[str], out: Path) -> str:
    """A Markdown table of the stages that are done, one row each."""
    lines = ["| stage | what | result | seconds |", "| --- | --- | --- | --- |"]
    for name in stages:
        state = state_of(out / name)
        if "found" in state:
            found = {key: value for key, value in state["found"].items() if key != "seconds"}
            told = "; ".join(f"{key} {_shown(value)}" for key, value in found.items())
            lines.append(f"| {name} | {state['does']} | {told} | {state['found']['seconds']:.0f} |")
    return "\n".join(lines)


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return " -> ".join(map(_shown, value))
    return f"{value:.3f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
