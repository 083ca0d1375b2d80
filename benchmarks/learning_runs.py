"""Do the recipes learn? Held-out accuracy before and after, over seeds, by the commands that a user types.

    python -m benchmarks.learning_runs default_run          or another of RUNS

A run that is there already and has come to its end is not made again. Writes benchmarks/results/<name>.json and docs/<name>.png.
"""

from __future__ import annotations

import os
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from benchmarks.machine import describe_machine, head_commit, write_result
from rl.view.metrics import read_metrics, series, start_and_end, time_by_phase
from rl.view.plots import accuracy_figure

Name = Literal["default_run", "code_run", "vllm_run", "ahead_run"]


@dataclass(frozen=True)
class Recipe:
    script: str
    seeds: tuple[int, ...]
    options: tuple[str, ...] = ()


RUNS: dict[Name, Recipe] = {
    "default_run": Recipe("grpo_math.py", (0, 1, 2)),
    "code_run": Recipe("grpo_code.py", (0, 1, 2)),
    "vllm_run": Recipe("grpo_math.py", (0,), ("--sampler", "vllm")),
    "ahead_run": Recipe("grpo_math.py", (0, 1), ("--one-step-ahead",)),
}


def made(name: Name, seed: int, folder: Path) -> dict[str, Any]:
    """One run, and what came out of it. The tiny model's base is taught by the first run of a folder."""
    recipe, run_dir, clock = RUNS[name], folder / f"{name}-{seed}", folder / f"{name}-{seed}.seconds"
    if not clock.exists():
        command = ["accelerate", "launch", f"recipes/{recipe.script}", "--seed", str(seed), "--run-dir", str(run_dir)]
        command += [*recipe.options, *(["--resume"] if (run_dir / "config.json").exists() else [])]
        environment = {**os.environ, "XDG_CACHE_HOME": str((folder / "cache").resolve())}
        started = time.monotonic()
        subprocess.run(command, check=True, env=environment)
        clock.write_text(f"{time.monotonic() - started:.1f}")
    rows = read_metrics(run_dir)
    accuracy = start_and_end(rows, "eval/accuracy")
    assert accuracy is not None
    return {
        "seed": seed,
        "accuracy_before": accuracy[0],
        "accuracy_after": accuracy[1],
        "accuracy_curve": dict(zip(*map(list, series(rows, "eval/accuracy")), strict=True)),
        "steps": len(rows) - 1,
        "seconds": {phase: round(s, 1) for phase, s in time_by_phase(rows).items()},
        "whole_command_seconds": float(clock.read_text()),
    }


def main(name: tyro.conf.Positional[Name], runs: Path | None = None) -> None:
    folder = runs or Path("runs") / head_commit()
    folder.mkdir(parents=True, exist_ok=True)
    found = [made(name, seed, folder) for seed in RUNS[name].seeds]
    accuracy_figure([folder / f"{name}-{seed}" for seed in RUNS[name].seeds], Path(f"docs/{name}.png"))
    write_result(name, __doc__ or "", {**describe_machine(), "runs": found})


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
