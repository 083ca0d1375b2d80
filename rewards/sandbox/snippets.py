"""The child's side of a session: takes snippets, and shows what each of them raises."""

from __future__ import annotations

import contextlib
import linecache
import os
import sys
import traceback
from collections.abc import Callable
from itertools import count
from types import TracebackType

MAX_MESSAGE = 1 << 16  # bytes of a snippet and its token
TOKEN_LENGTH = 8
DONE, FAILED = b"0", b"1"  # behind the token of a snippet, in the reply
_MAX_FRAMES = 6  # the last ones of a traceback


def run_snippets(link: int, execute: Callable[[str, str], None]) -> None:
    """Executes each snippet that arrives on the link, a socket that keeps messages apart, until it is closed.

    execute: takes the snippet, and the file name that it has in tracebacks.

    A snippet comes behind a token; the token comes back once the snippet has ended, with DONE, or with FAILED if it
    raised an exception. What it prints, its last value and the end of its traceback go to standard output.
    """
    for number in count(1):
        message = os.read(link, MAX_MESSAGE)
        if not message:
            return
        failed = _fails(message[TOKEN_LENGTH:].decode(), f"<snippet {number}>", execute)
        with contextlib.suppress(BaseException):  # sys.stdout may be an object of the program
            sys.stdout.flush()
        os.write(link, message[:TOKEN_LENGTH] + (FAILED if failed else DONE))


def _fails(source: str, file: str, execute: Callable[[str, str], None]) -> bool:
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)  # for tracebacks
    try:
        execute(source, file)
    except SystemExit as stop:
        return stop.code not in (None, 0)
    except BaseException as error:  # noqa: BLE001  whatever the snippet raises is shown
        _show(error, file)
        return True
    return False


def _show(error: BaseException, file: str) -> None:
    """Writes the end of the traceback, from the snippet's own frame on: not to sys.stdout, which may be None or a stream of the program."""
    frame: TracebackType | None = error.__traceback__
    while frame is not None and frame.tb_frame.f_code.co_filename != file:
        frame = frame.tb_next
    try:
        lines = traceback.format_exception(type(error), error, frame, limit=-_MAX_FRAMES)
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
        shown = "".join(lines).encode(errors="backslashreplace")
        while shown:
            shown = shown[os.write(1, shown) :]
    except BaseException:  # noqa: BLE001  the program's exception may fail at anything
        os.write(1, type(error).__name__.encode())
