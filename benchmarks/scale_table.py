"""What one GPU of 8 or 64 holds and receives, for 7 B and 32 B: the table of docs/scale.md.

    python -m benchmarks.scale_table

Weights, gradients and optimiser are sharded over all GPUs, vLLM's servers stand elsewhere, layers are checkpointed. Formula beside
the update itself, run without numbers in one of as many made-up processes. Writes
benchmarks/results/scale_table.json.
"""

from __future__ import annotations

from itertools import product

import tyro

from benchmarks.machine import describe_machine, write_result
from rl.command.plan import GIB, make_plan
from rl.settings.options import PlanOptions


def main() -> None:
    rows = []
    for model, gpus in product(("qwen2.5-7b", "qwen2.5-32b"), (8, 64)):
        options = PlanOptions(
            model=model,
            gpus=gpus,
            sharding="full",
            sampler="vllm-server",
            problems_per_step=128,
            gradient_checkpointing=True,
        )
        plan = make_plan(options)
        dry, traffic = plan.dry(), plan.traffic()
        row = {
            "model": model,
            "gpus": gpus,
            "micro-batches": plan.micro_batches.count,
            "kept, GiB": plan.kept() / GIB,
            "peak, formula, GiB": plan.peak_of_update() / GIB,
            "peak, dry run, GiB": dry.peak / GIB,
            "received, GiB": {name: size / GIB for name, size in traffic.items()},
        }
        rows.append(row)
        print(row, flush=True)
    write_result("scale_table", __doc__ or "", {**describe_machine(), "rows": rows})


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
