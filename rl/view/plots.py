"""Plots of a run: inline SVG for the report, and a PNG that compares several runs."""

from __future__ import annotations

import html
import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from rl.view.metrics import OUTCOMES, PHASES, Row, existing_run_dir, read_metrics, series

POINTS = 300  # a longer curve is averaged to this many points, to keep the page small
INK, MUTED, GRID = "#010203", "#010204", "#010205"  # placeholders that become CSS variables, for light and dark pages
BLUE, ORANGE, GREEN, PURPLE, RED, GREY = "#3b7dd8", "#e08a2e", "#2fa37a", "#8d6bd1", "#d1495b", "#8a93a1"
SLATE, GOLD, BROWN, LIGHT, PALE = "#75808f", "#cfa62e", "#8c5a3c", "#b9c0ca", "#dde1e7"
OUTCOME_COLOURS: dict[str, str] = dict(
    zip(OUTCOMES, (GREEN, SLATE, ORANGE, GOLD, PURPLE, RED, LIGHT, BROWN, PALE), strict=True)
)
PHASE_COLOURS: dict[str, str] = dict(zip(PHASES, (BLUE, ORANGE, GREEN, GREY, PURPLE), strict=True))
PERCENT = FuncFormatter(lambda share, _: f"{round(100 * share, 6):g}%")
PLAIN = FuncFormatter(lambda value, _: f"{value:g}")  # 2e-05 at each tick instead of a factor above the axis
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none", "font.size": 9, "axes.labelsize": 9, "axes.spines.top": False, "axes.spines.right": False,
    "axes.edgecolor": GRID, "axes.labelcolor": MUTED, "text.color": INK, "xtick.color": MUTED, "ytick.color": MUTED,
    "xtick.major.size": 0, "ytick.major.size": 0, "axes.grid": True, "axes.grid.axis": "y", "grid.color": GRID,
    "grid.linewidth": 0.7, "axes.axisbelow": True, "legend.frameon": False, "legend.fontsize": 9,
    "lines.linewidth": 1.6, "lines.solid_capstyle": "round",
}  # fmt: skip
ON_WHITE: dict[Any, Any] = {
    **STYLE, **dict.fromkeys(("axes.labelcolor", "xtick.color", "ytick.color"), "#5d6878"), "text.color": "#1b2330",
    "axes.edgecolor": "#d5dae1", "grid.color": "#e3e7ec", "font.size": 10, "axes.labelsize": 10, "lines.linewidth": 2,
}  # fmt: skip
Interval = tuple[float, float, float]  # a measured value and the ends of its confidence interval


def _thin(values: Sequence[float]) -> np.ndarray:
    """Averages equal ranges of steps, so that a curve has at most POINTS points."""
    starts = np.arange(0, len(values), max(1, math.ceil(len(values) / POINTS)))
    sums = np.add.reduceat(np.asarray(values, float), starts) if len(values) else np.array([])
    return sums / np.diff(np.append(starts, len(values)))


def _smooth(values: np.ndarray) -> np.ndarray:
    """Centred moving average over a twentieth of the curve (at the edges over fewer points); short curves are unchanged."""
    kernel = np.ones(2 * (len(values) // 40) + 1 if len(values) > 40 else 1)
    return np.convolve(values, kernel, "same") / np.convolve(np.ones_like(values), kernel, "same")


def _curve(axes: Axes, rows: list[Row], key: str, colour: str, label: str = "", *, noisy: bool = True) -> None:
    """Draws a metric: up to 40 points as a line with markers, more as a pale raw curve behind a smoothed one."""
    steps, values = (_thin(numbers) for numbers in series(rows, key))
    if not len(steps):
        return
    if len(steps) <= 40:
        axes.plot(steps, values, "o-", color=colour, label=label, markersize=3)
    elif noisy:
        axes.plot(steps, values, color=colour, linewidth=0.7, alpha=0.35)
        axes.plot(steps, _smooth(values), color=colour, label=label)
    else:
        axes.plot(steps, values, color=colour, label=label)


def _stack(axes: Axes, rows: list[Row], colours: dict[str, str], prefix: str) -> None:
    """Draws a stacked area of shares or seconds. A single step is drawn one step wide, since it would have no area."""
    rows = [row for row in rows if any(row.get(prefix + name) is not None for name in colours)]
    steps = [float(row["step"] or 0) for row in rows]
    if len(rows) == 1:
        rows, steps = rows * 2, [steps[0] - 0.5, steps[0] + 0.5]
    layers = {name: [float(row.get(prefix + name) or 0) for row in rows] for name in colours}
    used = [name for name in colours if any(layers[name])]
    if used:
        axes.stackplot(_thin(steps), *(_thin(layers[name]) for name in used), colors=[colours[name] for name in used],
                       labels=[name.replace("_", " ") for name in used], linewidth=0, step="mid")  # fmt: skip


def _from_zero(axes: Axes) -> None:
    """Scales the axis of a non-negative quantity, with space above the highest point."""
    axes.set_ylim(0, 1.08 * max(0.0, float(axes.dataLim.y1)) or 1.0)


def _reward(axes: Axes, rows: list[Row]) -> None:
    both = [row for row in rows if row.get("reward/mean") is not None and row.get("reward/std") is not None]
    if both:
        mean, std = (_smooth(_thin(series(both, key)[1])) for key in ("reward/mean", "reward/std"))
        steps = _thin(series(both, "step")[1])
        axes.fill_between(steps, mean - std, mean + std, color=BLUE, alpha=0.12, linewidth=0, label="± 1 std")
    _curve(axes, rows, "reward/mean", BLUE, "mean")
    parts = sorted({key for row in rows for key in row if key.startswith("part/")})
    if len(parts) > 1:
        for key, colour in zip(parts, cycle((ORANGE, GREEN, PURPLE, RED, GOLD, BROWN))):
            _curve(axes, rows, key, colour, key.removeprefix("part/"))
    axes.set_ylabel("reward")


def _accuracy(axes: Axes, rows: list[Row]) -> None:
    _curve(axes, rows, "eval/accuracy", GREEN, "held-out, greedy", noisy=False)
    _curve(axes, rows, "accuracy/sampled", GREY, "training problems, sampled")
    axes.set_ylabel("correct")
    axes.yaxis.set_major_formatter(PERCENT)


def _one(key: str, colour: str, unit: str, title: str = "") -> Callable[[Axes, list[Row]], None]:
    def draw(axes: Axes, rows: list[Row]) -> None:
        _curve(axes, rows, key, colour)
        axes.set_title(title, loc="left", fontsize=9, pad=4)
        axes.set_ylabel(unit)
        _from_zero(axes)
        axes.yaxis.set_major_formatter(PLAIN)

    return draw


def _lengths(axes: Axes, rows: list[Row]) -> None:
    _curve(axes, rows, "length/max", GREY, "longest")
    _curve(axes, rows, "length/mean", BLUE, "mean")
    axes.set_ylabel("tokens")
    _from_zero(axes)


def _truncated(axes: Axes, rows: list[Row]) -> None:
    _one("length/truncated", RED, "completions", "cut by the token limit")(axes, rows)
    axes.yaxis.set_major_formatter(PERCENT)


def _signal(axes: Axes, rows: list[Row]) -> None:
    _curve(axes, rows, "groups/no_signal", BLUE, "observed")
    _curve(axes, rows, "groups/no_signal_expected", ORANGE, "if all problems were equally hard")
    axes.set_ylabel("groups without signal")
    axes.set_ylim(0, 1)
    axes.yaxis.set_major_formatter(PERCENT)


def _outcomes(axes: Axes, rows: list[Row]) -> None:
    _stack(axes, rows, OUTCOME_COLOURS, "outcome/")
    axes.set_ylabel("completions")
    axes.set_ylim(0, 1)
    axes.yaxis.set_major_formatter(PERCENT)


def _time(axes: Axes, rows: list[Row]) -> None:
    _stack(axes, [row for row in rows if row["step"]], PHASE_COLOURS, "time/")
    axes.set_ylabel("seconds a step")
    _from_zero(axes)


# Title, metrics whose expected values are printed below, and panels with the metrics that they show.
Panel = tuple[tuple[str, ...], Callable[[Axes, list[Row]], None]]
PLOTS: tuple[tuple[str, tuple[str, ...], tuple[Panel, ...]], ...] = (
    ("Held-out accuracy", ("eval/accuracy",), ((("eval/accuracy", "accuracy/sampled"), _accuracy),)),
    ("Reward", ("reward/mean", "reward/std"), ((("reward/mean", "reward/std"), _reward),)),
    ("Divergence", ("kl/reference", "kl/sampler"),
     ((("kl/reference",), _one("kl/reference", PURPLE, "nats a token", "policy from its reference")),
      (("kl/sampler",), _one("kl/sampler", ORANGE, "nats a token", "sampler from trainer")))),
    ("Entropy", ("entropy",), ((("entropy",), _one("entropy", GREEN, "nats a token")),)),
    ("Length of completions", ("length/mean", "length/truncated"),
     ((("length/mean", "length/max"), _lengths), (("length/truncated",), _truncated))),
    ("Groups without signal", ("groups/no_signal", "groups/no_signal_expected"),
     ((("groups/no_signal", "groups/no_signal_expected"), _signal),)),
    ("What became of the completions", ("outcome/no_answer", "outcome/unparsed", "outcome/crashed"),
     ((tuple(f"outcome/{name}" for name in OUTCOMES), _outcomes),)),
    ("Where the time went", (), ((tuple(f"time/{name}" for name in PHASES), _time),)),
)  # fmt: skip


def svg_of(title: str, panels: Sequence[Panel], rows: list[Row]) -> str:
    """Inline SVG of panels above each other, with the text and colours of the page."""
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": title}):
        figure = Figure(figsize=(4.6, 2.1 + 0.65 * len(panels)), layout="constrained")
        every = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
        for axes, (_, draw) in zip(every, panels, strict=True):
            draw(axes, rows)
            axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
            axes.yaxis.set_major_locator(MaxNLocator(nbins=5 if len(panels) == 1 else 3))
            axes.margins(x=0.02)
            entries = len(axes.get_legend_handles_labels()[0])
            if entries > 1:
                axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=5, borderaxespad=0, handlelength=1,
                            columnspacing=0.9, handletextpad=0.4, fontsize=9 if entries < 5 else 7.5)  # fmt: skip
        figure.align_ylabels()
        every[-1].set_xlabel("step")
        out = io.StringIO()
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    svg = re.sub(r"<metadata>.*?</metadata>", "", out.getvalue()[out.getvalue().index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"|(?<=<g) id="[^"]*"', "", svg)  # ids repeat from figure to figure
    for stand_in, variable in ((INK, "--ink"), (MUTED, "--muted"), (GRID, "--grid")):
        svg = svg.replace(stand_in, f"var({variable})")
    return svg.replace("<svg ", f'<svg role="img" aria-label="{html.escape(title)}" ', 1)


def accuracy_figure(run_dirs: list[Path], path: Path) -> None:
    """A PNG that compares runs: held-out accuracy and reward by step."""
    colours = (BLUE, ORANGE, GREEN, PURPLE, RED, GREY)
    with matplotlib.rc_context(ON_WHITE):
        figure = Figure(figsize=(12, 5), dpi=100, facecolor="white")
        figure.set_layout_engine("constrained", w_pad=0.15, h_pad=0.1, wspace=0.04)
        left, right = figure.subplots(1, 2)
        for index, run_dir in enumerate(run_dirs):
            rows = read_metrics(existing_run_dir(run_dir))
            colour = colours[index % len(colours)]
            _curve(left, rows, "eval/accuracy", colour, Path(run_dir).resolve().name.replace("$", r"\$"), noisy=False)
            _curve(right, rows, "reward/mean", colour)
        left.yaxis.set_major_formatter(PERCENT)
        titles = ("Held-out accuracy (greedy)", "correct"), ("Mean reward of the sampled completions", "reward")
        for axes, (title, unit) in zip((left, right), titles, strict=True):
            axes.set_ylabel(unit)
            axes.set_title(title, loc="left", fontsize=12, fontweight="bold", pad=10)
            axes.set_xlabel("step")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        handles, labels = left.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper left", ncols=6, fontsize=11)
        figure.savefig(path, format="png")


def stages_figure(stages: Mapping[str, Path], path: Path) -> None:
    """A PNG of runs one behind the other, each a part of the axis: accuracy, reward and length by step."""
    draws = (_accuracy, _reward, _lengths)
    with matplotlib.rc_context(ON_WHITE):
        figure = Figure(figsize=(3 + 2 * len(stages), 8), dpi=100, facecolor="white", layout="constrained")
        every = figure.subplots(len(draws), len(stages), sharey="row", squeeze=False)
        for column, (name, run_dir) in zip(every.T, stages.items(), strict=True):
            rows = read_metrics(existing_run_dir(run_dir))
            for axes, draw in zip(column, draws, strict=True):
                draw(axes, rows)
                axes.xaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
            column[0].set_title(name.replace("$", r"\$"), loc="left", fontsize=12, fontweight="bold", pad=10)
            column[-1].set_xlabel("step")
        for axes in every[:, 1:].flat:
            axes.set_ylabel("")
        for row in every:  # of the stages that measure most
            fullest = max(row, key=lambda axes: len(axes.get_legend_handles_labels()[0]))
            row[0].legend(*fullest.get_legend_handles_labels(), fontsize=9)
        figure.align_ylabels(every[:, 0])
        figure.savefig(path, format="png")


def budgets_figure(points: Sequence[tuple[str, Interval, Interval]], path: Path) -> None:
    """A picture of accuracy over mean thinking tokens, in the format that the file's ending names.

    points: what is written beside each, its thinking tokens, and its accuracy; intervals are drawn as bars.
    """
    points = sorted(points, key=lambda point: point[1][0])
    tokens, accuracy = (np.array([point[i] for point in points]) for i in (1, 2))
    with matplotlib.rc_context(ON_WHITE):
        figure = Figure(figsize=(6, 4), dpi=150, facecolor="white", layout="constrained")
        axes = figure.subplots()
        (xs, *xs_ends), (ys, *ys_ends) = tokens.T, accuracy.T
        bars = [np.abs(ends - middle) for ends, middle in ((np.array(xs_ends), xs), (np.array(ys_ends), ys))]
        axes.errorbar(xs, ys, xerr=bars[0], yerr=bars[1], fmt="o-", color=BLUE, ecolor=GREY, elinewidth=1, capsize=2)
        for (label, *_), x, y in zip(points, xs, ys, strict=True):
            axes.annotate(label, (x, y), xytext=(4, -11), textcoords="offset points", fontsize=8)
        axes.set_xlabel("mean thinking tokens")
        axes.set_ylabel("correct")
        axes.xaxis.set_major_formatter(PLAIN)
        axes.yaxis.set_major_formatter(PERCENT)
        figure.savefig(path)
