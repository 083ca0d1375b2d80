"""Finds the processes that a test starts, directly or indirectly, and checks that none of them is left."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

Process = tuple[int, str]  # process id and start time, which together identify a process


def children() -> dict[int, list[int]]:
    """The children of each process of the machine, by the parent's id."""
    found: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            found.setdefault(int(_fields(stat)[1]), []).append(int(stat.parent.name))
    return found


def descendants() -> list[int]:
    tree, found = children(), [os.getpid()]
    for parent in found:
        found += tree.get(parent, [])
    return found[1:]


@contextmanager
def no_process_left() -> Iterator[Callable[[], set[Process]]]:
    """Records the processes started inside the block, even if their parent ends, and checks at its end that none is
    left.

    Yields a function that returns the processes running now.
    """
    seen: set[Process] = set()
    over = threading.Event()

    def running() -> set[Process]:
        for pid in descendants():
            with suppress(OSError):
                seen.add((pid, _fields(Path(f"/proc/{pid}/stat"))[19]))
        return {process for process in list(seen) if _runs(process)}

    def watch() -> None:
        while not over.wait(0.05):
            running()

    before = running()
    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield running
    finally:
        over.set()
        watcher.join()
    limit = time.monotonic() + 5.0
    while left := running() - before:
        assert time.monotonic() < limit, left
        time.sleep(0.02)


def _runs(process: Process) -> bool:
    pid, start = process
    with suppress(OSError):
        fields = _fields(Path(f"/proc/{pid}/stat"))
        return fields[19] == start and fields[0] != "Z"
    return False


def _fields(stat: Path) -> list[str]:
    """The fields of proc(5) after the name of the program, from the state on; [1] is the parent, [19] the start
    time."""
    return stat.read_text().rpartition(")")[2].split()
