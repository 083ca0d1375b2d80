"""`plumbline launch`: runs `accelerate launch` in this process, and exits with the run's own status and without the launcher's trace."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from subprocess import CalledProcessError

from accelerate.commands.launch import launch_command, launch_command_parser
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError


def launch(arguments: Sequence[str]) -> None:
    """Runs `accelerate launch` with these arguments. Exits as the recipe does: 2 for a user's mistake, 130 for an interruption."""
    signal.signal(signal.SIGINT, lambda *_: None)  # the run gets Ctrl-C too; wait until it has saved a checkpoint
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
    """The exit status that a shell reports: 128 + n for a process that signal n ended, which Python reports as -n."""
    return 128 - returncode if returncode < 0 else returncode
