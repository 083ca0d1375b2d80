"""Sessions of snippets side by side: what each keeps, what ends it, and that none reaches another."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from processes import descendants, no_process_left

from rewards.sandbox import bpf
from rewards.sandbox.child import Limits
from rewards.sandbox.client import SandboxError, SandboxLostError
from rewards.sandbox.isolation import _ATTEMPTS, _ESCAPE_TEMPLATE, MIN_LEVEL, _escape_targets, measure
from rewards.sandbox.layers import LANDLOCK, NAMESPACES, SECCOMP
from rewards.sandbox.sessions import MAX_SNIPPET, Session, Sessions, SnippetResult

LIMITS: Limits = {"cpu_seconds": 60, "wall_seconds": 5.0, "memory": 1 << 30, "output": 2000}
SHORT: Limits = {**LIMITS, "wall_seconds": 0.5}

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or not bpf.SUPPORTED or measure().rank < MIN_LEVEL, reason="this machine does not isolate"
)


@pytest.fixture(scope="module")
def sessions() -> Iterator[Sessions]:
    with Sessions(measure().layers) as made:
        yield made


@pytest.fixture
def session(sessions: Sessions) -> Iterator[Session]:
    with closing(sessions.open(LIMITS)) as made:
        yield made


@pytest.mark.parametrize(
    ("snippet", "text"),
    [
        ("print('a')\n1 + 1", "a\n2\n"),
        ("x = 3\nNone", ""),
        ("", ""),
        ("import sys\nprint('a'); print('b', file=sys.stderr); print('c')", "a\nb\nc\n"),
        ("import os\nos.write(1, b'raw\\n');", "raw\n4\n"),
        ("import sys\nsys.exit()", ""),
        ("print('\\ud800')", "\\ud800\n"),
        ("import sys\nsys.stdout.buffer.write(b'\\xff\\x00');", "\ufffd\x002\n"),
        ("import asyncio\nasync def f(): return 7\nasyncio.run(f())", "7\n"),
    ],
)
def test_a_snippet_shows_what_it_prints_and_its_last_value(session: Session, snippet: str, text: str) -> None:
    assert session.run(snippet) == SnippetResult(text, failed=False)


def test_variables_functions_and_modules_are_kept(session: Session) -> None:
    session.run("import math\nx = 3\ndef area(r): return math.floor(math.pi * r * r)")
    assert session.run("1 / 0").failed
    assert session.run("x += 1\narea(x)").text == "50\n"


@pytest.mark.parametrize(
    ("snippet", "end"),
    [
        ("def f(): return 1 / 0\nf()", "in f\n    def f(): return 1 / 0\n                    ~~^~~\nZeroDivisionError: division by zero\n"),
        ("x = ", "SyntaxError: invalid syntax\n"),
        ("input()", "EOFError: EOF when reading a line\n"),
        ("import sys\nsys.stdin.read() or missing", "NameError: name 'missing' is not defined\n"),
        ("def f(): f()\nf()", "RecursionError: maximum recursion depth exceeded\n"),
        ("bytearray(1 << 31)", "MemoryError\n"),
        ("import os\nos.fork()", "PermissionError: [Errno 1] Operation not permitted\n"),
        ("import subprocess\nsubprocess.run(['true'])", "Operation not permitted\n"),
        ("open('a', 'w')", "PermissionError: [Errno 1] Operation not permitted: 'a'\n"),
        ("eval('(' * 300)", "SyntaxError: too many nested parentheses\n"),
        ("class E(Exception):\n def __str__(self): raise E\nraise E", "E: <exception str() failed>\n"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt\n"),
    ],
)  # fmt: skip
def test_an_exception_shows_the_end_of_its_traceback_and_the_session_goes_on(
    session: Session, snippet: str, end: str
) -> None:
    result = session.run(snippet)
    assert result.failed and not result.ended and result.text.endswith(end), result.text
    assert "snippets.py" not in result.text and len(result.text) < 1000
    assert session.run("2") == SnippetResult("2\n", failed=False)


def test_of_a_long_output_the_beginning_and_the_end_are_shown(session: Session) -> None:
    text = session.run("print('a' * 5_000_000 + 'b' * 5_000_000)").text
    assert text == f"{'a' * 1000}\n({10_000_001 - 2000} bytes are left out)\n{'b' * 999}\n"
    assert session.run("for i in range(100_000): print(i)").text.endswith("\n99999\n")
    assert session.run("2").text == "2\n"


ENDS = {
    "an infinite loop": ("print('so far')\nwhile True: pass", "no answer within 0.5 seconds"),
    "a loop that keeps its exceptions": (
        "import signal\nsignal.signal(signal.SIGTERM, lambda *_: 0)\nwhile True:\n try: pass\n except BaseException: pass",
        "no answer within 0.5 seconds",
    ),
    "output without end": ("while True: print('x' * 1_000_000)", "it printed more than 64 MiB"),
    "an exit": ("import os\nos._exit(3)", "exit status 3"),
    "a crash": ("import ctypes\nctypes.string_at(0)", "signal SIGSEGV"),
    "an alarm": ("import signal, time\nsignal.alarm(1) or signal.setitimer(signal.ITIMER_REAL, 0.01)\ntime.sleep(9)", "signal SIGALRM"),
    "closed descriptors": ("import os\nos.closerange(0, 64)\nwhile True: pass", "it closed the connection of the sandbox"),
    "a stop by itself": ("import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)", "no answer within 0.5 seconds"),
    "a thread that keeps the interpreter": (
        "import threading\ndef f():\n while True: pass\nthreads = [threading.Thread(target=f) for _ in range(8)]\n[t.start() for t in threads]\nthreads[0].join()",
        "no answer within 0.5 seconds",
    ),
    "a forged reply": ("import os\nos.write(5, b'x' * 8 + b'0')", "it wrote to the connection of the sandbox"),
    "many forged replies": ("import os\nwhile True: os.write(5, b'x' * 9)", "it wrote to the connection of the sandbox"),
    "a processor limit of its own": (
        "import resource\nresource.setrlimit(resource.RLIMIT_CPU, (0, 0))\nwhile True: pass",
        "it was killed, perhaps because the machine had too little memory",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ENDS)
def test_what_ends_a_session_is_told_and_leaves_the_others_alone(sessions: Sessions, name: str) -> None:
    snippet, ended = ENDS[name]
    with closing(sessions.open(LIMITS)) as other, closing(sessions.open(SHORT)) as session:
        other.run("x = 1")
        result = session.run(snippet)
        assert result.failed and result.ended == ended, result
        assert result.text == ("so far\n" if "so far" in snippet else result.text)
        assert other.run("x").text == "1\n"


def test_a_reply_that_is_forged_ahead_of_its_call_is_not_taken(session: Session) -> None:
    """Even one with the token of its own call, which the snippet finds among its frames: the second reply to it is late."""
    snippet = """
import os, sys
frame = sys._getframe()
while "message" not in frame.f_locals: frame = frame.f_back
os.write(5, frame.f_locals["message"][:8] + b"0")
"""
    assert session.run(snippet).text in ("", "9\n")
    assert session.run("2").ended == "it wrote to the connection of the sandbox"


def test_snippets_may_trace_and_replace_what_they_find(session: Session) -> None:
    session.run("import sys\nsys.settrace(lambda *_: 1 / 0)\nsys.setprofile(None)")
    session.run("sys.settrace(None)")
    session.run("import builtins, traceback\nbuiltins.print = traceback.format_exception = None\nsys.stdout = 3\nx = 4")
    assert session.run("1 / 0").failed
    assert session.run("sys.stdout = sys.__stdout__\nx").text == "4\n"


def test_threads_do_not_run_between_calls(sessions: Sessions) -> None:
    before = set(descendants())
    counts = "import threading\nn = 0\ndef count():\n global n\n while True: n += 1\n"
    with closing(sessions.open(LIMITS)) as session:
        session.run(f"{counts}threading.Thread(target=count, daemon=True).start()")
        (pid,) = set(descendants()) - before
        while _state(pid) != "T":
            time.sleep(0.01)
        used = _processor_time(pid)
        time.sleep(0.3)
        assert _processor_time(pid) == used
        assert int(session.run("import time\ntime.sleep(0.1)\nn").text) > 0
        assert _processor_time(pid) > used


def _processor_time(pid: int) -> int:
    return sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]))


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_a_closed_session_leaves_no_process(sessions: Sessions) -> None:
    before = set(descendants())
    opened = [sessions.open(LIMITS) for _ in range(5)]
    opened[0].run("import threading, time\nthreading.Thread(target=time.sleep, args=[99]).start()")
    assert len(set(descendants()) - before) == 5
    for session in opened:
        session.close()
        session.close()
    deadline = time.monotonic() + 5
    while set(descendants()) - before:
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("layers", [[], [SECCOMP], [NAMESPACES, SECCOMP], [NAMESPACES, LANDLOCK, SECCOMP]], ids=str)
def test_with_the_zygote_all_sessions_end(layers: list[str]) -> None:
    if not set(layers) <= set(measure().layers):
        pytest.skip(measure().describe())
    with no_process_left(), Sessions(layers) as sessions:
        first, second = sessions.open(LIMITS), sessions.open(LIMITS)
        assert first.run("x = 1\nx").text == "1\n"
        assert second.run("globals().get('x', 2)").text == "2\n"
        sessions.close()
        for session in (first, second):
            with pytest.raises(SandboxLostError):
                session.run("x")
            session.close()


def test_a_killed_zygote_is_a_sandbox_error_and_is_replaced() -> None:
    with no_process_left(), Sessions(measure().layers) as sessions:
        with closing(sessions.open(LIMITS)) as session, ThreadPoolExecutor(1) as thread:
            running = thread.submit(session.run, "import time\ntime.sleep(4)")
            time.sleep(0.2)
            assert sessions._zygote is not None
            sessions._zygote.process.kill()
            with pytest.raises(SandboxLostError, match="zygote died"):
                running.result()
        with closing(sessions.open(LIMITS)) as session:
            assert session.run("2").text == "2\n"
    with pytest.raises(SandboxError, match="closed"):
        sessions.open(LIMITS)


def test_a_request_that_the_zygote_did_not_live_to_read_goes_to_its_replacement() -> None:
    before = set(descendants())
    with no_process_left(), Sessions(measure().layers) as sessions, ThreadPoolExecutor(1) as thread:
        assert sessions._zygote is not None
        for pid in set(descendants()) - before:
            os.kill(pid, signal.SIGSTOP)
        opening = thread.submit(sessions.open, LIMITS)
        time.sleep(0.2)
        sessions._zygote.process.kill()
        with closing(opening.result()) as session:
            assert session.run("2").text == "2\n"


def test_a_session_that_is_killed_between_calls_says_so(sessions: Sessions) -> None:
    before = set(descendants())
    with closing(sessions.open(LIMITS)) as session:
        session.run("x = 1")
        (pid,) = set(descendants()) - before
        os.kill(pid, signal.SIGKILL)
        assert session.run("x").ended.startswith("it was killed")


def test_a_session_that_cannot_be_set_up_is_a_sandbox_error(sessions: Sessions) -> None:
    with pytest.raises(SandboxError, match="could not be set up: TypeError"):
        sessions.open({**LIMITS, "memory": None})  # pyright: ignore[reportArgumentType]  no limit that can be set


def test_the_longest_snippet_is_run(session: Session) -> None:
    snippet = "2".rjust(MAX_SNIPPET, "\n")
    assert session.run(snippet).text == "2\n"


def test_64_sessions_work_side_by_side_in_little_memory() -> None:
    """Of the processes' own memory: what they share with the zygote is there once."""
    with Sessions(measure().layers) as sessions, ExitStack() as stack, ThreadPoolExecutor(8) as threads:
        opened = [stack.enter_context(closing(sessions.open(LIMITS))) for _ in range(64)]
        for number in range(3):
            results = list(
                threads.map(lambda of: of[1].run(f"x = globals().get('x', {of[0]}) + 1\nx"), enumerate(opened))
            )
            assert [result.text for result in results] == [f"{i + number + 1}\n" for i in range(64)]
        assert sum(map(_own_memory, descendants()[1:])) < 1 << 30


def _own_memory(pid: int) -> int:
    """Bytes of the process's pages, of which a page that n processes share counts 1/n."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text().split("\n")
    (size,) = (int(line.split()[1]) for line in rollup if line.startswith("Pss:"))
    return 1024 * size


@pytest.mark.parametrize("without", [[], [NAMESPACES], [LANDLOCK]], ids=["all layers", "no namespaces", "no landlock"])
def test_no_escape_succeeds(without: list[str]) -> None:
    isolation = measure(frozenset(without))
    if not {NAMESPACES, LANDLOCK} & set(isolation.layers):
        pytest.skip(isolation.describe())
    with Sessions(isolation.layers) as sessions, ExitStack() as stack:
        at = json.dumps(_escape_targets(stack))
        results = {}
        for name, attempt in _ATTEMPTS.items():
            source = _ESCAPE_TEMPLATE.replace("{attempt}", attempt).replace("sys.stdin.read()", repr(at))
            with closing(sessions.open(LIMITS)) as session:
                results[name] = session.run(source).text
        assert set(results.values()) == {"held\n"}, results


# What one session tries against the one of the process `victim`; each prints what it reached.
AGAINST_ANOTHER = {
    "kill it": "os.kill(victim, 9)",
    "stop it": "os.kill(victim, signal.SIGSTOP)",
    "ask whether it lives": "os.kill(victim, 0)",
    "signal its group": "os.killpg(victim, 9)",
    "signal its thread": "call(234, victim, victim, 9)",
    "hold it": "call(434, victim, 0)",  # pidfd_open
    "trace it": "call(101, 16, victim, 0, 0)",  # PTRACE_ATTACH
    "read its memory": "call(310, victim, ctypes.addressof(local), 1, ctypes.addressof(remote), 1, 0)",
    "write its memory": "call(311, victim, ctypes.addressof(local), 1, ctypes.addressof(remote), 1, 0)",
    "read its memory as a file": "open(f'/proc/{victim}/mem', 'rb').seek(0)",
    "read its map": "open(f'/proc/{victim}/maps').read(1)",
    "read its descriptors": "os.listdir(f'/proc/{victim}/fd')",
    "limit it": "resource.prlimit(victim, resource.RLIMIT_CPU, (0, 0))",
    "read its limits": "resource.prlimit(victim, resource.RLIMIT_CPU)",
    "slow it down": "os.setpriority(os.PRIO_PROCESS, victim, 19)",
    "share a file with it": "os.memfd_create('x')",
    "share memory with it": "call(29, 1, 4096, 0o1600)",  # shmget
    "receive descriptors": "call(47, 5, 0, 0)",  # recvmsg
    "signal everybody": "os.kill(-1, 9)",
}
_AGAINST = """
import ctypes, os, resource, signal
libc = ctypes.CDLL(None, use_errno=True)
local = remote = (ctypes.c_size_t * 2)(ctypes.addressof(ctypes.create_string_buffer(8)), 8)
victim = {victim}
def call(number, *arguments):
    if libc.syscall(ctypes.c_long(number), *map(ctypes.c_long, arguments)) == -1:
        raise OSError(ctypes.get_errno(), "")
try:
    {attempt}
    print("reached it")
except OSError as error:
    print("held")
"""


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="its numbers of system calls")
@pytest.mark.parametrize("without", [[], [NAMESPACES], [LANDLOCK]], ids=["all layers", "no namespaces", "no landlock"])
def test_a_session_reaches_no_other(without: list[str]) -> None:
    isolation = measure(frozenset(without))
    if isolation.rank < MIN_LEVEL:
        pytest.skip(isolation.describe())
    with Sessions(isolation.layers) as sessions, closing(sessions.open(LIMITS)) as victim:
        pid = int(victim.run("import os\nsecret = 'a' * 1000\nos.getpid()").text)
        for name, attempt in AGAINST_ANOTHER.items():
            with closing(sessions.open(LIMITS)) as attacker:
                result = attacker.run(_AGAINST.format(attempt=attempt, victim=pid))
                assert result.text == "held\n", (name, result)
        assert victim.run("len(secret)").text == "1000\n"


def test_a_session_has_no_descriptor_of_another(sessions: Sessions) -> None:
    """Also with more descriptors in the zygote than children close one by one."""
    with ExitStack() as stack:
        opened = [stack.enter_context(closing(sessions.open(LIMITS))) for _ in range(50)]
        snippet = """
import os
def is_open(descriptor):
    try: return bool(os.fstat(descriptor))
    except OSError: return False
[d for d in range(4096) if is_open(d)]"""
        assert {session.run(snippet).text for session in (opened[0], opened[-1])} == {"[0, 1, 2, 3, 5]\n"}
        first, second = opened[:2]
        assert first.run("import os\nos.fstat(1).st_ino").text != second.run("import os\nos.fstat(1).st_ino").text


def test_threads_are_bounded_per_session(sessions: Sessions) -> None:
    snippet = """
import threading, time
threading.stack_size(1 << 16)
n = 0
try:
    while n < 300:
        threading.Thread(target=time.sleep, args=[9], daemon=True).start()
        n += 1
except RuntimeError:
    pass
n"""
    with closing(sessions.open(LIMITS)) as one, closing(sessions.open(LIMITS)) as two:
        assert [one.run(snippet).text, two.run(snippet).text] == ["200\n", "200\n"]
        assert one.run(snippet).text == "0\n"


def test_a_copy_of_the_connection_in_a_fork_does_not_keep_a_session_alive(sessions: Sessions) -> None:
    before = set(descendants())
    session = sessions.open(LIMITS)
    copy = socket.socket(fileno=os.dup(session._control.fileno()))
    session.close()
    deadline = time.monotonic() + 5
    while set(descendants()) - before:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    copy.close()


def test_sessions_may_have_descriptors_beyond_those_that_select_takes() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 2048:
        pytest.skip("this machine allows no descriptor from 1024 on")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2048), hard))
    held = [os.open(os.devnull, os.O_RDONLY) for _ in range(1024)]
    try:
        with Sessions(measure(frozenset()).layers) as sessions:
            session = sessions.open(LIMITS)
            assert session.run("6 * 7").text.strip() == "42"
            assert session.run("import os; os._exit(3)").ended == "exit status 3"
    finally:
        for descriptor in held:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
