"""What one GPU shows in ten minutes: which paths are taken and how far they are off, what each costs, and what a step takes.

    python -m benchmarks.gpu_suite                      every part, the ones of most worth first
    python -m benchmarks.gpu_suite --out FOLDER         goes on with the parts that FOLDER's result does not have yet
    python -m benchmarks.gpu_suite --carried FILE       also on real weights (python -m benchmarks.real_model OUT --carried FILE)

One process. Each part writes its result as it ends, and none is begun that the time left does not allow; a second call does what is
missing. What fails is in the file too, and ends nothing else. It needs torch from 2.11, transformers and the packages that rl imports
(where a machine lacks peft or tyro: pip download --no-deps -d wheels peft tyro docstring-parser typeguard shtab, and there
pip install --no-index --find-links wheels peft tyro); TRL, vLLM and flash-attn are measured where they are installed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_parts import PARTS, Bench

LAST_LINES = 15


@dataclass
class Clock:
    """Of a GPU: seconds between two of its events, and what its allocator held."""

    repeats: int = 3

    def seconds(self, run: Callable[[], object]) -> float:
        """The median, after one run that is not timed."""
        run()
        found = []
        for _ in range(self.repeats):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            run()
            end.record()
            torch.cuda.synchronize()
            found.append(start.elapsed_time(end) / 1000)
        return statistics.median(found)

    def memory(self, run: Callable[[], object]) -> dict[str, float]:
        """GiB at most while it runs."""
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        run()
        torch.cuda.synchronize()
        peaks = {"allocated": torch.cuda.max_memory_allocated(), "reserved": torch.cuda.max_memory_reserved()}
        return {name: size / 2**30 for name, size in peaks.items()}


@dataclass
class Results:
    """FOLDER/gpu_suite.json, written anew after each part."""

    path: Path
    found: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.path.is_file():
            self.found = json.loads(self.path.read_text(encoding="utf-8"))

    def has(self, name: str) -> bool:
        return "failed" not in self.found.get(name, {"failed": ""})

    def put(self, name: str, value: Any) -> None:
        self.found[name] = value
        self.path.parent.mkdir(parents=True, exist_ok=True)
        aside = self.path.with_suffix(".partial")
        aside.write_text(json.dumps(self.found, indent=2) + "\n", encoding="utf-8")
        aside.replace(self.path)
        print(f"{name}: {json.dumps(value)}", flush=True)


def run_parts(bench: Bench, results: Results, seconds: float, names: list[str]) -> None:
    """In the order of their worth, those that are not there yet, until the time is up."""
    deadline = time.monotonic() + seconds
    for name in names:
        part, estimate = PARTS[name]
        if results.has(name):
            continue
        if time.monotonic() + estimate > deadline:
            print(f"{name}: takes about {estimate} s, more than is left; call again for it", flush=True)
            continue
        started = time.monotonic()
        try:
            found = part(bench)
        except Exception as error:  # noqa: BLE001  what fails is a result
            found = {
                "failed": f"{type(error).__name__}: {error}",
                "at": traceback.format_exc().splitlines()[-LAST_LINES:],
            }
        bench.release()
        results.put(name, {**found, "seconds_of_part": round(time.monotonic() - started, 1)})


def other_commands() -> dict[str, list[str]]:
    """Parts that are programs of their own."""
    found = {"tests": ["pytest", "-q", "-n", "0", "-p", "no:cacheprovider", "tests/gpu"]}
    if find_spec("trl"):
        found["beside TRL"] = ["benchmarks.vs_trl", "--shapes", "gpu", "--rounds", "3", "--no-memory"]
    return found


def run_command(arguments: list[str], seconds: float) -> dict[str, Any]:
    try:
        done = subprocess.run(
            [sys.executable, "-m", *arguments], capture_output=True, text=True, timeout=max(1.0, seconds), check=False
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"took more than {seconds:.0f} seconds"}
    lines = (done.stdout + done.stderr).splitlines()[-LAST_LINES:]
    return {"printed": lines} if done.returncode == 0 else {"failed": lines}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--seconds", type=float, default=560, help="after which no part is begun")
    parser.add_argument(
        "--model", default="qwen2.5-1.5b", help="a name in rl/model_configs: the shape, with random weights"
    )
    parser.add_argument("--carried", type=Path, help="a file of benchmarks.real_model")
    parser.add_argument("--parts", nargs="*", default=[*PARTS, *other_commands()])
    asked = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("gpu_suite: torch sees no GPU here; the benchmarks beside this one run on a CPU")
    from benchmarks.machine import describe_machine

    started, results = time.monotonic(), Results(asked.out / "gpu_suite.json")
    results.put("machine", {**describe_machine(), "gib": torch.cuda.mem_get_info()[1] / 2**30})
    bench = Bench(torch.device("cuda"), Clock(), model=asked.model, carried=asked.carried)
    run_parts(bench, results, asked.seconds, [name for name in asked.parts if name in PARTS])
    for name, command in other_commands().items():
        left = asked.seconds - (time.monotonic() - started)
        if name in asked.parts and not results.has(name) and left > 60:
            results.put(name, run_command(command, left))


if __name__ == "__main__":
    main()
