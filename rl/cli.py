"""The `plumbline` command, and how recipes start: options in, one clear message out where something is wrong."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import tyro

from rollout.errors import UserError


def run_safely(action: Callable[[], object]) -> None:
    """A mistake of the user ends with its message and exit status 2, an interruption with 130; bugs keep their traces."""
    try:
        action()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        end_launcher()
        sys.exit(2)
    except KeyboardInterrupt as stop:
        print(str(stop) or "interrupted before anything was saved", file=sys.stderr)
        sys.exit(130)


def end_launcher() -> None:
    """`accelerate launch` answers a script that failed with a trace of its own, which would bury the message: end it first."""
    try:
        command = Path(f"/proc/{os.getppid()}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return
    if b"launch" in command and any(Path(part.decode(errors="replace")).name == "accelerate" for part in command):
        os.kill(os.getppid(), signal.SIGTERM)


def run_recipe(description: str) -> None:
    """Parse RunConfig from the command line and train."""
    # Read when torch loads OpenMP: threads that wait sleep. Spinning ones gain a tenth on an idle machine and make a
    # step ten times slower beside one other busy process.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

    def action() -> None:
        from rl.config import RunConfig
        from rl.loop import train

        train(tyro.cli(RunConfig, description=description))

    run_safely(action)


app = tyro.extras.SubcommandApp()


@app.command
def report(run_dir: tyro.conf.Positional[Path]) -> None:
    """Write report.html of a run folder anew."""
    from rl.report import write_report

    print(write_report(run_dir))


def main() -> None:
    run_safely(lambda: app.cli(prog="plumbline", description="Reinforcement learning on rewards that can be checked."))
