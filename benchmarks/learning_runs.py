"""Do the recipes learn? Held-out accuracy before and after, over seeds, by the commands that a user types.

    python -m benchmarks.learning_runs default_run          or another of RUNS

A run that is there already and has come to its end is not made again. Writes benchmarks/results/<name>.json and docs/<name>.png.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from benchmarks.machine import describe_machine, head_commit, write_result
from benchmarks.one_sentence import write_rows
from benchmarks.real_model import make
from rl.view.metrics import read_metrics, series, start_and_end, time_by_phase
from rl.view.plots import accuracy_figure

Name = Literal["default_run", "code_run", "vllm_run", "ahead_run", "sentence_run"]


@dataclass(frozen=True)
class Recipe:
    """options: {folder} stands for the runs' folder. prepare: makes there what the options name."""

    script: str
    seeds: tuple[int, ...]
    options: tuple[str, ...] = ()
    prepare: Callable[[Path], None] = lambda folder: None


def prepare_sentences(folder: Path) -> None:
    write_rows(folder / "sentences.jsonl")
    if not (folder / "smollm2").exists():
        make(folder / "smollm2")


# SmolLM2-135M-Instruct in bfloat16, on rows and with a reward of our own: what docs/rewards.md describes, on a real model.
SENTENCES = (
    "--model {folder}/smollm2 --dataset {folder}/sentences.jsonl --reward benchmarks/one_sentence.py:reward --dtype bfloat16 "
    "--num-steps 24 --problems-per-step 16 --group-size 8 --max-tokens 32 --eval-size 200 --eval-every 6 --learning-rate 1e-5 "
    "--warmup-steps 4 --kl-weight 0"
)


RUNS: dict[Name, Recipe] = {
    "default_run": Recipe("grpo_math.py", (0, 1, 2)),
    "code_run": Recipe("grpo_code.py", (0, 1, 2)),
    "vllm_run": Recipe("grpo_math.py", (0,), ("--sampler", "vllm")),
    "ahead_run": Recipe("grpo_math.py", (0, 1), ("--one-step-ahead",)),
    "sentence_run": Recipe("grpo_math.py", (0, 1, 2), tuple(SENTENCES.split()), prepare_sentences),
}


def made(name: Name, seed: int, folder: Path) -> dict[str, Any]:
    """One run, and what came out of it. The tiny model's base is taught by the first run of a folder."""
    recipe, run_dir, clock = RUNS[name], folder / f"{name}-{seed}", folder / f"{name}-{seed}.seconds"
    if not clock.exists():
        command = ["accelerate", "launch", f"recipes/{recipe.script}", "--seed", str(seed), "--run-dir", str(run_dir)]
        command += [option.format(folder=folder) for option in recipe.options]
        command += [*(["--resume"] if (run_dir / "config.json").exists() else [])]
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
    RUNS[name].prepare(folder)
    found = [made(name, seed, folder) for seed in RUNS[name].seeds]
    accuracy_figure([folder / f"{name}-{seed}" for seed in RUNS[name].seeds], Path(f"docs/{name}.png"))
    write_result(name, __doc__ or "", {**describe_machine(), "runs": found})


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
