"""What a person sees while a run goes on: one live line on a terminal, one plain line a step anywhere else."""

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

# Everything that can steer a terminal, hide in a page or turn the direction of reading; tab and newline stay.
_CONTROL = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)


def visible(text: str) -> str:
    """Model text is hostile: control characters are spelled out (\\x1b), so that they are read and not obeyed."""
    return _CONTROL.sub(lambda match: ascii(match[0])[1:-1], text.replace("\r\n", "\n"))


def duration(seconds: float) -> str:
    """45s, 12m 03s, 3h 05m: two units at most."""
    total = round(seconds)
    if total < 60:
        return f"{total}s"
    if total < 3600:
        return f"{total // 60}m {total % 60:02d}s"
    return f"{total // 3600}h {total % 3600 // 60:02d}m"


class Progress:
    """A context manager around a run.

    On a terminal the line of the current step is rewritten in place and the lines that evaluate stay. Where the output
    is a file (CI, nohup) every step is a plain line without control codes.
    """

    def __init__(self, num_steps: int, console: Console | None = None, *, quiet: bool = False) -> None:
        # force_terminal is stated, since FORCE_COLOR in the environment would otherwise put control codes into a log.
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
        disable_progress_bar()  # of transformers: its bars would break into the live line
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def start(self, message: str) -> None:
        """A phase before training: shown in the live line until the next one replaces it."""
        if not self._live(visible(message), None):
            self.message(message)

    def step(self, metrics: Mapping[str, float | None]) -> None:
        """One step is done. The base model's line (step 0) and the lines that evaluate stay on a terminal too."""
        self._seconds += series([dict(metrics)], "time/step")[1]
        line = step_line(metrics, self.num_steps, self._seconds)
        evaluated = metrics.get("eval/accuracy") is not None
        if evaluated:
            self._accuracy = metrics["eval/accuracy"]
        known = {**metrics, "eval/accuracy": self._accuracy}  # the live line keeps the last accuracy in view
        if not self._live(step_line(known, self.num_steps, self._seconds), metrics["step"]) or evaluated:
            self.message(line)

    def message(self, text: str) -> None:
        """A line that stays."""
        self.console.print(Text(visible(text)), soft_wrap=True)

    def _live(self, text: str, completed: float | None) -> bool:
        if not self._bar or self._task is None:
            return False
        self._bar.update(self._task, description=text, completed=completed or 0,
                         total=None if completed is None else self.num_steps)  # fmt: skip
        return True


def step_line(metrics: Mapping[str, float | None], num_steps: int, seconds: list[float]) -> str:
    """The step in one line; what was not measured is left out. Time left goes by the last 20 steps."""
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
    """Before and after, and where the time went."""
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
    console.print("Held-out: first and last evaluation. The rest: first and last tenth of the steps.")
    console.print(Text(where_time_went(rows)), soft_wrap=True)
    unsafe = unsafe_programs(rows)
    if unsafe:
        console.print(Text(unsafe, style="bold red"), soft_wrap=True)


def where_time_went(rows: list[Row]) -> str:
    """Total time and the share of each phase, largest first; phases under half a percent are left out."""
    phases = time_by_phase(rows)
    total = sum(phases.values())
    if not total:
        return "No step was timed."
    shares = sorted(((seconds / total, phase) for phase, seconds in phases.items()), reverse=True)
    parts = ", ".join(f"{phase} {share:.0%}" for share, phase in shares if share >= 0.005)
    sampled = sum(series(rows, "tokens/sampled")[1])
    return f"{duration(total)}: {parts}." + (f" {sampled:,.0f} tokens sampled." if sampled else "")
