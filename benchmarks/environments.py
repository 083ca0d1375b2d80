"""Does RL teach the tiny model to call a tool, to heed what an environment says, and to write the program that computes its answer?

    python -m benchmarks.environments calculator no_calculator guessing programs        or some of them

Each is the command that a user types, over three seeds. A run that has come to its end is not made again. Writes
benchmarks/results/environments.json, in which names that are not asked for stay as they were.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any, Literal

import tyro

from benchmarks.machine import RESULTS, describe_machine, head_commit, write_result
from rl.view.metrics import read_metrics, start_and_end, time_by_phase

NAME, SEEDS = "environments", (0, 1, 2)
Name = Literal["calculator", "no_calculator", "guessing", "programs"]
SIZE = "--problems-per-step 32 --num-steps 36 --eval-every 12 --eval-size 200"
CALCULATOR = f"--dataset large-products --environment plumbline.environments:Calculator {SIZE}"
OPTIONS: dict[Name, str] = {
    "calculator": CALCULATOR,
    "no_calculator": f"{CALCULATOR} --max-turns 1",  # the same model and prompts, and the call of a last turn is not made
    "guessing": f"--dataset guess-number --environment plumbline.environments:GuessNumber {SIZE}",
    "programs": f"--dataset number-programs {SIZE}",
}
# Start and end of each: of accuracy the first and the last evaluation (greedy), of others the first and the last tenth of the steps.
SHOWN = ("eval/accuracy", "reward/mean", "tools/used", "tools/calls")


def made(name: Name, seed: int, folder: Path) -> dict[str, Any]:
    """One run, and what came out of it. The bases are taught by the first run on their task in a folder."""
    run_dir, clock = folder / f"{name}-{seed}", folder / f"{name}-{seed}.seconds"
    command = ["accelerate", "launch", "recipes/grpo_math.py", *OPTIONS[name].split()]
    command += ["--seed", str(seed), "--run-dir", str(run_dir)]
    if not clock.exists():
        command += ["--resume"] if (run_dir / "config.json").exists() else []
        environment = {**os.environ, "XDG_CACHE_HOME": str((folder / "cache").resolve())}
        started = time.monotonic()
        subprocess.run(command, check=True, env=environment)
        clock.write_text(f"{time.monotonic() - started:.1f}")
    rows = read_metrics(run_dir)
    return {
        "seed": seed,
        **{key: start_and_end(rows, key) for key in SHOWN if key in rows[-1]},
        "steps": len(rows) - 1,
        "seconds": {phase: round(s, 1) for phase, s in time_by_phase(rows).items()},
        "whole_command_seconds": float(clock.read_text()),
    }


def main(names: tyro.conf.Positional[tuple[Name, ...]], runs: Path | None = None) -> None:
    folder = runs or Path("runs") / head_commit()
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        found = {
            **describe_machine(),
            "command": f"accelerate launch recipes/grpo_math.py {OPTIONS[name]} --seed SEED",
            "runs": [made(name, seed, folder) for seed in SEEDS],
        }
        kept = RESULTS / f"{NAME}.json"
        earlier = json.loads(kept.read_text()) if kept.exists() else {}
        write_result(NAME, __doc__ or "", {**earlier, name: found})


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
