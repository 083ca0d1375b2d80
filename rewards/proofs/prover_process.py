"""Runs a prover, a program that we trust, on text that we do not: bounded in time, memory and size, and shut in.

Shut in means level 2 of rewards.sandbox: landlock (of the files there are, only the prover's own and the libraries can be
read, only one folder written; no TCP) and seccomp (no new processes, sockets, signals or tracing). The allowlist of
rewards.sandbox.filter is for programs that write no files and execute nothing, which a prover must, so here the calls are
named that a prover never makes.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import platform
import resource
import signal
import struct
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rewards.sandbox import kernel
from rewards.sandbox.layers import library_folders

_MAX_OUTPUT = 1 << 16
_MAX_FILE = 1 << 28

# landlock(7): what else a path may be used for
_EXECUTE, _WRITE_FILE, _REMOVE_FILE, _MAKE_REG, _TRUNCATE = 1 << 0, 1 << 1, 1 << 5, 1 << 8, 1 << 14
_READ = kernel.READ_FILE | kernel.READ_DIR

# Calls that are refused, with their numbers on (x86_64, aarch64); None where the machine has no such call.
_REFUSED: dict[str, tuple[int | None, int | None]] = {
    "fork": (57, None), "vfork": (58, None), "kill": (62, 129), "tkill": (200, 130), "tgkill": (234, 131),
    "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240), "pidfd_send_signal": (424, 424),
    "socket": (41, 198), "socketpair": (53, 199), "ptrace": (101, 117), "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271), "pidfd_getfd": (438, 438), "io_uring_setup": (425, 425), "bpf": (321, 280),
    "perf_event_open": (298, 241), "userfaultfd": (323, 282), "unshare": (272, 97), "setns": (308, 268),
    "mount": (165, 40), "open_tree": (428, 428), "fsopen": (430, 430), "keyctl": (250, 219), "add_key": (248, 217),
    "request_key": (249, 218), "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452),
    "chown": (92, None), "fchown": (93, 55), "lchown": (94, None), "fchownat": (260, 54), "utimensat": (280, 88),
}  # fmt: skip
_CLONE, _CLONE3, _CLONE_THREAD = (56, 220), 435, 0x00010000
_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column above, AUDIT_ARCH_*

_LOAD, _RETURN, _JUMP_EQUAL, _JUMP_SET, _JUMP_AT_LEAST = 0x20, 0x06, 0x15, 0x45, 0x35
_ALLOW, _KILL, _EPERM, _ENOSYS = 0x7FFF0000, 0x80000000, 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS
_X32_BIT = 0x40000000


class ProverError(RuntimeError):
    """The prover could not be run: not the fault of what it was given."""


@dataclass(frozen=True)
class Ran:
    """status: of the exit, or minus the signal that ended it; None when its time was over. output: the beginning of both its
    outputs, of which `cut_short` says that there was more."""

    status: int | None
    output: str
    cut_short: bool = False


@dataclass(frozen=True, kw_only=True)
class Prover:
    """An installed prover.

    program: its executable. libraries: folders and files it reads, beside the system's libraries. seconds: of processor
    time for one run, and twice as many by the clock. memory: bytes of address space. shut_in: off only where the user
    allows unsafe code.
    """

    program: Path
    libraries: tuple[Path, ...]
    seconds: float
    memory: int
    shut_in: bool

    def run(
        self, *arguments: str, folder: Path, readable: Sequence[Path] = (), environment: dict[str, str] | None = None
    ) -> Ran:
        """Run it in `folder`, the only one it may write; it may also read those in `readable`. Raises ProverError."""
        rights = dict.fromkeys([*map(Path, library_folders()), *self.libraries, self.program], _READ | _EXECUTE)
        rights |= dict.fromkeys(readable, _READ)
        rights[folder] = _READ | _WRITE_FILE | _REMOVE_FILE | _MAKE_REG | _TRUNCATE
        allowed = {str(p): r if p.is_dir() else r & ~kernel.READ_DIR for p, r in rights.items() if p.exists()}

        def prepare() -> None:  # in the new process, before it becomes the prover
            try:
                self._limit()
                if self.shut_in:
                    _shut_in(allowed)
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
                    preexec_fn=prepare,  # safe: a worker has one thread
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
            beginning = output.read(_MAX_OUTPUT).decode(errors="replace")
            return Ran(None if status == -signal.SIGXCPU else status, beginning, cut_short=bool(output.read(1)))

    def _limit(self) -> None:
        if sys.platform == "linux":
            kernel.die_with_parent(signal.SIGKILL)
        seconds = math.ceil(self.seconds)
        limits = {resource.RLIMIT_CPU: seconds, resource.RLIMIT_AS: self.memory, resource.RLIMIT_FSIZE: _MAX_FILE}
        for kind, limit in {**limits, resource.RLIMIT_CORE: 0, resource.RLIMIT_NOFILE: 256}.items():
            hard = resource.getrlimit(kind)[1]
            soft = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
            resource.setrlimit(kind, (soft, hard))


def _shut_in(allowed: dict[str, int]) -> None:
    if platform.machine() not in _MACHINES:
        raise OSError(errno.ENOSYS, f"seccomp: the calls are listed for {', '.join(_MACHINES)}")
    kernel.renounce_privileges()
    kernel.restrict_files(allowed)
    kernel.install_filter(_filter())


def _filter() -> bytes:
    """The seccomp filter, as an array of struct sock_filter: everything but _REFUSED, and threads but no processes."""
    column, architecture = _MACHINES[platform.machine()]
    code = [(_LOAD, 0, 0, 4), (_JUMP_EQUAL, 1, 0, architecture), (_RETURN, 0, 0, _KILL), (_LOAD, 0, 0, 0)]
    if column == 0:  # the calls of the x32 ABI have numbers of their own
        code += [(_JUMP_AT_LEAST, 0, 1, _X32_BIT), (_RETURN, 0, 0, _EPERM)]
    for numbers in _REFUSED.values():
        number = numbers[column]
        if number is not None:
            code += [(_JUMP_EQUAL, 0, 1, number), (_RETURN, 0, 0, _EPERM)]
    code += [(_JUMP_EQUAL, 0, 1, _CLONE3), (_RETURN, 0, 0, _ENOSYS)]  # its flags lie behind a pointer
    code += [(_JUMP_EQUAL, 0, 3, _CLONE[column]), (_LOAD, 0, 0, 16), (_JUMP_SET, 1, 0, _CLONE_THREAD)]
    code += [(_RETURN, 0, 0, _EPERM), (_RETURN, 0, 0, _ALLOW)]
    return b"".join(struct.pack("HBBI", *instruction) for instruction in code)


def _end(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
