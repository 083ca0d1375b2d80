"""On-policy distillation beside RL: samples until a student is as accurate as the RL-trained model that teaches it.

    python -m benchmarks.distillation

For each seed the tiny model's base is trained by GRPO, with the default run's options but no KL, on 48 steps of 512 completions. Its last
checkpoint then teaches students that begin at the same base, on 160 steps of 64 completions: by its log-probs alone (distill), and beside
the rewards (mixed). A further arm is GRPO on as small steps, without a teacher. All arms have the same learning rate and are looked at
after each 1,024 completions, greedily, on 400 held-out problems. There are two levels, of each seed's teacher: its accuracy less one
point, and four fifths of what it gained over the base. GRPO reaches them where its own curve first does. Everything runs on one core. A
run that is there already is not made again, and one that was interrupted goes on.

Writes benchmarks/results/distillation.json.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from benchmarks.machine import describe_machine, head_commit, write_result
from rl.run.checkpoint import checkpoints
from rl.run.loop import train
from rl.settings.config import RunConfig
from rl.settings.written_config import holds_run
from rl.view.metrics import read_metrics, series

BELOW, SHARE = 0.01, 0.8  # the teacher's accuracy less four of 400 problems; a share of its gain
LOOK = 1024  # completions between two evaluations


@dataclass(frozen=True, kw_only=True)
class Arm:
    """An algorithm on steps of `problems` x `group_size` completions."""

    title: str
    algorithm: str
    problems: int
    group_size: int
    num_steps: int
    is_taught: bool = True

    @property
    def completions(self) -> int:
        return self.problems * self.group_size

    def config(self, seed: int, run_dir: Path, teacher: Path | None) -> RunConfig:
        return RunConfig(
            algorithm=self.algorithm,
            teacher=str(teacher) if self.is_taught else None,
            kl_weight=0.0,
            problems_per_step=self.problems,
            group_size=self.group_size,
            num_steps=self.num_steps,
            warmup_steps=10 if self.completions == 512 else 4,
            eval_every=LOOK // self.completions,
            save_every=self.num_steps,
            seed=seed,
            device="cpu",
            run_dir=run_dir,
            resume=holds_run(run_dir),
        )


ARMS = {
    "rl": Arm(title="GRPO", algorithm="grpo", problems=64, group_size=8, num_steps=48, is_taught=False),
    "distill": Arm(title="distill", algorithm="distill", problems=64, group_size=1, num_steps=160),
    "mixed": Arm(title="GRPO and teacher, weight 1", algorithm="grpo", problems=8, group_size=8, num_steps=160),
    "rl-small": Arm(
        title="GRPO, small steps", algorithm="grpo", problems=8, group_size=8, num_steps=160, is_taught=False
    ),
}


@dataclass(frozen=True, kw_only=True)
class Options:
    seeds: tuple[int, ...] = (0, 1, 2)
    arms: tuple[str, ...] = tuple(ARMS)
    runs: Path = Path("runs") / head_commit() / "distillation"
    """Where the runs are kept."""


def run_of(options: Options, name: str, seed: int) -> Path:
    """The folder of a run, which is made if it is not there, after that of its teacher."""
    arm, folder = ARMS[name], options.runs / f"{name}-{seed}"
    rows = read_metrics(folder)
    if not rows or rows[-1]["step"] != arm.num_steps:
        teacher = checkpoints(run_of(options, "rl", seed))[-1] if arm.is_taught else None
        train(arm.config(seed, folder, teacher))
    return folder


def curve(options: Options, name: str, seed: int) -> dict[int, float]:
    """Accuracy by completions sampled."""
    steps, accuracy = series(read_metrics(run_of(options, name, seed)), "eval/accuracy")
    return {int(step) * ARMS[name].completions: x for step, x in zip(steps, accuracy, strict=True)}


def samples_to(found: dict[int, float], level: float) -> int | None:
    """The completions after which the level is first reached; None if it is not."""
    return next((samples for samples, accuracy in found.items() if accuracy >= level), None)


def spread(values: Sequence[float | None]) -> dict[str, Any]:
    """Of the seeds that reached the level. num: how many did."""
    there = [value for value in values if value is not None]
    if not there:
        return {"num": 0}
    return {"num": len(there), "mean": statistics.mean(there), "min": min(there), "max": max(there)}


def levels_of(teacher: dict[int, float]) -> dict[str, float]:
    first, *_, last = teacher.values()
    return {"teacher": last - BELOW, "gain": first + SHARE * (last - first)}


def against(teachers: Sequence[dict[int, float]], found: Sequence[dict[int, float]], level: str) -> dict[str, Any]:
    """Samples of each seed to a level of its teacher, and how many times fewer than the teacher itself needed."""
    levels = [levels_of(teacher)[level] for teacher in teachers]
    needed, samples = ([samples_to(*pair) for pair in zip(of, levels, strict=True)] for of in (teachers, found))
    fewer = [a / b if a and b else None for a, b in zip(needed, samples, strict=True)]
    return {"samples": samples, "spread": spread(samples), "times_fewer": spread(fewer)}


def summarise(options: Options) -> dict[str, Any]:
    curves = {name: [curve(options, name, seed) for seed in options.seeds] for name in options.arms}
    teachers = [curve(options, "rl", seed) for seed in options.seeds]
    return {
        "levels": [levels_of(teacher) for teacher in teachers],
        "arms": {
            name: {
                "title": ARMS[name].title,
                "problems": ARMS[name].problems,
                "group_size": ARMS[name].group_size,
                "curves": found,
                "final_accuracy": spread([[*of_seed.values()][-1] for of_seed in found]),
                **{level: against(teachers, found, level) for level in ("gain", "teacher")},
            }
            for name, found in curves.items()
        },
    }


def main(options: Options) -> None:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # a run takes all cores that it may use
    found = summarise(options)
    for arm in found["arms"].values():
        print(arm["title"], arm["gain"], arm["teacher"], arm["final_accuracy"])
    write_result("distillation", __doc__ or "", {**describe_machine(), "seeds": options.seeds, **found})


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
