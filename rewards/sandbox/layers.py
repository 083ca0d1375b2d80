"""The isolation layers of an interpreter that runs untrusted programs. A layer is entered once and inherited by
children.

    namespaces  a process tree, a network without interfaces and a file tree of its own: everything else is invisible
    landlock    only the libraries can be read, nothing can be written, no TCP connection can be made
    seccomp     only the system calls that ordinary programs need are allowed (entered by each child, see filter.py)

None needs a privilege. Some machines refuse some (a default container refuses namespaces, Linux before 5.13 landlock).
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
_NOBODY = 65534  # user and group id


def library_folders() -> list[str]:
    """Folders that an interpreter may have to read while it runs: the standard library and shared libraries."""
    wanted = {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"), f"{sys.base_prefix}/lib"}
    wanted |= {"/lib", "/lib64", "/usr/lib", "/usr/lib64"}
    found = sorted(path for path in wanted if os.path.isdir(path))
    return [path for path in found if not any(path.startswith(f"{other}/") for other in found)]


def enter_namespaces(readable: Sequence[str]) -> None:
    """Moves to new namespaces, with only the `readable` folders (read-only) in the file tree.

    Returns in a new process, the first of its process tree, whose end ends the tree; the old process waits for it and
    exits.
    """
    user, group = os.geteuid(), os.getegid()
    kernel.unshare(_ALL_NAMESPACES)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
    Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    _new_root(readable)
    first = os.fork()
    if first:
        os.closerange(0, 64)  # only the new process uses the pipes
        os._exit(os.waitstatus_to_exitcode(os.waitpid(first, 0)[1]) & 0xFF)
    kernel.die_with_parent(signal.SIGKILL)


def _new_root(readable: Sequence[str]) -> None:
    # The new root is mounted over a folder that may contain the readable folders: open these first.
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
    """Switches from root to the user nobody, for when no layer protects the files."""
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(_NOBODY, _NOBODY, _NOBODY)
        os.setresuid(_NOBODY, _NOBODY, _NOBODY)
