"""What an interpreter gives up before it runs anything untrusted. Every layer is entered once and inherited by children.

    namespaces  a process tree, a network without interfaces and a file tree of its own: nothing else exists
    landlock    of the files that exist, only the libraries may be read, nothing written, no connection made
    seccomp     of the kernel, only the calls that ordinary programs need (entered by each child, see filter.py)

None needs a privilege; each is refused on some machines (namespaces in a default container, landlock before Linux 5.13).
"""

from __future__ import annotations

import os
import signal
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

from rewards.sandbox import kernel

NAMESPACES, LANDLOCK, SECCOMP = "namespaces", "landlock", "seccomp"
LAYERS = (NAMESPACES, LANDLOCK, SECCOMP)

_ALL_NAMESPACES = (
    kernel.CLONE_NEWUSER
    | kernel.CLONE_NEWPID
    | kernel.CLONE_NEWNET
    | kernel.CLONE_NEWNS
    | kernel.CLONE_NEWIPC
    | kernel.CLONE_NEWUTS
)
_NOBODY = 65534  # nobody


def library_folders() -> list[str]:
    """What an interpreter may have to read while it runs: its standard library and shared libraries."""
    wanted = {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"), f"{sys.base_prefix}/lib"}
    wanted |= {"/lib", "/lib64", "/usr/lib", "/usr/lib64"}
    found = sorted(path for path in wanted if os.path.isdir(path))
    return [path for path in found if not any(path.startswith(f"{other}/") for other in found)]


def enter_namespaces(readable: Sequence[str]) -> None:
    """Returns in a new process, the first of its tree, whose end ends the tree; the old one waits for it and exits.

    Of the file tree there are the `readable` folders, read-only.
    """
    user, group = os.geteuid(), os.getegid()
    kernel.unshare(_ALL_NAMESPACES)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
    Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    _new_root(readable)
    first = os.fork()
    if first:
        os.closerange(0, 64)  # the pipes are the new one's
        os._exit(os.waitstatus_to_exitcode(os.waitpid(first, 0)[1]) & 0xFF)
    kernel.die_with_parent(signal.SIGKILL)


def _new_root(readable: Sequence[str]) -> None:
    # The new root is mounted over a folder that may hold what we need: keep hold of that first.
    handles = {path: os.open(path, os.O_PATH) for path in readable}
    root = "/tmp"
    kernel.mount("none", "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
    kernel.mount("none", root, "tmpfs", 0, "size=1m,mode=755")
    for path, handle in handles.items():
        os.makedirs(root + path)
        kernel.mount(f"/proc/self/fd/{handle}", root + path, None, kernel.MS_BIND | kernel.MS_REC)
        os.close(handle)
    kernel.make_read_only(root)
    os.chdir(root)
    kernel.pivot_root_here()


def enter_landlock(readable: Sequence[str]) -> None:
    kernel.restrict_files(dict.fromkeys(readable, kernel.READ_FILE | kernel.READ_DIR))


def become_nobody() -> None:
    """Where nothing else guards the files: root at least stops being root."""
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(_NOBODY, _NOBODY, _NOBODY)
        os.setresuid(_NOBODY, _NOBODY, _NOBODY)
