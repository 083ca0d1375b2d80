"""Held-out accuracy against the seconds spent on training: the default run by this trainer and by TRL's.

Both start from the same warm-started base, take the same problems in the same order with the same number of completions, and have
the same learning rate at each step, KL to the base, clipping and AdamW. They take turns step by step on one machine. What is
looked at is the same too: greedy answers of our evaluator, of TRL's weights copied into a model of ours; looking is not timed.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from transformers import TrainerCallback

from benchmarks.our_side import OurSide, StepTime
from benchmarks.shapes import SHAPES, Shape, given
from benchmarks.trl_side import build, run
from rl.processes.runtime import Runtime
from rl.run.evaluate import evaluate
from rl.settings.config import RunConfig
from rl.settings.resolve import resolve
from rl.view.plots import PERCENT

EVERY = 10
COLOURS = {"ours": "#3b7dd8", "trl": "#e08a2e"}

Curve = list[tuple[float, float]]  # seconds of training, held-out accuracy


@dataclass(frozen=True, kw_only=True)
class LearningRun:
    seed: int
    curves: dict[str, Curve]

    def seconds_to(self, accuracy: float, side: str) -> float | None:
        """Until the first look at which the accuracy was reached."""
        return next((seconds for seconds, found in self.curves[side] if found >= accuracy), None)


class Rate(TrainerCallback):
    """Sets TRL's learning rate to ours before each step."""

    def __init__(self, rate_at: Callable[[int], float]) -> None:
        self.rate_at = rate_at

    def on_step_begin(self, args: Any, state: Any, control: Any, *, optimizer: Any, **_: Any) -> None:
        for group in optimizer.param_groups:
            group["lr"] = self.rate_at(state.global_step + 1)


def learn(runtime: Runtime, *, seed: int, num_steps: int, report: Callable[[str], None]) -> LearningRun:
    shape: Shape = SHAPES["a"]
    settings = resolve(RunConfig(seed=seed, num_steps=num_steps), "cpu")
    assert settings.kl_weight == shape.kl_weight
    what = given(shape, runtime, num_problems=0, seed=seed)
    side = OurSide(shape, what, runtime)
    trainer = build(shape, what, runtime, num_steps=num_steps)
    copied = OurSide(shape, what, runtime)  # holds TRL's weights while they are looked at
    trainer.add_callback(Rate(settings.learning_rate_at))

    start = evaluate(side.collector, what.held_out)["eval/accuracy"] or 0.0
    curves: dict[str, Curve] = {name: [(0.0, start)] for name in COLOURS}
    seconds = dict.fromkeys(COLOURS, 0.0)

    def between(theirs: StepTime) -> None:
        step = side.num_steps + 1
        side.learner.set_learning_rate(settings.learning_rate_at(step))
        seconds["ours"] += side.step().total
        seconds["trl"] += theirs.total
        if step % EVERY != 0 and step != num_steps:
            return
        copied.learner.policy.model.load_state_dict(trainer.model.state_dict())
        copied.delivery.deliver(version=step)
        for name, looked_at in (("ours", side), ("trl", copied)):
            accuracy = evaluate(looked_at.collector, what.held_out)["eval/accuracy"] or 0.0
            curves[name].append((seconds[name], accuracy))
            report(f"seed {seed} step {step:2d} {name:4s}: {accuracy:.1%} after {seconds[name]:.0f} s")

    run(trainer, between)
    what.close()
    return LearningRun(seed=seed, curves=curves)


def summary(runs: list[LearningRun]) -> dict[str, Any]:
    """The curves, and how long each side took to the accuracy that both reached in the end."""
    found = []
    for learnt in runs:
        level = min(max(accuracy for _, accuracy in curve) for curve in learnt.curves.values())
        taken = {name: learnt.seconds_to(level, name) for name in COLOURS}
        found.append(
            {"seed": learnt.seed, "accuracy_both_reach": level, "seconds_to_it": taken, "curves": learnt.curves}
        )
    # A run that is no better in the end than at the start has no such time.
    ratios = [run["seconds_to_it"]["trl"] / s for run in found if (s := run["seconds_to_it"]["ours"])]
    return {"runs": found, "seconds_to_accuracy_ratio_median": statistics.median(ratios) if ratios else None}


def figure(runs: list[LearningRun], path: Path) -> None:
    drawn = Figure(figsize=(7.5, 4.5), dpi=100, layout="constrained")
    axes = drawn.subplots()
    for learnt in runs:
        for name, curve in learnt.curves.items():
            label = {"ours": "Plumbline", "trl": "TRL 1.16"}[name] if learnt is runs[0] else None
            axes.plot(*zip(*curve, strict=True), "o-", color=COLOURS[name], label=label, markersize=3)
    axes.set_xlabel("seconds of training (looking at the accuracy not counted)")
    axes.set_ylabel("held-out problems solved, greedy")
    axes.yaxis.set_major_formatter(PERCENT)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    drawn.savefig(path, format="png")
