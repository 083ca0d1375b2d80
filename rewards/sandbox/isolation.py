"""Measures the isolation level of this machine: the layers that it permits, confirmed by escape attempts.

    L3   namespaces, landlock and seccomp
    L2   landlock and seccomp (available in a default container)
    L2g  namespaces and seccomp (if the kernel has no landlock)
    L1   seccomp only: no processes, no network, no writing, but files can be read
    L0   resource limits only
If an escape attempt succeeds, the level is L1 at most, and only if nothing but reading succeeded; otherwise it is L0.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import sys
import tempfile
from collections.abc import Collection, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from rewards.sandbox.bpf import SUPPORTED
from rewards.sandbox.child import Limits
from rewards.sandbox.client import Sandbox, SandboxError
from rewards.sandbox.layers import LANDLOCK, LAYERS, NAMESPACES, SECCOMP

MIN_LEVEL = 2

# Each attempt gets targets (`at`: a folder, a file, addresses) and prints whether it escaped.
_ESCAPE_TEMPLATE = """
import ctypes, json, os, resource, signal, socket, sys
at = json.loads(sys.stdin.read())
def connect(family, address):
    with socket.socket(family) as s:
        s.settimeout(1)
        s.connect(address)
def syscall(name, *arguments):
    if getattr(ctypes.CDLL(None), name)(*arguments) < 0:
        raise OSError(name)
def fork():
    if os.fork() == 0:
        os._exit(0)
try:
    {attempt}
    print("escaped")
except (OSError, ValueError):
    print("held")
"""
_READING = {
    "read a file": "open(at['canary']).read()",
    "read the memory of another process": "open(f'/proc/{os.getppid()}/mem', 'rb')",
}
_ATTEMPTS = _READING | {
    "write a file": "open(at['folder'] + '/written', 'w')",
    "remove a file": "os.remove(at['canary'])",
    "change a file's mode": "os.chmod(at['canary'], 0o777)",
    "connect over TCP": "connect(socket.AF_INET, ('127.0.0.1', at['port']))",
    "connect to a local socket": "connect(socket.AF_UNIX, at['folder'] + '/socket')",
    "connect to an abstract socket": "connect(socket.AF_UNIX, chr(0) + at['abstract'])",
    "start a process": "fork()",
    "execute a file": "os.execv('/bin/true', ['true'])",  # prints nothing if it succeeds
    "signal the parent": "os.kill(os.getppid(), 0)",
    "signal everybody": "os.kill(-1, 0)",
    "raise its limits": "resource.setrlimit(resource.RLIMIT_CPU, (resource.RLIM_INFINITY,) * 2)",
    "trace a process": "syscall('ptrace', 0, 0, 0, 0)",
    "make a namespace": "syscall('unshare', 0x10000000)",
}
_LIMITS: Limits = {"cpu_seconds": 2, "wall_seconds": 4.0, "memory": 1 << 29, "output": 1 << 16}


@dataclass(frozen=True)
class Isolation:
    """The isolation of children. layers: those in use. missing: layer -> the reason why it is not in use. escapes: the
    attempts that succeeded."""

    level: str
    layers: tuple[str, ...]
    missing: Mapping[str, str]
    escapes: tuple[str, ...]

    @property
    def rank(self) -> int:
        """The level as a number, to compare with MIN_LEVEL."""
        return int(self.level[1])

    def describe(self) -> str:
        """A one-line description for users."""
        text = f"{self.level} ({', '.join(self.layers) or 'resource limits only'})"
        if self.missing:
            text += "; missing: " + ", ".join(f"{layer} ({reason})" for layer, reason in self.missing.items())
        return text + (f"; escapes that succeeded: {', '.join(self.escapes)}" if self.escapes else "")


@lru_cache
def measure(without: frozenset[str] = frozenset()) -> Isolation:
    """Enters all available layers except `without` and tries to escape. Raises SandboxError if nothing can be run."""
    if sys.platform != "linux":
        raise SandboxError(f"programs are run on Linux only, and this is {sys.platform}")
    wanted = [layer for layer in LAYERS if layer not in without]
    missing = {layer: "switched off" for layer in LAYERS if layer in without}
    if not SUPPORTED and SECCOMP in wanted:
        wanted.remove(SECCOMP)
        missing[SECCOMP] = f"its rules are written for x86_64 and aarch64, and this is {os.uname().machine}"
    refused = _refusal(wanted)
    if refused is not None:
        reasons = {layer: _refusal([layer]) for layer in wanted}
        missing |= {layer: reason for layer, reason in reasons.items() if reason is not None}
        wanted = [layer for layer in wanted if layer not in missing]
    escapes = tuple(name for name, result in _try_to_escape(wanted).items() if result != "held")
    return Isolation(_level(wanted, escapes), tuple(wanted), missing, escapes)


def _refusal(layers: Collection[str]) -> str | None:
    """The reason why a child cannot be run in these layers, None if it can."""
    try:
        with Sandbox(tuple(layers)) as sandbox:
            sandbox.run({"mode": "stdin", "source": ""}, _LIMITS)
    except SandboxError as error:
        return str(error)
    return None


def _level(layers: Collection[str], escapes: Collection[str]) -> str:
    if not escapes and SECCOMP in layers:
        if NAMESPACES in layers and LANDLOCK in layers:
            return "L3"
        if LANDLOCK in layers:
            return "L2"
        if NAMESPACES in layers:
            return "L2g"
    return "L1" if SECCOMP in layers and set(escapes) <= set(_READING) else "L0"


def _try_to_escape(layers: Collection[str]) -> dict[str, str]:
    """The result of each attempt: "held" if it failed, any other text if it may have escaped."""
    with ExitStack() as stack:
        try:
            at = _escape_targets(stack)
        except OSError as error:
            raise SandboxError(f"the escape attempts need a temporary folder (TMPDIR): {error}") from None
        sandbox = stack.enter_context(Sandbox(tuple(layers)))
        results = {}
        for name, attempt in _ATTEMPTS.items():
            Path(at["canary"]).touch()  # an earlier attempt may have removed it
            job = {"mode": "stdin", "source": _ESCAPE_TEMPLATE.replace("{attempt}", attempt)}
            results[name] = sandbox.run(job, _LIMITS, stdin=json.dumps(at).encode()).stdout.decode().strip()
        return results


def _escape_targets(stack: ExitStack) -> dict[str, Any]:
    """Targets of the escape attempts: a folder, a file in it and listening sockets, until the stack is closed."""
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="plumbline-"))
    os.chmod(folder, 0o755)
    canary = Path(folder) / "canary"
    canary.write_text("a child must not see this")
    abstract = f"plumbline-{secrets.token_hex(8)}"
    listeners = [stack.enter_context(socket.socket(f)) for f in (socket.AF_INET, socket.AF_UNIX, socket.AF_UNIX)]
    for listener, address in zip(listeners, (("127.0.0.1", 0), f"{folder}/socket", f"\0{abstract}"), strict=True):
        listener.bind(address)
        listener.listen()
    os.chmod(f"{folder}/socket", 0o777)
    return {"folder": folder, "canary": str(canary), "abstract": abstract, "port": listeners[0].getsockname()[1]}
