"""Runs a prover, which is trusted, on untrusted text: in a sandbox, with limits on time, memory and file size.

The sandbox is level 2 of rewards.sandbox: landlock (only the prover's files and the libraries can be read, only one
folder can be written, no TCP) and seccomp (no new processes, sockets, signals or tracing). The allowlist of
rewards.sandbox.filter does not fit, since a prover must write files and execute; this module has a denylist of the
calls that a prover never makes.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rewards.sandbox import bpf, kernel
from rewards.sandbox.layers import library_folders

_MAX_OUTPUT = 1 << 16
_MAX_FILE = 1 << 28

# further access rights of landlock(7)
_EXECUTE, _WRITE_FILE, _REMOVE_FILE, _MAKE_REG, _TRUNCATE = 1 << 0, 1 << 1, 1 << 5, 1 << 8, 1 << 14
_READ = kernel.READ_FILE | kernel.READ_DIR

_REFUSED: dict[str, bpf.Numbers] = {
    "fork": (57, None), "vfork": (58, None), "kill": (62, 129), "tkill": (200, 130), "tgkill": (234, 131),
    "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240), "pidfd_send_signal": (424, 424),
    "socket": (41, 198), "socketpair": (53, 199), "ptrace": (101, 117), "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271), "pidfd_getfd": (438, 438), "io_uring_setup": (425, 425), "bpf": (321, 280),
    "perf_event_open": (298, 241), "userfaultfd": (323, 282), "unshare": (272, 97), "setns": (308, 268),
    "mount": (165, 40), "open_tree": (428, 428), "fsopen": (430, 430), "keyctl": (250, 219), "add_key": (248, 217),
    "request_key": (249, 218), "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452),
    "chown": (92, None), "fchown": (93, 55), "lchown": (94, None), "fchownat": (260, 54), "utimensat": (280, 88),
}  # fmt: skip
_CLONE: bpf.Numbers = (56, 220)
_CLONE3: bpf.Numbers = (435, 435)


class ProverError(RuntimeError):
    """The prover could not be run, which is not the fault of its input."""


@dataclass(frozen=True)
class RunResult:
    """The result of a run.

    status: the exit status, or minus the signal that ended it; None if it ran out of time.
    output: the beginning of standard output and error. cut_short: there was more output.
    """

    status: int | None
    output: str
    cut_short: bool = False


@dataclass(frozen=True, kw_only=True)
class Prover:
    """An installed prover.

    program: the executable. libraries: folders and files that it reads besides the system's libraries.
    seconds: processor time of one run; the limit of wall-clock time is twice as long. memory: bytes of address space.
    sandboxed: off only if the user allows unsafe code.
    """

    program: Path
    libraries: tuple[Path, ...]
    seconds: float
    memory: int
    sandboxed: bool

    def run(
        self, *arguments: str, folder: Path, readable: Sequence[Path] = (), environment: dict[str, str] | None = None
    ) -> RunResult:
        """Runs the prover in `folder`, which it may read and write; it may read `readable`. Raises ProverError."""
        rights = dict.fromkeys([*map(Path, library_folders()), *self.libraries, self.program], _READ | _EXECUTE)
        rights |= dict.fromkeys(readable, _READ)
        rights[folder] = _READ | _WRITE_FILE | _REMOVE_FILE | _MAKE_REG | _TRUNCATE
        allowed = {str(p): r if p.is_dir() else r & ~kernel.READ_DIR for p, r in rights.items() if p.exists()}

        def prepare() -> None:  # runs in the new process, before it executes the prover
            try:
                self._limit()
                if self.sandboxed:
                    _enter_sandbox(allowed)
            except OSError as error:
                os.write(2, f"{error}".encode())
                raise

        with tempfile.TemporaryFile() as output:
            try:
                process = subprocess.Popen(
                    [str(self.program), *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    cwd=folder,
                    env={"HOME": str(folder), "TMPDIR": str(folder), "LC_ALL": "C.UTF-8", **(environment or {})},
                    start_new_session=True,
                    preexec_fn=prepare,  # safe, because a worker has one thread
                )
            except (OSError, subprocess.SubprocessError) as error:
                output.seek(0)
                reason = output.read(_MAX_OUTPUT).decode(errors="replace")
                raise ProverError(f"{self.program.name} cannot be started: {reason or error}") from None
            try:
                status = process.wait(2 * self.seconds)
            except subprocess.TimeoutExpired:
                status = None
            finally:
                _end(process)
            output.seek(0)
            text = output.read(_MAX_OUTPUT).decode(errors="replace")
            return RunResult(None if status == -signal.SIGXCPU else status, text, cut_short=bool(output.read(1)))

    def _limit(self) -> None:
        if sys.platform == "linux":
            kernel.die_with_parent(signal.SIGKILL)
        seconds = math.ceil(self.seconds)
        limits = {resource.RLIMIT_CPU: seconds, resource.RLIMIT_AS: self.memory, resource.RLIMIT_FSIZE: _MAX_FILE}
        for kind, limit in {**limits, resource.RLIMIT_CORE: 0, resource.RLIMIT_NOFILE: 256}.items():
            hard = resource.getrlimit(kind)[1]
            soft = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
            resource.setrlimit(kind, (soft, hard))


def _enter_sandbox(allowed: dict[str, int]) -> None:
    if not bpf.SUPPORTED:
        raise OSError(errno.ENOSYS, f"seccomp: the filter supports {', '.join(bpf.MACHINES)} only")
    kernel.drop_privileges()
    kernel.restrict_files(allowed)
    kernel.install_filter(_filter())


def _filter() -> bytes:
    """The seccomp filter: allows all calls but those in _REFUSED, and new threads but no new processes."""
    code = bpf.prologue()
    for numbers in _REFUSED.values():
        code += bpf.on_call(numbers, [bpf.REFUSE])
    code += bpf.on_call(_CLONE3, [bpf.UNKNOWN])  # its flags are behind a pointer
    code += bpf.on_call(_CLONE, [bpf.load_argument(0), (bpf.JUMP_SET, 1, 0, bpf.CLONE_THREAD), bpf.REFUSE])
    return bpf.assemble([*code, bpf.ALLOW])


def _end(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
