"""Figures 5 and 7 of DeepSeekMath (arXiv 2402.03300) on the default task.

    python -m benchmarks.deepseekmath_figures

Figure 5: held-out accuracy over the steps of RFT, online RFT, and GRPO with outcome and with process supervision; and of DPO on own
samples, which its section 5.2 names beside them. The runs are those of benchmarks.grpo_vs_ppo, and are made if they are not there.
Figure 7: maj@K and pass@K of the base and of the GRPO runs' last checkpoints, from 64 samples of each held-out problem: maj@K is the mean
over disjoint blocks of K samples, pass@K the unbiased estimate (arXiv 2107.03374).

Writes benchmarks/results/deepseekmath_figures.json and docs/deepseekmath_figures.png.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import tyro
from matplotlib.figure import Figure

from benchmarks import grpo_vs_ppo
from benchmarks.grpo_vs_ppo import (
    ARMS,
    COMPLETIONS,
    curves,
    difference,
    folder,
    last,
    make_runs,
    mean_curve,
    of_k,
    percent,
    sampled,
)
from benchmarks.machine import describe_machine, write_result
from rl.run.checkpoint import checkpoints
from rl.settings.defaults import TINY
from rl.view.plots import PERCENT

FIGURE_5 = ("rft", "online-rft", "online-dpo", "grpo", "grpo-process")
SAMPLES, KS = 64, (1, 2, 4, 8, 16, 32, 64)
# The paper's findings, as differences that should be above 0.
FINDINGS = (("online-rft", "rft"), ("grpo", "online-rft"), ("grpo-process", "grpo"))


@dataclass(frozen=True, kw_only=True)
class Options(grpo_vs_ppo.Options):
    arms: tuple[str, ...] = FIGURE_5


def findings(found: Mapping[str, Any], figure_7: Mapping[str, Any]) -> str:
    """What the paper found, and the differences here: points with 95 % intervals over the seeds, bold where they do not hold 0."""

    def gain(kind: str) -> str:
        after, before = (percent([of[kind][-1] for of in figure_7[who]]) for who in ("rl", "base"))
        return difference(after, before, 1)

    lines = ["| finding of the paper | here, points |", "| --- | --- |"]
    for ahead, behind in FINDINGS:
        apart = difference(percent(last(found[ahead])), percent(last(found[behind])), 1)
        lines.append(f"| {ARMS[ahead].title} is ahead of {ARMS[behind].title} | {apart} |")
    lines.append(f"| RL raises maj@{SAMPLES} | {gain('maj')} |")
    lines.append(f"| RL does not raise pass@{SAMPLES} | {gain('pass')} |")
    return "\n".join(lines)


def draw(found: Mapping[str, Any], figure_7: Mapping[str, Any], path: Path) -> None:
    """Left figure 5, right figure 7: means over the seeds, their range shaded."""
    drawn = Figure(figsize=(12, 5), dpi=90, layout="constrained")
    left, right = drawn.subplots(1, 2)
    for arm, of_arm in found.items():
        x, of_steps = [COMPLETIONS * step for step in of_arm["steps"]], list(zip(*of_arm["eval/accuracy"], strict=True))
        left.plot(x, mean_curve(of_arm), marker="o", markersize=3, color=ARMS[arm].colour, label=ARMS[arm].title)
        left.fill_between(x, [min(r) for r in of_steps], [max(r) for r in of_steps], color=ARMS[arm].colour, alpha=0.1)
    for who, title, style in (("rl", "GRPO", "-"), ("base", "base", "--")):
        for kind, colour in (("pass", "#8d6bd1"), ("maj", "#3b7dd8")):
            of_ks = list(zip(*(of[kind] for of in figure_7[who]), strict=True))
            right.plot(KS, [mean(r) for r in of_ks], style, color=colour, label=f"{kind}@K, {title}")
            right.fill_between(KS, [min(r) for r in of_ks], [max(r) for r in of_ks], color=colour, alpha=0.15)
    right.set_xscale("log", base=2)
    for axes, x_label, y_label in (
        (left, "completions sampled", "held-out problems solved, greedy"),
        (right, "K", "held-out problems solved"),
    ):
        axes.set(xlabel=x_label, ylabel=y_label)
        axes.yaxis.set_major_formatter(PERCENT)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    drawn.savefig(path, format="png")


def main(options: Options) -> None:
    make_runs(options)
    found = {arm: curves(options, arm) for arm in options.arms}
    trained = [str(checkpoints(folder(options, "grpo", seed))[-1]) for seed in options.seeds]
    figure_7 = {
        "base": [of_k(sampled(TINY, seed, SAMPLES), KS) for seed in options.seeds],
        "rl": [of_k(sampled(model, seed, SAMPLES), KS) for model, seed in zip(trained, options.seeds, strict=True)],
    }
    print(findings(found, figure_7))
    draw(found, figure_7, Path("docs/deepseekmath_figures.png"))
    step = {"completions": COMPLETIONS, "steps": options.steps, "seeds": options.seeds, "ks": KS}
    write_result(
        "deepseekmath_figures", __doc__ or "", {**describe_machine(), **step, "figure 5": found, "figure 7": figure_7}
    )


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
