"""`plumbline launch`: `accelerate launch` in this process, which ends with the run's own status and without a trace of the launcher."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from subprocess import CalledProcessError

from accelerate.commands.launch import launch_command, launch_command_parser
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError


def launch(arguments: Sequence[str]) -> None:
    """arguments: of `accelerate launch`. Exits with 2 for a mistake, 130 for an interruption, as the recipe itself does."""
    signal.signal(
        signal.SIGINT, lambda *_: None
    )  # the run gets Ctrl-C as well, and is waited for while it saves itself
    try:
        launch_command(launch_command_parser().parse_args(arguments))
    except CalledProcessError as ended:
        sys.exit(shell_status(ended.returncode))
    except ChildFailedError as ended:
        _, failure = ended.get_first_failure()
        sys.exit(shell_status(failure.exitcode))
    except SignalException as stopped:
        sys.exit(shell_status(-stopped.sigval))


def shell_status(returncode: int) -> int:
    """-n, for a process that signal n has ended, as a shell has it."""
    return 128 - returncode if returncode < 0 else returncode
