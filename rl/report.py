"""report.html: one file that shows a run to a person, on any screen, without a request to anywhere.

Model text is hostile: every string from the run is escaped, control characters are spelled out, and the page forbids
itself scripts and requests. What is missing (a run killed early, no reference, no completions) is said in its place.
"""

from __future__ import annotations

import html
import io
import json
import math
import os
import random
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from rl.metrics import METRICS, OUTCOMES, PHASES, Row, read_metrics, series, start_and_end, time_by_phase
from rl.progress import duration, visible, where_time_went

TEXT_LIMIT = 4_000  # characters of a prompt or completion that are embedded
POINTS = 300  # a curve is averaged down to this many points: the page stays small however long the run
INK, MUTED, GRID = "#010203", "#010204", "#010205"  # stand-ins: replaced by CSS variables, for light and dark
BLUE, ORANGE, GREEN, PURPLE, RED, GREY = "#3b7dd8", "#e08a2e", "#2fa37a", "#8d6bd1", "#d1495b", "#8a93a1"
SLATE, GOLD, BROWN = "#75808f", "#cfa62e", "#8c5a3c"
OUTCOME_COLOURS: dict[str, str] = dict(zip(OUTCOMES, (GREEN, SLATE, ORANGE, GOLD, PURPLE, RED, BROWN), strict=True))
PHASE_COLOURS: dict[str, str] = dict(zip(PHASES, (BLUE, ORANGE, GREEN, GREY, PURPLE), strict=True))
PERCENT = FuncFormatter(lambda share, _: f"{round(100 * share, 6):g}%")
PLAIN = FuncFormatter(lambda value, _: f"{value:g}")  # 2e-05 at the tick, no factor above the axis
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none", "font.size": 9, "axes.labelsize": 9, "axes.spines.top": False, "axes.spines.right": False,
    "axes.edgecolor": GRID, "axes.labelcolor": MUTED, "text.color": INK, "xtick.color": MUTED, "ytick.color": MUTED,
    "xtick.major.size": 0, "ytick.major.size": 0, "axes.grid": True, "axes.grid.axis": "y", "grid.color": GRID,
    "grid.linewidth": 0.7, "axes.axisbelow": True, "legend.frameon": False, "legend.fontsize": 9,
    "lines.linewidth": 1.6, "lines.solid_capstyle": "round",
}  # fmt: skip

# ---------------------------------------------------------------- plots


def _thin(values: Sequence[float]) -> np.ndarray:
    """Means over equal runs of steps, so that a long curve keeps its shape in a bounded number of points."""
    starts = np.arange(0, len(values), max(1, math.ceil(len(values) / POINTS)))
    sums = np.add.reduceat(np.asarray(values, float), starts) if len(values) else np.array([])
    return sums / np.diff(np.append(starts, len(values)))


def _smooth(values: np.ndarray) -> np.ndarray:
    """Centred moving average over a twentieth of the curve, at the edges over what is there; short curves stay as is."""
    kernel = np.ones(2 * (len(values) // 40) + 1 if len(values) > 40 else 1)
    return np.convolve(values, kernel, "same") / np.convolve(np.ones_like(values), kernel, "same")


def _curve(axes: Axes, rows: list[Row], key: str, colour: str, label: str = "", *, noisy: bool = True) -> None:
    """One metric: a line with its points while they are few, the raw curve behind a smoothed one when they are many."""
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
    """Shares or seconds on top of each other. A single step is drawn one step wide, or it would have no area."""
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
    """The axis of a quantity that cannot be negative, with room above for the highest point."""
    axes.set_ylim(0, 1.08 * max(0.0, float(axes.dataLim.y1)) or 1.0)


def _reward(axes: Axes, rows: list[Row]) -> None:
    both = [row for row in rows if row.get("reward/mean") is not None and row.get("reward/std") is not None]
    if both:
        mean, std = (_smooth(_thin(series(both, key)[1])) for key in ("reward/mean", "reward/std"))
        steps = _thin(series(both, "step")[1])
        axes.fill_between(steps, mean - std, mean + std, color=BLUE, alpha=0.12, linewidth=0, label="± 1 std")
    _curve(axes, rows, "reward/mean", BLUE, "mean")
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


# title; the metrics whose expectation is printed below; the panels, each with the metrics it shows
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


def _svg(title: str, panels: Sequence[Panel], rows: list[Row]) -> str:
    """The panels above each other as inline SVG whose text and colours follow the page."""
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


def _plot_card(title: str, notes: Sequence[str], panels: Sequence[Panel], rows: list[Row]) -> str:
    """A plot, what to expect of it, and on demand how it is measured. Empty if this run measured nothing of it."""
    timed = title == "Where the time went"
    rows_drawn = [row for row in rows if row["step"]] if timed else rows  # step 0 only evaluates
    drawn = [panel for panel in panels if any(series(rows_drawn, name)[0] for name in panel[0])]
    if not drawn:
        return ""
    text = "".join(_note(f"`{key}` {METRICS[key].healthy}") for key in notes if series(rows, key)[0])
    if title == "Divergence" and not series(rows, "kl/reference")[0]:
        text += _note("The reference was not run: the weight of its penalty is zero.")
    text += _note(where_time_went(rows)) if timed else ""
    terms = "".join(_note(f"`{key}` {METRICS[key].meaning}") for panel in drawn for key in panel[0])
    how = f"<details class=how><summary>How it is measured</summary>{terms}</details>"
    return f"<section class=card><h3>{title}</h3>{_svg(title, drawn, rows_drawn)}{text}{how}</section>"


def _plots(rows: list[Row]) -> str:
    cards = {plot[0]: _plot_card(*plot, rows) for plot in PLOTS}
    missing = ", ".join(title for title, card in cards.items() if not card)
    note = f"<p class=note>Not measured in this run so far: {missing}.</p>" if missing else ""
    return f"<div class=grid>{''.join(cards.values())}</div>{note}"


# ---------------------------------------------------------------- text


def _text(value: object, limit: int = TEXT_LIMIT) -> str:
    """Any value of the run as safe HTML text; a list of chat messages or of options as JSON."""
    text = json.dumps(value, ensure_ascii=False, indent=1) if isinstance(value, list | dict) else str(value)
    cut = f" … [{len(text) - limit:,} more characters]" if len(text) > limit else ""
    return html.escape(visible(text[:limit])) + cut


def _prose(text: str) -> str:
    """Text of ours, or of the registry, with its `code` marked."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text))


def _note(text: str) -> str:
    return f"<p class=note>{_prose(text)}</p>"


def _headline(rows: list[Row], config: dict[str, Any]) -> str:
    """The numbers a reader wants first."""
    tiles = []
    accuracy, reward = start_and_end(rows, "eval/accuracy"), start_and_end(rows, "reward/mean")
    if accuracy and len(series(rows, "eval/accuracy")[0]) == 1:
        tiles.append((f"{accuracy[0]:.1%}", "held-out accuracy, evaluated once"))
    elif accuracy:
        points = 100 * (accuracy[1] - accuracy[0])
        tiles.append((f"{accuracy[0]:.1%} → {accuracy[1]:.1%}", f"held-out accuracy ({points:+.1f} points)"))
    if reward:
        span = "tenth of the steps" if len(series(rows, "reward/mean")[0]) >= 20 else "step"
        tiles.append((f"{reward[0]:.2f} → {reward[1]:.2f}", f"reward, first and last {span}"))
    seconds = sum(time_by_phase(rows).values())
    steps = max(int(row["step"] or 0) for row in rows)
    if seconds and steps:
        tiles.append((duration(seconds), f"in all, {seconds / steps:.1f} s a step"))
    tokens = sum(series(rows, "tokens/sampled")[1])
    if tokens:
        tiles.append((f"{tokens / 1e6:,.2f} M" if tokens >= 1e5 else f"{tokens:,.0f}", "tokens sampled"))
    tiles.append((f"{steps:,} of {_text(config.get('num_steps', '?'), 20)}", "steps done"))
    return "".join(f"<div class=tile><b>{value}</b><span>{label}</span></div>" for value, label in tiles)


# What a reader should not have to find alone: metric, bound over the last tenth of the steps, what it means.
CONCERNS = (
    ("length/truncated", 0.1, "of the completions are cut by the token limit: right answers may be graded as missing"),
    ("groups/no_signal", 0.5, "of the groups carry no signal: most of the sampling teaches nothing"),
    ("outcome/unparsed", 0.05, "of the answers could not be read: check the extraction before blaming the model"),
    ("outcome/timeout", 0.02, "of the gradings passed their deadline"),
    ("outcome/crashed", 0.0, "of the completions could not be graded, since the verifier failed"),
    ("outcome/bad_reference", 0.0, "of the completions could not be graded, since their reference is unusable"),
    ("tis/truncated", 0.01, "of the tokens had their importance weight cut: sampler and trainer disagree"),
)


def _concerns(rows: list[Row]) -> str:
    ends = [(start_and_end(rows, key), key, bound, meaning) for key, bound, meaning in CONCERNS]
    items = [f"<li><b>{end[1]:.1%}</b> {meaning} (<code>{key}</code>, last tenth of the steps).</li>"
             for end, key, bound, meaning in ends if end and end[1] > bound]  # fmt: skip
    return (
        f"<section class='card concerns'><h3>Look here first</h3><ul>{''.join(items)}</ul></section>" if items else ""
    )


def _config_table(config: dict[str, Any]) -> str:
    if not config:
        return "<p class=note>config.json is missing or cannot be read.</p>"
    flat = {key: value for key, value in config.items() if not isinstance(value, dict)}
    nested = {f"{key}.{name}": value for key, part in config.items() if isinstance(part, dict)
              for name, value in part.items()}  # fmt: skip
    cells = (f"<tr><th>{_text(key)}<td>{_text(value)}" for key, value in {**flat, **nested}.items())
    return f"<table>{''.join(cells)}</table>"


# ---------------------------------------------------------------- completions


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Byte offset and record of every readable line. The file may hold gigabytes: one line at a time is in memory."""
    with path.open("rb") as file:
        offset = 0
        for line in file:
            try:
                record = json.loads(line)
            except ValueError:  # cut by a kill
                record = None
            if isinstance(record, dict) and isinstance(record.get("step"), int):
                yield offset, record
            offset += len(line)


def _chosen_groups(path: Path) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """For the first, the middle and the last step: the first group whose rewards differ, and the first where not."""
    offsets: dict[int, list[int]] = {}
    for offset, record in _lines(path):
        offsets.setdefault(record["step"], []).append(offset)
    steps = sorted(offsets)
    for step in sorted({steps[0], steps[len(steps) // 2], steps[-1]} if steps else ()):
        groups: dict[object, list[dict[str, Any]]] = {}
        with path.open("rb") as file:
            for offset in offsets[step]:
                file.seek(offset)
                record = json.loads(file.readline())
                groups.setdefault(str(record.get("problem_id")), []).append(record)
        kinds = {_has_signal(group): group for group in reversed(groups.values())}
        for signal in sorted(kinds, reverse=True):
            yield step, kinds[signal]


def _has_signal(group: list[dict[str, Any]]) -> bool:
    return len({record.get("value") for record in group} - {None}) > 1


def _chosen_completions(step: int, group: list[dict[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    """Best and worst by reward, and one of the rest at random: the same one each time the report is written.

    Where the rewards do not differ there is no best: one at random stands for all.
    """
    picks: list[tuple[str, dict[str, Any]]] = []
    if _has_signal(group):
        graded = sorted((record for record in group if record.get("value") is not None), key=lambda r: r["value"])
        picks = [("best", graded[-1]), ("worst", graded[0])]
    rest = [record for record in group if all(record is not picked for _, picked in picks)]
    return picks + ([("random", random.Random(step).choice(rest))] if rest else [])


def _completion_card(name: str, record: dict[str, Any]) -> str:
    value, advantage = record.get("value"), record.get("advantage")
    outcome = str(record.get("outcome"))
    facts = [f"score {value:g}" if isinstance(value, int | float) else "not graded"]
    facts += [f"advantage {advantage:+.2f}"] if isinstance(advantage, int | float) else []
    facts += [f"{_text(record.get('length'))} tokens, ended by {_text(record.get('finish_reason'))}"]
    detail = f"<p class=note>Verifier: {_text(record['detail'], 500)}</p>" if record.get("detail") else ""
    badge = f"<span class=badge style='background:{OUTCOME_COLOURS.get(outcome, GREY)}'>{_text(outcome, 40)}</span>"
    return (f"<details><summary>{badge} <b>{name}</b> <span class=facts>{' · '.join(facts)}</span></summary>"
            f"<pre>{_text(record.get('completion'))}</pre>"
            f"{detail}</details>")  # fmt: skip


def _completions(path: Path) -> str:
    if not path.exists():
        return "<p class=note>This run has no completions.jsonl.</p>"
    parts = []
    for step, group in _chosen_groups(path):
        signal = "rewards differ" if _has_signal(group) else "all rewards equal: no signal"
        cards = "".join(_completion_card(name, record) for name, record in _chosen_completions(step, group))
        parts.append(
            f"<section class=card><h3>Step {step} <span class=facts>{_text(group[0].get('problem_id'), 80)}, "
            f"{len(group)} completions, {signal}</span></h3><details><summary>Problem</summary>"
            f"<pre>{_text(group[0].get('prompt'))}</pre></details>"
            f"<p class=note>Reference: <code>{_text(group[0].get('reference'), 300)}</code></p>{cards}</section>"
        )
    return "".join(parts) or "<p class=note>completions.jsonl holds no completion yet.</p>"


# ---------------------------------------------------------------- the page

CSS = """
:root{color-scheme:light dark;--page:#f6f7f9;--card:#fff;--ink:#1b2330;--muted:#5d6878;--grid:#e3e7ec;--code:#f0f2f5}
@media(prefers-color-scheme:dark){:root{--page:#12151a;--card:#1a1f26;--ink:#e6eaf0;--muted:#9aa5b4;--grid:#2d343e;
--code:#232a33}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:1120px;margin:0 auto;padding:28px 16px 60px}
h1{font-size:26px;line-height:1.2;margin:0;letter-spacing:-.01em;overflow-wrap:anywhere}
h2{font-size:19px;margin:36px 0 12px}
h3{font-size:15px;margin:0 0 8px}
.lede{color:var(--muted);margin:4px 0 20px;overflow-wrap:anywhere}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(165px,1fr));gap:12px}
.grid{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,400px),1fr));gap:12px;margin-top:12px}
.card,.tile{background:var(--card);border:1px solid var(--grid);border-radius:10px;padding:14px 16px;min-width:0}
.card{margin-bottom:0}.stack>.card{margin-bottom:12px}
.tile{padding:12px 14px}.tile b{display:block;font-size:clamp(17px,.4vw + 15.6px,20px);line-height:1.25;font-variant-numeric:tabular-nums;letter-spacing:-.02em}
.tile span,.note,.facts{color:var(--muted);font-size:13px;font-weight:400}
.note{margin:8px 0 0;overflow-wrap:anywhere}
.concerns{border-left:4px solid #e08a2e;margin-top:12px}.concerns ul{margin:0;padding-left:18px}
svg{display:block;width:100%;max-width:600px;height:auto;margin:0 auto}
svg text{font-family:system-ui,-apple-system,"Segoe UI",Roboto,sans-serif!important}
code,pre{font:12.5px/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;background:var(--code);border-radius:4px}
code{padding:1px 4px;overflow-wrap:anywhere}
pre{padding:12px;margin:8px 0 0;white-space:pre-wrap;overflow-wrap:anywhere;max-height:420px;overflow:auto}
details{border-top:1px solid var(--grid);padding:8px 0}summary{cursor:pointer}
.how{border:0;padding:6px 0 0;font-size:13px;color:var(--muted)}
.badge{color:#fff;border-radius:20px;padding:1px 9px;font-size:12px}
table{border-collapse:collapse;width:100%;font-size:13px}
th,td{text-align:left;padding:4px 8px 4px 0;border-top:1px solid var(--grid);vertical-align:top;overflow-wrap:anywhere}
th{font-weight:500;color:var(--muted);width:40%}
"""


def _page(name: str, config: dict[str, Any], rows: list[Row], completions: str) -> str:
    lede = " · ".join(_text(config[key], 120) for key in ("model", "dataset", "algorithm") if key in config)
    lede += f" · seed {_text(config['seed'], 40)}" if "seed" in config else ""
    if rows:
        body = f"<div class=tiles>{_headline(rows, config)}</div>{_concerns(rows)}{_plots(rows)}"
    else:
        body = "<section class=card>No step was measured yet: metrics.jsonl is missing or empty. The run was stopped "
        body += "before its first line, or has only just started.</section>"
    policy = "default-src 'none'; style-src 'unsafe-inline'"  # whatever slips through: no script, no request
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}"><title>{_text(name)} – Plumbline</title>
<style>{CSS}</style></head><body><main><h1>{_text(name)}</h1><p class=lede>{lede}</p>
{body}
<h2>Completions to read</h2><div class=stack>{completions}</div>
<h2>Configuration</h2><section class=card>{_config_table(config)}</section>
</main></body></html>
"""


def _read_config(run_dir: Path) -> dict[str, Any]:
    """The run's options; nothing if they are missing or were cut by a kill: the curves are worth showing without."""
    try:
        config = json.loads((run_dir / "config.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return {}
    return config if isinstance(config, dict) else {}


def _must_exist(run_dir: Path) -> Path:
    run_dir = Path(run_dir)
    if not run_dir.is_dir():
        raise ValueError(
            f"run folder {run_dir} does not exist: give the --run-dir of a run (the folder of metrics.jsonl)"
        )
    return run_dir


def write_report(run_dir: Path) -> Path:
    """Write report.html into the run's folder, in one move: a page that is open while the run goes on is never half."""
    run_dir = _must_exist(run_dir)
    completions = _completions(run_dir / "completions.jsonl")
    page = _page(run_dir.resolve().name, _read_config(run_dir), read_metrics(run_dir), completions)
    aside = run_dir / "report.html.tmp"
    aside.write_text(page, encoding="utf-8")
    os.replace(aside, run_dir / "report.html")
    return run_dir / "report.html"


def accuracy_figure(run_dirs: list[Path], path: Path) -> None:
    """A PNG of several runs beside each other: held-out accuracy and reward against steps."""
    colours = (BLUE, ORANGE, GREEN, PURPLE, RED, GREY)
    ink = dict.fromkeys(("axes.labelcolor", "xtick.color", "ytick.color"), "#5d6878")
    style: dict[Any, Any] = {**STYLE, **ink, "text.color": "#1b2330", "axes.edgecolor": "#d5dae1", "font.size": 10,
                             "grid.color": "#e3e7ec", "axes.labelsize": 10, "lines.linewidth": 2}  # fmt: skip
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(12, 5), dpi=100, facecolor="white")
        figure.set_layout_engine("constrained", w_pad=0.15, h_pad=0.1, wspace=0.04)
        left, right = figure.subplots(1, 2)
        for index, run_dir in enumerate(run_dirs):
            rows = read_metrics(_must_exist(run_dir))
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
