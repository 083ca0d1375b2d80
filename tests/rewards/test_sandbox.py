"""What a sandbox prevents, on machines that permit more or fewer of its layers."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import children, no_process_left

from rewards.sandbox import bpf
from rewards.sandbox import filter as allowlist
from rewards.sandbox.child import Limits
from rewards.sandbox.client import KilledForMemoryError, Sandbox, SandboxError
from rewards.sandbox.isolation import measure
from rewards.sandbox.layers import LANDLOCK, NAMESPACES, SECCOMP

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
LIMITS: Limits = {"cpu_seconds": 5, "wall_seconds": 10.0, "memory": 1 << 30, "output": 1 << 20}

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or not bpf.SUPPORTED, reason="seccomp's rules are written for Linux on two machines"
)


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox([SECCOMP]) as made:
        yield made


def _printed(sandbox: Sandbox, source: str, stdin: str = "") -> Any:
    ended = sandbox.run({"mode": "stdin", "source": source}, LIMITS, stdin=stdin.encode())
    assert ended.status == 0, ended
    return json.loads(ended.stdout)


_CALL = """
import ctypes, json, os, sys
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *arguments):
    ctypes.set_errno(0)
    libc.syscall(ctypes.c_long(number), *map(ctypes.c_long, arguments))
    return ctypes.get_errno()
"""


def test_every_call_that_is_not_listed_is_refused(sandbox: Sandbox) -> None:
    column = bpf.MACHINES[os.uname().machine][0]
    named = {numbers[column] for numbers in (allowlist._ALLOWED | allowlist._CONDITIONAL).values()}
    named |= {
        335,
        336,
    }  # uretprobe and uprobe on x86_64: the kernel exempts them from filters and checks the caller itself
    others = [number for number in range(1000) if number not in named]
    others += [0x40000000 + number for number in (0, 39, 57)] if column == 0 else []  # the x32 ABI's
    source = f"{_CALL}print(json.dumps([call(number, -1, -1, -1, -1, -1, -1) for number in json.load(sys.stdin)]))"
    assert set(_printed(sandbox, source, json.dumps(others))) == {1}  # EPERM, whatever the arguments


CONDITIONS = {
    "a thread only": ("clone", [[17]]),
    "a thread, and no namespace of its own": ("clone", [[0x10000000 | 17], [0x02000000]]),
    "signals to itself": ("kill", [[0, 0], [-1, 0], [1, 0], ["parent", 0], ["self", 9]]),
    "signals to its threads": ("tgkill", [["parent", "parent", 0], ["self", "self", 9]]),
    "limits of its own": ("prlimit64", [["parent", 0, 0, 0], [1, 0, 0, 0]]),
    "reading": ("openat", [[-100, 0, flag] for flag in (1, 2, 3, 0o100, 0o1000, 0o20200001)]),
    "a socket pair that has no address": ("socketpair", [[2, 1, 0, 0], [1, 2, 0, 0], [1, 5, 0, 0], [1, 2 | 0o4000, 0, 0]]),
    "no address": ("sendto", [[0, 0, 0, 0, 1, 0], [0, 0, 0, 0, 1 << 32, 0]]),
    "descriptor controls": ("fcntl", [[0, command, 0] for command in (5, 6, 7, 8, 9, 10, 15, 1024, 1026, 1031, 1033)]),
    "device controls": ("ioctl", [[0, request, 0] for request in (0x5412, 0x540E, 0x5422, 0x8901, 0x8902)]),
}  # fmt: skip


@pytest.mark.parametrize("name", CONDITIONS)
def test_conditional_calls_are_checked(sandbox: Sandbox, name: str) -> None:
    call, arguments = CONDITIONS[name]
    number = allowlist._CONDITIONAL[call][bpf.MACHINES[os.uname().machine][0]]
    source = (
        f"{_CALL}names = {{'self': os.getpid(), 'parent': os.getppid()}}\n"
        f"print(json.dumps([call({number}, *(names.get(a, a) for a in given)) for given in json.load(sys.stdin)]))"
    )
    assert set(_printed(sandbox, source, json.dumps(arguments))) == {1}


def test_conditionally_allowed_calls_work(sandbox: Sandbox) -> None:
    source = """
import fcntl, json, os, resource, signal, socket, threading
seen = []
signal.signal(signal.SIGUSR1, lambda *a: seen.append("signal"))
os.kill(os.getpid(), signal.SIGUSR1)
signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)
t = threading.Thread(target=seen.append, args=["thread"]); t.start(); t.join()
a, b = socket.socketpair(); a.setblocking(False); a.send(b"pair"); seen.append(b.recv(9).decode())
resource.setrlimit(resource.RLIMIT_CPU, (1, 1)); seen.append(resource.getrlimit(resource.RLIMIT_CPU)[0])
fcntl.fcntl(0, fcntl.F_SETFD, 1); os.close(os.open('/', os.O_RDONLY))
print(json.dumps(seen))
"""
    assert _printed(sandbox, source) == ["signal", "signal", "thread", "pair", 1]


def test_the_number_of_threads_is_limited_per_program(sandbox: Sandbox) -> None:
    source = """
import ctypes, json
libc, attributes, thread = ctypes.CDLL(None), (ctypes.c_char * 64)(), ctypes.c_ulong()
libc.pthread_attr_init(attributes); libc.pthread_attr_setstacksize(attributes, ctypes.c_size_t(16384))
n = 0
while n < 1500 and libc.pthread_create(ctypes.byref(thread), attributes, libc.pause, None) == 0: n += 1
print(json.dumps(n))
"""
    assert [_printed(sandbox, source) for _ in range(2)] == [1000, 1000]


_LEAVES = """
import json, os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        time.sleep(100)
    time.sleep(0.3)
    os._exit(0)
os.wait()
print(json.dumps(0))
"""


@pytest.mark.parametrize("layers", [[], [NAMESPACES]], ids=["no layer", "namespaces"])
def test_processes_that_a_program_leaves_behind_are_killed(layers: list[str]) -> None:
    """Tested without the filter, which does not let a program start processes."""
    if not set(layers) <= set(measure().layers):
        pytest.skip(measure().describe())
    with no_process_left() as running, Sandbox(layers) as sandbox:
        before = running()
        assert _printed(sandbox, _LEAVES) == 0
        assert running() == before


@pytest.mark.parametrize("layers", [[], [SECCOMP], [NAMESPACES]], ids=["no layer", "seccomp", "namespaces"])
def test_a_child_ends_with_its_zygote(layers: list[str]) -> None:
    if not set(layers) <= set(measure().layers):
        pytest.skip(measure().describe())
    with no_process_left() as running:
        sandbox = Sandbox(layers)
        before = running()
        sandbox.start({"mode": "stdin", "source": "import time; time.sleep(100)"}, LIMITS)
        while running() <= before:
            time.sleep(0.01)
        sandbox._process.kill()
        with pytest.raises(SandboxError, match="died"):
            sandbox.finish()


def test_a_child_can_be_terminated(sandbox: Sandbox) -> None:
    start = time.monotonic()
    sandbox.start({"mode": "stdin", "source": "import time; time.sleep(100)"}, LIMITS)
    assert sandbox.finish(terminate=True).ended_by == "grader"
    assert time.monotonic() - start < LIMITS["wall_seconds"] / 2


def test_a_child_that_has_ended_can_be_terminated(sandbox: Sandbox) -> None:
    sandbox.start({"mode": "stdin", "source": ""}, LIMITS)
    time.sleep(0.3)
    assert sandbox.finish(terminate=True).ended_by == "exit"
    assert _printed(sandbox, "print(1)") == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_without_landlock_and_namespaces_root_becomes_nobody(sandbox: Sandbox) -> None:
    assert _printed(sandbox, "import os; print([*os.getresuid(), *os.getresgid(), *os.getgroups()])") == [65534] * 6


def test_the_kernel_kills_the_program_first_when_memory_runs_out(sandbox: Sandbox) -> None:
    assert _printed(sandbox, "print(open('/proc/self/oom_score_adj').read())") == 1000


def _kill_child(sandbox: Sandbox, source: str) -> None:
    """Starts the program and kills it from outside once it has written something."""
    sandbox.start({"mode": "stdin", "source": source}, LIMITS)
    child = sandbox._running
    assert child
    while not child.read(child.pipes[0]):
        time.sleep(0.01)
    tree = children()
    (pid,) = tree[sandbox._process.pid]
    os.kill(pid, signal.SIGKILL)


_SLEEPS = "import time; print(0, flush=True); time.sleep(100)"


def test_a_child_killed_from_outside_is_a_sandbox_error() -> None:
    with Sandbox([SECCOMP]) as sandbox:
        _kill_child(sandbox, _SLEEPS)
        with pytest.raises(SandboxError, match="killed from outside") as raised:
            sandbox.finish()
        assert not isinstance(raised.value, KilledForMemoryError)
        with pytest.raises(SandboxError, match="cannot be sent"):
            sandbox.run({"mode": "stdin", "source": ""}, LIMITS)


def test_a_child_killed_from_outside_for_its_memory_has_its_own_error() -> None:
    """As the kernel does when the machine has less memory than the limit of a program."""
    with Sandbox([SECCOMP]) as sandbox:
        _kill_child(sandbox, f"x = bytearray(700_000_000); {_SLEEPS}")
        with pytest.raises(KilledForMemoryError):
            sandbox.finish()


LOWERED = "import resource; resource.setrlimit(resource.RLIMIT_CPU, (0, 0))\nwhile True: pass"


@pytest.mark.parametrize(
    ("layers", "source"),
    [([SECCOMP], LOWERED), ([NAMESPACES, SECCOMP], LOWERED), ([], LOWERED), ([], "import os; os.kill(os.getpid(), 9)")],
    ids=["seccomp", "namespaces", "no layer", "no layer, by a signal"],
)
def test_a_child_that_kills_itself_is_a_result(layers: list[str], source: str) -> None:
    """The sandbox survives. Without a filter this cannot be distinguished from a kill from outside, and counts the
    same."""
    if not set(layers) <= set(measure().layers):
        pytest.skip(measure().describe())
    with Sandbox(layers) as sandbox:
        ended = sandbox.run({"mode": "stdin", "source": source}, LIMITS)
        assert (ended.status, ended.ended_by) == (-signal.SIGKILL, "exit")
        assert _printed(sandbox, "print(1)") == 1


def test_a_child_that_cannot_be_set_up_is_a_sandbox_error() -> None:
    with Sandbox([]) as sandbox, pytest.raises(SandboxError, match="could not be set up: TypeError"):
        sandbox.run({"mode": "stdin", "source": ""}, {**LIMITS, "memory": None})  # no limit that can be set


@pytest.mark.parametrize("without", [[], [NAMESPACES], [LANDLOCK]], ids=["all layers", "no namespaces", "no landlock"])
def test_no_escape_succeeds(without: list[str]) -> None:
    isolation = measure(frozenset(without))
    if not {NAMESPACES, LANDLOCK} & set(isolation.layers):
        pytest.skip(isolation.describe())
    assert isolation.escapes == ()


def test_missing_layers_let_escapes_succeed() -> None:
    """Without landlock and namespaces files can be read; without seccomp as well, every escape succeeds."""
    some, none = measure(frozenset({NAMESPACES, LANDLOCK})), measure(frozenset({NAMESPACES, LANDLOCK, SECCOMP}))
    assert (some.level, none.level) == ("L1", "L0")
    assert some.escapes == ("read a file",)
    assert {"read a file", "connect over TCP", "start a process", "signal the parent"} <= set(none.escapes)


# Runs in a separate process: a filter cannot be removed, and root cannot return from being an ordinary user.
_ELSEWHERE = """
import json, os, struct, sys
from rewards.sandbox import kernel
{before}
from program_attacks import ESCAPE, ESCAPES, HONEST, STDIN
from rewards.program import ProgramVerifier
with ProgramVerifier(num_workers=1) as verifier:
    attempts = [ESCAPE.replace("{{attempt}}", attempt) for attempt in ESCAPES.values()]
    scores = verifier.verify_batch(attempts, [STDIN] * len(attempts))
    honest = [verifier.verify_batch([program], [task])[0].value for task, program in HONEST.values()]
    escaped = [name for name, score in zip(ESCAPES, scores) if score.value != 0]
    owners = [os.stat(f"/proc/{{w.process.pid}}/mem").st_uid for w in verifier._pool._workers if w.ready]
    print(json.dumps([verifier.isolation.describe(), escaped, honest, owners]))
"""
_REFUSE_UNSHARE = """
kernel._prctl("", 38, 1)  # PR_SET_NO_NEW_PRIVS
load, equal, refuse, allow = (0x20, 0, 0, 0), (0x15, 0, 1, {number}), (0x06, 0, 0, 0x50001), (0x06, 0, 0, 0x7FFF0000)
kernel.install_filter(b"".join(struct.pack("HBBI", *step) for step in (load, equal, refuse, allow)))
"""


def test_without_namespaces_the_other_layers_hold() -> None:
    number = {"x86_64": 272, "aarch64": 97}[os.uname().machine]
    source = _ELSEWHERE.format(before=_REFUSE_UNSHARE.format(number=number))
    level, escaped, honest, _ = _run([sys.executable, "-c", source], f"{ROOT}{os.pathsep}{HERE}")
    assert level == "L2 (landlock, seccomp); missing: namespaces ([Errno 1] unshare: Operation not permitted)"
    assert (escaped, honest) == ([], [1.0] * 3)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_an_ordinary_user_has_the_same_protection() -> None:
    nobody = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]
    pythons = [python for python in (sys.executable, "/usr/bin/python3") if _starts([*nobody, python])]
    if not pythons:
        pytest.skip("no interpreter that an ordinary user may start")
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(ROOT / "rewards", f"{folder}/rewards", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(HERE / "program_attacks.py", folder)
        os.chmod(folder, 0o755)
        level, escaped, honest, owners = _run([*nobody, pythons[0], "-c", _ELSEWHERE.format(before="")], folder)
    assert level.startswith("L3" if NAMESPACES in measure().layers else "L2"), level
    assert (escaped, honest) == ([], [1.0] * 3)
    assert set(owners) == {0}  # proc(5): the memory of a process that hides it belongs to root


def _starts(python: list[str]) -> bool:
    check = [
        *python,
        "-c",
        "import os, sys; sys.exit(sys.version_info < (3, 11) or not os.access(sys.executable, os.X_OK))",
    ]
    try:
        return subprocess.run(check, capture_output=True, check=False, cwd="/").returncode == 0
    except OSError:
        return False


def _run(command: list[str], path: str) -> Any:
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, env=environment, cwd="/", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
