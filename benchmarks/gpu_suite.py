"""Everything that wants a GPU, in one command of some minutes, with one result file.

    python -m benchmarks.gpu_suite

Runs tests/gpu and the benchmarks at the shape "gpu" (half a billion parameters, a vocabulary of 152 k), each in a process of
its own with a time limit, and keeps what each printed last. What fails is in the file too, and ends nothing else. TRL's parts
run where trl is installed.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
import tyro

from benchmarks.machine import describe_machine, write_result

LAST_LINES = 15


@dataclass(frozen=True, kw_only=True)
class Options:
    shape: str = "gpu"
    dtype: str = "bfloat16"
    seconds: int = 120
    """Of each part."""


def parts(options: Options) -> dict[str, list[str]]:
    """Of each part the module and its options."""
    at_shape = ["--shape", options.shape, "--dtype", options.dtype]
    sides = ("ours", "naive", "trl") if find_spec("trl") else ("ours", "naive")
    found = {
        "tests": ["pytest", "-q", "-p", "no:cacheprovider", "tests/gpu"],
        "percent of limit": ["benchmarks.percent_of_limit", *at_shape, "--rounds", "3"],
        **{
            f"head, {side}": ["benchmarks.head_and_loss", "--side", side, "--dtype", options.dtype, "--tokens", "4096"]
            for side in sides
        },
        "memory, ours": ["benchmarks.update_memory", *at_shape, "--side", "ours"],
    }
    if find_spec("trl"):
        found["memory, trl"] = ["benchmarks.update_memory", *at_shape, "--side", "trl"]
        found["beside TRL"] = ["benchmarks.vs_trl", "--shapes", options.shape, "--rounds", "3", "--no-memory"]
    return found


def run(arguments: list[str], seconds: int) -> dict[str, Any]:
    try:
        done = subprocess.run(
            [sys.executable, "-m", *arguments], capture_output=True, text=True, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"took more than {seconds} seconds"}
    if done.returncode != 0:
        return {"failed": (done.stdout + done.stderr).splitlines()[-LAST_LINES:]}
    lines = done.stdout.splitlines()
    try:
        return {"found": json.loads(lines[-1])}
    except (IndexError, json.JSONDecodeError):
        return {"printed": lines[-LAST_LINES:]}


def main(options: Options) -> None:
    if not torch.cuda.is_available():
        sys.exit("gpu_suite: torch sees no GPU here; the benchmarks beside this one run on a CPU")
    results = {}
    for name, arguments in parts(options).items():
        print(f"{name} ...", flush=True)
        results[name] = run(arguments, options.seconds)
        print(json.dumps(results[name], indent=2), flush=True)
    write_result("gpu_suite", __doc__ or "", {**describe_machine(), "configuration": vars(options), **results})


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
