"""What calls of the tool python cost, in a session that is kept and each in a new process, and how much memory 64 sessions take.

    taskset -c 0 python -m benchmarks.python_sessions

A call is print(1 + 1). Calls a second are by wall clock, and by the processor time of all that takes part: the client, the sandbox's
zygote and its children. The latter does not depend on what else the machine does.
"""

from __future__ import annotations

import os
import time
from contextlib import ExitStack, closing
from pathlib import Path

from rollout.python_tool import PythonTool

NUM_CALLS, NUM_SESSIONS = 400, 64
TICK = os.sysconf("SC_CLK_TCK")


def main() -> None:
    for keeps_state in (True, False):
        with closing(PythonTool(keeps_state=keeps_state)) as tool, closing(tool.begin()) as calls:
            calls.call("python", {"code": "1"})
            time.sleep(0.2)  # until the child of a call on its own is buried, as below
            zygote = descendants()
            used, started = processor_time(zygote), time.perf_counter()
            for _ in range(NUM_CALLS):
                assert calls.call("python", {"code": "print(1 + 1)"}).text == "2"
            seconds = time.perf_counter() - started
            time.sleep(0.2)
            cpu = processor_time(zygote) - used
            kind = "in a session that is kept" if keeps_state else "each in a new process"
            print(f"calls {kind}: {NUM_CALLS / seconds:.0f} a second, {NUM_CALLS / cpu:.0f} a second of processor time")
    with closing(PythonTool()) as tool, ExitStack() as stack:
        for _ in range(NUM_SESSIONS):
            stack.enter_context(closing(tool.begin())).call("python", {"code": "x = list(range(10_000))"})
        print(f"{NUM_SESSIONS} sessions: {sum(map(memory, descendants())) / 2**20:.0f} MiB with their zygote")


def descendants() -> list[int]:
    """The processes that this one has started, directly or indirectly."""
    found = [os.getpid()]
    for pid in found:
        found += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
    return found[1:]


def processor_time(zygote: list[int]) -> float:
    """Seconds of this process, of these, and of their children that have ended."""
    fields = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in zygote]
    return time.process_time() + sum(int(value) for of in fields for value in of[11:15]) / TICK


def memory(pid: int) -> int:
    """Bytes of a process, of which a page that n processes share counts 1/n."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))


if __name__ == "__main__":
    main()
