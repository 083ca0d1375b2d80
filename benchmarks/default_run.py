"""Does the default run learn? Held-out accuracy before and after, over seeds, from finished runs.

    for s in 0 1 2; do accelerate launch recipes/grpo_math.py --seed $s --run-dir runs/seed$s; done
    python -m benchmarks.default_run runs/seed0 runs/seed1 runs/seed2

Writes benchmarks/results/default_run.json and docs/default_run.png; with --name code_run, from runs of recipes/grpo_code.py, the
same under that name.
"""

from __future__ import annotations

import json
from pathlib import Path

import tyro

from benchmarks.machine import describe_machine, write_result
from rl.metrics import read_metrics, series, start_and_end, time_by_phase
from rl.plots import accuracy_figure


def main(run_dirs: tyro.conf.Positional[list[Path]], name: str = "default_run") -> None:
    runs = []
    for run_dir in run_dirs:
        rows = read_metrics(run_dir)
        config = json.loads((run_dir / "config.json").read_text())
        accuracy = start_and_end(rows, "eval/accuracy")
        assert accuracy is not None
        runs.append(
            {
                "seed": config["seed"],
                "held_out_problems": config["eval_size"],
                "accuracy_before": accuracy[0],
                "accuracy_after": accuracy[1],
                "accuracy_curve": dict(zip(*map(list, series(rows, "eval/accuracy")), strict=True)),
                "steps": config["num_steps"],
                "seconds": {phase: round(s, 1) for phase, s in time_by_phase(rows).items()},
            }
        )
        print(f"{run_dir}: {accuracy[0]:.1%} -> {accuracy[1]:.1%}")
    accuracy_figure(run_dirs, Path(f"docs/{name}.png"))
    write_result(name, __doc__ or "", {**describe_machine(), "runs": runs})


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
