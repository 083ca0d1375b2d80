"""Does a long run grow? Memory, files and processes of a run of some thousand short steps, looked at from outside.

    python -m benchmarks.soak                       2,000 steps on small programs: trainer, pool and sandbox
    python -m benchmarks.soak --steps 200

Writes benchmarks/results/soak.json. A number is flat if its median over the last quarter of the looks is that of the second
quarter; the first is the warm-up (allocator, caches, the pool's first workers).
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import tyro

from benchmarks.machine import describe_machine, write_result
from rl.run.loop import train
from rl.settings.config import RunConfig
from rl.view.metrics import read_metrics, start_and_end

MIB = 1 << 20
LOOKS = 2.0  # seconds between two


def one_run(run_dir: Path, steps: int, dataset: str) -> None:
    train(
        RunConfig(
            dataset=(dataset,),
            run_dir=run_dir,
            num_steps=steps,
            problems_per_step=4,
            group_size=4,
            eval_size=40,
            eval_every=steps // 10,
            save_every=steps // 20,
            learning_rate=1e-5,
            device="cpu",
        )
    )


def look(process: psutil.Process, scratch: Path) -> dict[str, float]:
    """Now, of the trainer itself and of all processes below it."""
    below = process.children(recursive=True)
    return {
        "trainer, MiB": process.memory_full_info().uss / MIB,
        "trainer, open files": process.num_fds(),
        "trainer, threads": process.num_threads(),
        "workers": len(below),
        "workers, MiB": sum(_or_zero(lambda p=p: p.memory_full_info().uss) for p in below) / MIB,
        "workers, open files": sum(_or_zero(p.num_fds) for p in below),
        "scratch files": sum(1 for _ in scratch.rglob("*")),
    }


def _or_zero(ask: Callable[[], float]) -> float:
    try:
        return ask()
    except psutil.Error:  # it has just ended
        return 0


def main(steps: int = 2_000, dataset: str = "small-programs") -> None:
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    scratch, run_dir = folder / "scratch", folder / "run"
    scratch.mkdir()
    os.environ["TMPDIR"] = str(scratch)
    child = multiprocessing.get_context("spawn").Process(target=one_run, args=(run_dir, steps, dataset))
    started = time.monotonic()
    child.start()
    process = psutil.Process(child.pid)
    looks, seen = [], set[psutil.Process]()
    while child.is_alive():
        time.sleep(LOOKS)
        if (run_dir / "metrics.jsonl").exists() and child.is_alive():
            seen |= set(process.children(recursive=True))
            looks.append(look(process, scratch))
    child.join()
    time.sleep(2)
    quarter = len(looks) // 4
    found = {
        name: {
            "second quarter": round(statistics.median(x[name] for x in looks[quarter : 2 * quarter]), 1),
            "last quarter": round(statistics.median(x[name] for x in looks[-quarter:]), 1),
            "most": round(max(x[name] for x in looks), 1),
        }
        for name in looks[0]
    }
    rows = read_metrics(run_dir)
    found_left = {
        "processes": sum(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in seen),
        "scratch files": sum(1 for _ in scratch.rglob("*")),
        "checkpoints": len(list((run_dir / "checkpoints").iterdir())),
    }
    seconds = start_and_end(rows, "time/step")
    for name, values in found.items():
        print(f"{name:<22} {values}")
    print(f"left behind: {found_left}")
    write_result(
        "soak",
        __doc__ or "",
        {
            **describe_machine(),
            "steps": len(rows) - 1,
            "programs judged": (len(rows) - 1) * 16,
            "seconds": round(time.monotonic() - started),
            "seconds of a step, first and last tenth": seconds and [round(s, 3) for s in seconds],
            "exit": child.exitcode,
            "looks": len(looks),
            "course": found,
            "left behind": found_left,
        },
    )
    shutil.rmtree(folder)


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
