"""What a step of GRPO and PPO takes on one GPU, 0.5 to 32 billion parameters, all weights or LoRA: formulas, and the update run dry.

    python -m benchmarks.vram_table

Each dry run is a process of its own. Smaller models come first; where the time is up the formula stands alone. Writes
benchmarks/results/vram_table.json.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

import tyro

from benchmarks.machine import describe_machine, write_result
from rl.command.plan import GIB, make_plan
from rl.processes.runtime import cpu_cores
from rl.settings.options import PlanOptions

MODELS = ("qwen2.5-0.5b", "qwen2.5-1.5b", "qwen2.5-7b", "qwen2.5-32b")
METHODS = {"GRPO": "grpo", "PPO shared": "ppo", "PPO separate": "ppo-separate"}
RANKS = {"full": 0, "LoRA r=16": 16}
STEP: dict[str, Any] = {"prompt_length": 512, "completion_length": 1024, "group_size": 8, "problems_per_step": 32}


@dataclass(frozen=True, kw_only=True)
class Options:
    minutes: float = 30.0
    """For all dry runs."""
    cell: tuple[str, str, int] | None = None
    """Only this dry run: model, algorithm, rank of LoRA."""


def options_of(model: str, algorithm: str, rank: int) -> PlanOptions:
    return PlanOptions(model=model, algorithm=algorithm, lora_rank=rank, gradient_checkpointing=True, **STEP)


def dry_peak(model: str, algorithm: str, rank: int, deadline: float) -> float | None:
    """GiB, or None where it was not done in time."""
    if (seconds := deadline - time.monotonic()) <= 0:
        return None
    command = [sys.executable, "-m", "benchmarks.vram_table", "--cell", model, algorithm, str(rank)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return None
    return json.loads(done.stdout.splitlines()[-1]) / GIB


def row(model: str, method: str, how: str, deadline: float) -> dict[str, Any]:
    cell = (model, METHODS[method], RANKS[how])
    plan = make_plan(options_of(*cell))
    memory = plan.memory()
    static = sum(memory[n] for n in ("parameters", "gradients", "optimiser", "reference", "critic"))
    found = {
        "model": model,
        "method": method,
        "trained": how,
        "static": static / GIB,
        "reference": memory["reference"] / GIB,
        "update": plan.peak_of_update() / GIB,
        "update_dry_run": None
        if (dry := dry_peak(*cell, deadline)) is None
        else dry + memory["sampler's weights"] / GIB,
        "sampling": plan.peak_of_sampling() / GIB,
        "update_flops": sum(n for name, n in plan.flops().items() if "backward" in name),
    }
    print(json.dumps(found), flush=True)
    return found


def main(options: Options) -> None:
    if options.cell:
        print(json.dumps(make_plan(options_of(*options.cell)).dry().peak))
        return
    deadline = time.monotonic() + 60 * options.minutes
    with ThreadPoolExecutor(cpu_cores()) as pool:
        rows = list(pool.map(lambda c: row(c[0], c[2], c[1], deadline), product(MODELS, RANKS, METHODS)))
    write_result(
        "vram_table",
        __doc__ or "",
        {**describe_machine(), "step": asdict(options_of(MODELS[0], "grpo", 0)), "rows": rows},
    )


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
