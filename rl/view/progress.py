"""Progress of a run on the console: one live line on a terminal, one plain line per step elsewhere."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from rich.box import SIMPLE
from rich.console import Console
from rich.progress import BarColumn, SpinnerColumn, TextColumn
from rich.progress import Progress as Bar
from rich.table import Column, Table
from rich.text import Text
from transformers.utils.logging import disable_progress_bar

from rl.view.metrics import Row, series, start_and_end, time_by_phase, unsafe_programs

# Characters that control a terminal, are invisible or change the direction of text; tab and newline are harmless.
_CONTROL = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)


def visible(text: str) -> str:
    """Spells out control characters (\\x1b), so that model text, which is hostile, cannot control the terminal or page."""
    return _CONTROL.sub(lambda match: ascii(match[0])[1:-1], text.replace("\r\n", "\n"))


def duration(seconds: float) -> str:
    """Formats seconds with at most two units: 45s, 12m 03s, 3h 05m."""
    total = round(seconds)
    if total < 60:
        return f"{total}s"
    if total < 3600:
        return f"{total // 60}m {total % 60:02d}s"
    return f"{total // 3600}h {total % 3600 // 60:02d}m"


class Progress:
    """A context manager that shows a run's progress.

    On a terminal the line of the current step is rewritten in place, and lines of steps that evaluate stay. If the output is a file
    (CI, nohup), every step is a plain line without control codes.
    """

    def __init__(self, num_steps: int, console: Console | None = None, *, quiet: bool = False) -> None:
        # Set explicitly: otherwise FORCE_COLOR in the environment would put control codes into a log.
        self.console = console or Console(force_terminal=sys.stdout.isatty(), quiet=quiet)
        self.num_steps = num_steps
        self._seconds: list[float] = []
        self._accuracy: float | None = None
        one_line = Column(no_wrap=True, overflow="ellipsis")
        columns = SpinnerColumn(), BarColumn(bar_width=16), TextColumn("{task.description}", "", markup=False,
                                                                       table_column=one_line)  # fmt: skip
        live = self.console.is_terminal and self.console.is_interactive
        self._bar = Bar(*columns, console=self.console, transient=True) if live else None
        self._task = self._bar.add_task("", total=None) if self._bar else None

    def __enter__(self) -> Self:
        disable_progress_bar()  # the progress bars of transformers would interrupt the live line
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def start(self, message: str) -> None:
        """Shows a phase before training in the live line, until the next one replaces it."""
        if not self._live(visible(message), None):
            self.message(message)

    def step(self, metrics: Mapping[str, float | None]) -> None:
        """Shows a completed step. On a terminal the lines of step 0 and of steps that evaluate stay."""
        self._seconds += series([dict(metrics)], "time/step")[1]
        line = step_line(metrics, self.num_steps, self._seconds)
        evaluated = metrics.get("eval/accuracy") is not None
        if evaluated:
            self._accuracy = metrics["eval/accuracy"]
        known = {**metrics, "eval/accuracy": self._accuracy}  # the live line repeats the last accuracy
        if not self._live(step_line(known, self.num_steps, self._seconds), metrics["step"]) or evaluated:
            self.message(line)

    def message(self, text: str) -> None:
        """Prints a line that stays."""
        self.console.print(Text(visible(text)), soft_wrap=True)

    def _live(self, text: str, completed: float | None) -> bool:
        if not self._bar or self._task is None:
            return False
        self._bar.update(self._task, description=text, completed=completed or 0,
                         total=None if completed is None else self.num_steps)  # fmt: skip
        return True


def step_line(metrics: Mapping[str, float | None], num_steps: int, seconds: list[float]) -> str:
    """One line of a step's measured metrics, with the time left by the mean of the last 20 steps."""
    formats = (("reward/mean", "reward {:.3f}"), ("eval/accuracy", "held-out {:.1%}"), ("kl/reference", "KL {:.4f}"),
               ("entropy", "entropy {:.2f}"), ("length/mean", "length {:.0f}"), ("tokens/per_second", "{:,.0f} tok/s"),
               ("time/step", "{:.1f} s"))  # fmt: skip
    step = int(metrics["step"] or 0)
    parts = [f"step {step}/{num_steps}"]
    parts += [form.format(metrics[key]) for key, form in formats if metrics.get(key) is not None]
    recent = seconds[-20:]
    if recent and step < num_steps:
        parts.append(f"{duration((num_steps - step) * sum(recent) / len(recent))} left")
    return "  ".join(parts)


def final_table(rows: list[Row], console: Console) -> None:
    """Prints metrics at the start and the end of a run, and each phase's share of the time."""
    steps = max((int(row["step"] or 0) for row in rows), default=0)
    table = Table(title=f"After {steps} steps", title_justify="left", box=SIMPLE)
    for header in ("", "start", "end", "change"):
        table.add_column(header, justify="right" if header else "left")
    shown = (("held-out accuracy, %", "eval/accuracy", 100.0, ".1f"), ("reward", "reward/mean", 1.0, ".3f"),
             ("KL to the reference", "kl/reference", 1.0, ".4f"), ("entropy", "entropy", 1.0, ".3f"),
             ("length, tokens", "length/mean", 1.0, ".0f"))  # fmt: skip
    for label, key, scale, form in shown:
        ends = start_and_end(rows, key)
        if ends:
            start, end = ends[0] * scale, ends[1] * scale
            table.add_row(label, f"{start:{form}}", f"{end:{form}}", f"{end - start:+{form}}")
    console.print(table)
    console.print(
        "Held-out accuracy: first and last evaluation. Other rows: means of the first and the last tenth of the steps."
    )
    console.print(Text(where_time_went(rows)), soft_wrap=True)
    unsafe = unsafe_programs(rows)
    if unsafe:
        console.print(Text(unsafe, style="bold red"), soft_wrap=True)


def where_time_went(rows: list[Row]) -> str:
    """The total time and each phase's share of it, the largest first, without phases under half a percent."""
    phases = time_by_phase(rows)
    total = sum(phases.values())
    if not total:
        return "No step was timed."
    shares = sorted(((seconds / total, phase) for phase, seconds in phases.items()), reverse=True)
    parts = ", ".join(f"{phase} {share:.0%}" for share, phase in shares if share >= 0.005)
    sampled = sum(series(rows, "tokens/sampled")[1])
    return f"{duration(total)}: {parts}." + (f" {sampled:,.0f} tokens sampled." if sampled else "")
