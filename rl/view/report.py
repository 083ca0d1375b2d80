"""Writes report.html: a run on one self-contained page that makes no network requests.

Model text is hostile: every string from the run is escaped, control characters are spelled out, and the page's own policy forbids
scripts and requests. Missing parts (a run killed early, no reference, no completions) are named in their place.
"""

from __future__ import annotations

import html
import json
import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rl.view import conversations
from rl.view.conversations import conversation, escaped
from rl.view.health_checks import MetricWindows
from rl.view.metrics import (
    METRICS,
    Row,
    existing_run_dir,
    read_metrics,
    series,
    start_and_end,
    time_by_phase,
    unsafe_programs,
    write_whole,
)
from rl.view.plots import GREY, OUTCOME_COLOURS, PLOTS, Panel, svg_of
from rl.view.progress import duration, where_time_went

REPORT = "report.html"
TITLE = ("model", "dataset", "algorithm")  # options below the run's name


def _plot_card(title: str, notes: Sequence[str], panels: Sequence[Panel], rows: list[Row]) -> str:
    """HTML of a plot, what to expect of its metrics, and their definitions to unfold; empty if none of them was measured."""
    timed = title == "Where the time went"
    rows_drawn = [row for row in rows if row["step"]] if timed else rows  # step 0 only evaluates
    drawn = [panel for panel in panels if any(series(rows_drawn, name)[0] for name in panel[0])]
    if not drawn:
        return ""
    text = "".join(_note(f"`{key}` {METRICS[key].healthy}") for key in notes if series(rows, key)[0])
    if title == "Divergence" and not series(rows, "kl/reference")[0]:
        text += _note("There is no reference: kl_weight is 0.")
    text += _note(where_time_went(rows)) if timed else ""
    terms = "".join(_note(f"`{key}` {METRICS[key].meaning}") for panel in drawn for key in panel[0])
    how = f"<details class=how><summary>How it is measured</summary>{terms}</details>"
    return f"<section class=card><h3>{title}</h3>{svg_of(title, drawn, rows_drawn)}{text}{how}</section>"


def _plots(rows: list[Row]) -> str:
    cards = {plot[0]: _plot_card(*plot, rows) for plot in PLOTS}
    missing = ", ".join(title for title, card in cards.items() if not card)
    note = f"<p class=note>Not measured in this run yet: {missing}.</p>" if missing else ""
    return f"<div class=grid>{''.join(cards.values())}</div>{note}"


# ---------------------------------------------------------------- text


def _prose(text: str) -> str:
    """HTML of our own text (plots, metric definitions), with its `code` marked."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text))


def _note(text: str) -> str:
    return f"<p class=note>{_prose(text)}</p>"


def _headline(rows: list[Row], config: dict[str, Any]) -> str:
    """HTML of the main numbers: accuracy, reward, time, tokens, steps."""
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
    tiles.append((f"{steps:,} of {escaped(config.get('num_steps', '?'), 20)}", "steps done"))
    return "".join(f"<div class=tile><b>{value}</b><span>{label}</span></div>" for value, label in tiles)


# Problems to show at the top: metric, its bound for the last tenth of the steps, what a larger value means.
CONCERNS = (
    (
        "length/truncated",
        0.1,
        "of the completions are truncated by the token limit: right answers may be graded as missing",
    ),
    ("groups/no_signal", 0.5, "of the groups have equal rewards: most of the sampling teaches nothing"),
    ("outcome/unparsed", 0.05, "of the answers could not be parsed: check the extraction before you blame the model"),
    ("outcome/timeout", 0.02, "of the answers exceeded the time or memory limit of grading"),
    ("outcome/crashed", 0.0, "of the completions could not be graded because the verifier failed"),
    ("outcome/bad_reference", 0.0, "of the completions could not be graded because their reference is unusable"),
    ("tis/truncated", 0.01, "of the tokens had their importance weight truncated: sampler and trainer disagree"),
)


def _concerns(rows: list[Row]) -> str:
    ends = [(start_and_end(rows, key), key, bound, meaning) for key, bound, meaning in CONCERNS]
    items = [f"<li><b>{end[1]:.1%}</b> {meaning} (<code>{key}</code>, last tenth of the steps).</li>"
             for end, key, bound, meaning in ends if end and end[1] > bound]  # fmt: skip
    unsafe = unsafe_programs(rows)
    items += [
        f"<li>{escaped(found)}.</li>"
        for found in (*([unsafe] if unsafe else []), *MetricWindows(rows).warnings().values())
    ]
    return (
        f"<section class='card concerns'><h3>Look here first</h3><ul>{''.join(items)}</ul></section>" if items else ""
    )


def _first_prompt(config: dict[str, Any]) -> str:
    """HTML of the first prompt as the model reads it, which shows mistakes in the template or the options."""
    prompt = config.get("first_prompt")
    if prompt is None:
        return ""
    return f"<h2>First prompt</h2><section class=card><pre>{escaped(prompt)}</pre></section>"


def _config_table(config: dict[str, Any]) -> str:
    if not config:
        return "<p class=note>config.json is missing or cannot be read.</p>"
    flat = {key: value for key, value in config.items() if not isinstance(value, dict) and key != "first_prompt"}
    nested = {f"{key}.{name}": value for key, part in config.items() if isinstance(part, dict)
              for name, value in part.items()}  # fmt: skip
    cells = (f"<tr><th>{escaped(key)}<td>{escaped(value)}" for key, value in {**flat, **nested}.items())
    return f"<table>{''.join(cells)}</table>"


# ---------------------------------------------------------------- completions


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Byte offset and record of every readable line. The file may have gigabytes, so one line at a time is in memory."""
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
    """(step, records) of the groups to show: of the first, middle and last step one with different rewards and one with equal ones."""
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
    """The completions of a group to show: best and worst by reward, and a random one of the rest, the same for every report.

    If all rewards are equal, only a random one.
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
    facts += [f"{escaped(record.get('length'))} tokens, ended by {escaped(record.get('finish_reason'))}"]
    detail = f"<p class=note>Verifier: {escaped(record['detail'], 500)}</p>" if record.get("detail") else ""
    badge = f"<span class=badge style='background:{OUTCOME_COLOURS.get(outcome, GREY)}'>{escaped(outcome, 40)}</span>"
    return (f"<details><summary>{badge} <b>{name}</b> <span class=facts>{' · '.join(facts)}</span></summary>"
            f"{conversation(record)}{detail}</details>")  # fmt: skip


def _completions(path: Path) -> str:
    if not path.exists():
        return "<p class=note>This run has no completions.jsonl.</p>"
    parts = []
    for step, group in _chosen_groups(path):
        signal = "rewards differ" if _has_signal(group) else "all rewards equal: no signal"
        cards = "".join(_completion_card(name, record) for name, record in _chosen_completions(step, group))
        parts.append(
            f"<section class=card><h3>Step {step} <span class=facts>{escaped(group[0].get('problem_id'), 80)}, "
            f"{len(group)} completions, {signal}</span></h3><details><summary>Problem</summary>"
            f"<pre>{escaped(group[0].get('prompt'))}</pre></details>"
            f"<p class=note>Reference: <code>{escaped(group[0].get('reference'), 300)}</code></p>{cards}</section>"
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
    shown = {k: " ".join(config[k]) if isinstance(config[k], list) else config[k] for k in TITLE if k in config}
    lede = " · ".join(escaped(value, 120) for value in shown.values())
    lede += f" · seed {escaped(config['seed'], 40)}" if "seed" in config else ""
    if rows:
        body = f"<div class=tiles>{_headline(rows, config)}</div>{_concerns(rows)}{_plots(rows)}"
    else:
        body = "<section class=card>No step was measured yet: metrics.jsonl is missing or empty. The run was stopped "
        body += "before its first step, or has just started.</section>"
    policy = (
        "default-src 'none'; style-src 'unsafe-inline'"  # in case something is not escaped: no scripts, no requests
    )
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}"><title>{escaped(name)} – Plumbline</title>
<style>{CSS}{conversations.CSS}</style></head><body><main><h1>{escaped(name)}</h1><p class=lede>{lede}</p>
{body}
{_first_prompt(config)}
<h2>Completions to read</h2><div class=stack>{completions}</div>
<h2>Configuration</h2><section class=card>{_config_table(config)}</section>
</main></body></html>
"""


def _read_config(run_dir: Path) -> dict[str, Any]:
    """The run's config.json; {} if it is missing or incomplete, so that the curves are shown anyway."""
    try:
        config = json.loads((run_dir / "config.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return {}
    return config if isinstance(config, dict) else {}


def write_report(run_dir: Path) -> Path:
    """Writes report.html into the run's folder, in one rename, so that a browser never loads half of it. -> its path."""
    run_dir = existing_run_dir(run_dir)
    completions = _completions(run_dir / "completions.jsonl")
    page = _page(run_dir.resolve().name, _read_config(run_dir), read_metrics(run_dir), completions)
    write_whole(run_dir / REPORT, page)
    return run_dir / REPORT
