"""This trainer beside TRL's GRPOTrainer and a loop written by hand: speed of a step, memory of an update, accuracy against time.

    python -m benchmarks.vs_trl                     every shape: steps in turn, then memory; 20 minutes on two idle cores
    python -m benchmarks.vs_trl --shapes b c        some of them; the table only, no result file
    python -m benchmarks.vs_trl --learning          the default run by both, over seeds; an hour
    python -m benchmarks.vs_trl --sweep             TRL's micro-batches and caches, from which benchmarks/shapes.py has its own

The same for both sides: machine, threads, weights, prompts and their order, completions a prompt, longest completion, reward,
temperature, number format, AdamW (fused), clipping, loss, one update on each step's samples. All are alive in one process and take
their steps in turn, TRL in its own train(). TRL runs in the settings that are best for it: see benchmarks/trl_side.py. The loop by hand,
benchmarks/plain_side.py, pads and keeps whole logits; with LoRA there is none.

Lengths are really sampled: the random models end each completion by chance, whatever the text (benchmarks/models.py). Memory is
of an update alone, on given completions, in a fresh process (benchmarks/update_memory.py), at the same settings as the speed.
Both sides' micro-batches hold about as many completions.
"""

from __future__ import annotations

import os
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # before torch is imported: as the recipes, see rl/cli.py

import torch
import tyro
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from benchmarks.machine import describe_machine, write_result
from benchmarks.our_side import OurSide, StepTime
from benchmarks.plain_side import PlainSide
from benchmarks.shapes import COMPARED, SHAPES, Shape, given
from benchmarks.trl_side import build, run
from benchmarks.update_memory import in_fresh_process
from benchmarks.vs_trl_learning import figure, learn, summary
from rl.processes.runtime import Runtime, cpu_cores
from rl.settings.options import DType

HEAD = "h"  # head and loss alone: no step of it, see benchmarks/head_and_loss.py
SPEEDS = {"speed": "trl", "speed_plain": "plain"}
WARM_UP = 2
SWEPT_ROWS = (4, 8, 16, 32, 64)

console = Console(width=None if sys.stdout.isatty() else 120)


@dataclass(frozen=True, kw_only=True)
class Options:
    shapes: tuple[str, ...] = (*COMPARED, HEAD)
    """Any of a b c d e f g h, described in benchmarks/shapes.py."""
    rounds: int = 5
    """Steps of each side that count."""
    memory: bool = True
    learning: bool = False
    """Instead: accuracy against time."""
    seeds: tuple[int, ...] = (0, 1, 2)
    num_steps: int = 72
    """Of each run of --learning."""
    sweep: bool = False
    """Instead: find TRL's best settings."""
    dtype: DType = "float32"
    """bfloat16 is autocast over float32 weights on both sides."""
    threads: int = cpu_cores()


def main(options: Options) -> None:
    runtime = Runtime.start(dtype=options.dtype, device="auto")
    torch.set_num_threads(options.threads)
    if options.learning:
        compare_learning(options, runtime)
    elif options.sweep:
        for name in options.shapes:
            if name != HEAD:
                sweep(name, SHAPES[name], runtime)
    else:
        compare_shapes(options, runtime)


def compare_shapes(options: Options, runtime: Runtime) -> None:
    found: dict[str, Any] = {}
    for name in options.shapes:
        if name == HEAD:
            found[name] = compare_heads(options)
            continue
        found[name] = {"configuration": asdict(SHAPES[name]), **compare_steps(SHAPES[name], runtime, options.rounds)}
        if options.memory:
            arguments = {"shape": name, "threads": options.threads, "dtype": options.dtype}
            peaks = {
                side: in_fresh_process("benchmarks.update_memory", {**arguments, "side": side})
                for side in ("ours", "trl")
            }
            found[name]["update_peak_bytes"] = {**peaks, "share": peaks["ours"] / peaks["trl"]}
        found[name]["targets"] = targets_met(SHAPES[name], found[name])
        console.print(f"{name}: {_spread(found[name]['speed']['total'])} times TRL's speed")
    show(found)
    if set(options.shapes) == {*COMPARED, HEAD}:
        write_result("vs_trl", __doc__ or "", {**described(options, runtime), "shapes": found})


def compare_steps(shape: Shape, runtime: Runtime, rounds: int) -> dict[str, Any]:
    """Steps in turn; the first ones are not counted."""
    num_steps = WARM_UP + rounds
    what = given(shape, runtime, num_problems=num_steps * shape.problems)
    ours = OurSide(shape, what, runtime)
    trainer = build(shape, what, runtime, num_steps=num_steps)
    plain = None if shape.lora_rank else PlainSide(shape, what, runtime)
    steps: dict[str, list[StepTime]] = {"ours": [], "trl": [], **({"plain": []} if plain else {})}

    def turn(theirs: StepTime) -> None:
        steps["trl"].append(theirs)
        steps["ours"].append(ours.step())
        if plain:
            steps["plain"].append(plain.step())

    run(trainer, turn)
    what.close()
    counted = {side: taken[WARM_UP:] for side, taken in steps.items()}
    return {
        **{side: medians(taken) for side, taken in counted.items()},
        **{name: speed(counted["ours"], counted[side]) for name, side in SPEEDS.items() if side in counted},
    }


def speed(ours: Sequence[StepTime], theirs: Sequence[StepTime]) -> dict[str, dict[str, float]]:
    """How many times as long theirs took, step by step."""
    return {
        part: spread_of([getattr(b, part) / getattr(a, part) for a, b in zip(ours, theirs, strict=True)])
        for part in ("total", "sample", "train")
    }


def medians(steps: Sequence[StepTime]) -> dict[str, Any]:
    """Tokens a second: completion tokens of the step, by the seconds of sampling them and by those of training on them."""
    lengths = [n for step in steps for n in step.lengths]
    return {
        "step_seconds": spread_of([s.total for s in steps]),
        "sample_seconds": spread_of([s.sample for s in steps]),
        "train_seconds": spread_of([s.train for s in steps]),
        "sampled_tokens_per_second": round(statistics.median(s.tokens / s.sample for s in steps), 1),
        "trained_tokens_per_second": round(statistics.median(s.tokens / s.train for s in steps), 1),
        "length_mean": round(statistics.mean(lengths), 1),
        "length_max": max(lengths),
        "groups_without_signal": round(statistics.mean(s.no_signal for s in steps), 3),
    }


def spread_of(values: Sequence[float]) -> dict[str, float]:
    found = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return {name: round(value, 4) for name, value in found.items()}


def targets_met(shape: Shape, found: dict[str, Any]) -> dict[str, bool]:
    met = {
        f"step at least {shape.target_speed:g} times as fast": found["speed"]["total"]["median"] >= shape.target_speed
    }
    if shape.target_memory is not None and "update_peak_bytes" in found:
        most = f"at most {shape.target_memory:.0%} of the memory"
        met[most] = found["update_peak_bytes"]["share"] <= shape.target_memory
    return met


def compare_heads(options: Options) -> dict[str, Any]:
    arguments = {"threads": options.threads, "dtype": options.dtype}
    found = {
        side: in_fresh_process("benchmarks.head_and_loss", {**arguments, "side": side})
        for side in ("ours", "trl", "naive")
    }
    speed = found["trl"]["seconds"] / found["ours"]["seconds"]
    share = found["ours"]["peak_bytes"] / found["trl"]["peak_bytes"]
    return {**found, "speed": speed, "share_of_memory": share, "targets": {"at least 2 times as fast": speed >= 2}}


def show(found: dict[str, Any]) -> None:
    table = Table(box=SIMPLE, title="seconds of TRL over seconds of ours, pair by pair: median (least-most)")
    table.add_column("", no_wrap=True)
    for column in ("TRL, s", "ours, s", "step", "sampling", "training", "by hand: step", "memory, MB", "targets"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, row in found.items():
        if name == HEAD:
            continue
        console.print(f"{name}: {row['configuration']['what']}; mean length {row['ours']['length_mean']:g} (TRL "
                      f"{row['trl']['length_mean']:g}), groups without signal {row['ours']['groups_without_signal']:.0%}")  # fmt: skip
        peaks = row.get("update_peak_bytes")
        table.add_row(
            name,
            f"{row['trl']['step_seconds']['median']:.2f}",
            f"{row['ours']['step_seconds']['median']:.2f}",
            *(_spread(row["speed"][part]) for part in ("total", "sample", "train")),
            _spread(row["speed_plain"]["total"]) if "speed_plain" in row else "",
            f"{peaks['ours'] / 1e6:.0f} of {peaks['trl'] / 1e6:.0f}" if peaks else "",
            " ".join("met" if met else "MISSED" for met in row["targets"].values()),
        )
    if table.rows:
        console.print(table)
    for side, row in found.get(HEAD, {}).items():
        if side in ("ours", "trl", "naive"):
            console.print(f"head and loss, {side:5s}: {row['seconds']:.2f} s, {row['peak_bytes'] / 1e6:.0f} MB")


def _spread(values: dict[str, float]) -> str:
    return "{median:.2f} ({min:.2f}-{max:.2f})".format(**values)


def sweep(name: str, shape: Shape, runtime: Runtime) -> None:
    """Prints TRL's seconds: of training at each micro-batch, of sampling with each cache."""
    fitting = [rows for rows in SWEPT_ROWS if shape.rows % rows == 0]
    for rows, cache in [*((rows, None) for rows in fitting), (fitting[-1], "static")]:
        tried = replace(shape, trl_rows=rows, trl_cache=cache)
        what = given(tried, runtime, num_problems=4 * shape.problems)
        steps: list[StepTime] = []
        run(build(tried, what, runtime, num_steps=4), steps.append)
        what.close()
        sample, train = (statistics.median(getattr(s, part) for s in steps[1:]) for part in ("sample", "train"))
        console.print(f"{name}: {rows:3d} rows, cache {cache}: sampling {sample:.2f} s, training {train:.2f} s")


def compare_learning(options: Options, runtime: Runtime) -> None:
    runs = [learn(runtime, seed=seed, num_steps=options.num_steps, report=console.print) for seed in options.seeds]
    figure(runs, Path("docs/vs_trl.png"))
    write_result(
        "vs_trl_learning", "Held-out accuracy against wall time.", {**described(options, runtime), **summary(runs)}
    )


def described(options: Options, runtime: Runtime) -> dict[str, Any]:
    machine = describe_machine()
    if runtime.device.type == "cuda":
        machine["hardware"]["gpu"] = torch.cuda.get_device_name()
    machine["versions"] |= {name: version(name) for name in ("trl", "peft")}
    return {
        **machine,
        "options": {k: v for k, v in asdict(options).items() if k not in ("learning", "sweep", "shapes")},
        "trl_settings": "no gradient checkpointing, its fused head, AdamW fused, no logging, the fastest micro-batch and cache",
    }


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
