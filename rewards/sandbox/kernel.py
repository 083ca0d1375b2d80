"""Linux system calls that Python does not wrap. Each raises OSError with the name of the call if it fails."""

from __future__ import annotations

import ctypes
import fcntl
import os
import platform
import struct
from collections.abc import Callable

_LIBC = ctypes.CDLL(None, use_errno=True)
MACHINE = platform.machine()

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x00020000, 0x04000000, 0x08000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
MS_BIND, MS_REC, MS_PRIVATE = 1 << 12, 1 << 14, 1 << 18
_MNT_DETACH, _AT_FDCWD, _AT_RECURSIVE = 2, -100, 0x8000
_MOUNT_ATTR_RDONLY, _MOUNT_ATTR_NOSUID, _MOUNT_ATTR_NODEV = 1, 2, 4

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_CAPBSET_DROP = 1, 4, 22, 24
_PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 36, 38, 47, 4
_SECCOMP_MODE_FILTER, _SECCOMP_SET_MODE_FILTER, _SECCOMP_FILTER_FLAG_NEW_LISTENER = 2, 1, 1 << 3
_SECCOMP_IOCTL_NOTIF_RECV, _SECCOMP_IOCTL_NOTIF_SEND, _SECCOMP_USER_NOTIF_FLAG_CONTINUE = 0xC0502100, 0xC0182101, 1
_CAPABILITY_VERSION_3 = 0x20080522

_NUMBERS = {
    "x86_64": {"pivot_root": 155, "capset": 126, "seccomp": 317},
    "aarch64": {"pivot_root": 41, "capset": 91, "seccomp": 277},
}
# These numbers are the same on every machine.
_MOUNT_SETATTR, _LANDLOCK_CREATE_RULESET, _LANDLOCK_ADD_RULE, _LANDLOCK_RESTRICT_SELF = 442, 444, 445, 446
_LANDLOCK_CREATE_RULESET_VERSION, _LANDLOCK_RULE_PATH_BENEATH = 1, 1

# landlock's access rights
READ_FILE, READ_DIR = 1 << 2, 1 << 3
_NUM_FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}  # by ABI version; the last entry also applies to later versions


def _checked(result: int, what: str) -> int:
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{what}: {os.strerror(error)}")
    return result


def _syscall(what: str, number: int, *arguments: object) -> int:
    return _checked(_LIBC.syscall(ctypes.c_long(number), *arguments), what)


def _prctl(what: str, option: int, *values: int) -> None:
    padded = [ctypes.c_ulong(value) for value in (*values, 0, 0, 0, 0)[:4]]
    _checked(_LIBC.prctl(option, *padded), what)


def die_with_parent(signal: int) -> None:
    _prctl("PR_SET_PDEATHSIG", _PR_SET_PDEATHSIG, signal)


def hide_memory() -> None:
    """Makes the memory of this process unreadable through /proc and ptrace to all processes but root's."""
    _prctl("PR_SET_DUMPABLE", _PR_SET_DUMPABLE, 0)


def inherit_orphans() -> None:
    """Makes this process the parent of descendants whose own parent has died, so that it can end them."""
    _prctl("PR_SET_CHILD_SUBREAPER", _PR_SET_CHILD_SUBREAPER, 1)


def drop_privileges() -> None:
    """Drops all capabilities, and prevents any later exec from gaining privileges."""
    _prctl("PR_SET_NO_NEW_PRIVS", _PR_SET_NO_NEW_PRIVS, 1)
    for capability in range(64):
        try:
            _prctl("PR_CAPBSET_DROP", _PR_CAPBSET_DROP, capability)
        except OSError:  # the last capability was reached, or the user has none to drop
            break
    _prctl("PR_CAP_AMBIENT", _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    header, none = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0), bytes(24)
    _syscall("capset", _NUMBERS[MACHINE]["capset"], ctypes.c_char_p(header), ctypes.c_char_p(none))


def install_filter(program: bytes) -> None:
    """Installs a seccomp(2) filter: `program` decides on every later system call of this thread and its descendants."""
    filter = _Filter(program)
    _prctl("PR_SET_SECCOMP", _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.addressof(filter))


def install_notifying_filter(program: bytes) -> int:
    """Installs a filter that leaves some calls to this process. Returns the descriptor that reply_to_call takes."""
    return _syscall(
        "seccomp",
        _NUMBERS[MACHINE]["seccomp"],
        ctypes.c_uint(_SECCOMP_SET_MODE_FILTER),
        ctypes.c_uint(_SECCOMP_FILTER_FLAG_NEW_LISTENER),
        ctypes.byref(_Filter(program)),
    )


def reply_to_call(listener: int, decide: Callable[[int], int]) -> None:
    """Answers the call that waits at `listener`. decide: maps the thread that makes it to the error number with which
    the call fails, 0 to allow it."""
    request, reply = bytearray(80), bytearray(24)  # struct seccomp_notif, struct seccomp_notif_resp
    fcntl.ioctl(listener, _SECCOMP_IOCTL_NOTIF_RECV, request)
    identity, thread = struct.unpack_from("=QI", request)
    error = decide(thread)
    struct.pack_into("=QqiI", reply, 0, identity, 0, -error, 0 if error else _SECCOMP_USER_NOTIF_FLAG_CONTINUE)
    fcntl.ioctl(listener, _SECCOMP_IOCTL_NOTIF_SEND, reply)


class _Filter(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_char_p))

    def __init__(self, program: bytes) -> None:
        super().__init__(len(program) // 8, program)


def unshare(flags: int) -> None:
    _checked(_LIBC.unshare(flags), "unshare")


def mount(source: str, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    encoded = [None if text is None else os.fsencode(text) for text in (source, target, kind, options)]
    result = _LIBC.mount(encoded[0], encoded[1], encoded[2], ctypes.c_ulong(flags), encoded[3])
    _checked(result, f"mount {target}")


def make_read_only(path: str) -> None:
    """Remounts `path` and everything below it without writing, devices and set-user-id programs."""
    attributes = struct.pack("=QQQQ", _MOUNT_ATTR_RDONLY | _MOUNT_ATTR_NOSUID | _MOUNT_ATTR_NODEV, 0, 0, 0)
    _syscall(
        "mount_setattr",
        _MOUNT_SETATTR,
        ctypes.c_int(_AT_FDCWD),
        ctypes.c_char_p(os.fsencode(path)),
        ctypes.c_uint(_AT_RECURSIVE),
        ctypes.c_char_p(attributes),
        ctypes.c_size_t(len(attributes)),
    )


def pivot_root_here() -> None:
    """Makes the current directory the root and detaches the old root (pivot_root(2), section NOTES)."""
    _syscall("pivot_root", _NUMBERS[MACHINE]["pivot_root"], ctypes.c_char_p(b"."), ctypes.c_char_p(b"."))
    _checked(_LIBC.umount2(b".", _MNT_DETACH), "umount2")
    os.chdir("/")


def _landlock_version() -> int:
    flags = ctypes.c_uint(_LANDLOCK_CREATE_RULESET_VERSION)
    return _syscall("landlock", _LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), flags)


def restrict_files(allowed: dict[str, int]) -> None:
    """Restricts this process with landlock(7): files may be used only below the paths in `allowed` (path -> access
    rights).

    Also forbids TCP, abstract sockets and signals to processes outside, as far as the kernel's landlock version can.
    """
    version = _landlock_version()
    file_rights = (1 << _NUM_FILE_RIGHTS[min(version, max(_NUM_FILE_RIGHTS))]) - 1
    attributes = struct.pack("=QQQ", file_rights, 0b11, 0b11)  # bind and connect; abstract sockets and signals
    attributes = attributes[: 24 if version >= 6 else 16 if version >= 4 else 8]
    ruleset = _syscall(
        "landlock",
        _LANDLOCK_CREATE_RULESET,
        ctypes.c_char_p(attributes),
        ctypes.c_size_t(len(attributes)),
        ctypes.c_uint(0),
    )
    for path, rights in allowed.items():
        handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
        rule = struct.pack("=Qi", rights & file_rights, handle)
        _syscall(
            f"landlock {path}",
            _LANDLOCK_ADD_RULE,
            ctypes.c_int(ruleset),
            ctypes.c_int(_LANDLOCK_RULE_PATH_BENEATH),
            ctypes.c_char_p(rule),
            ctypes.c_uint(0),
        )
        os.close(handle)
    _syscall("landlock", _LANDLOCK_RESTRICT_SELF, ctypes.c_int(ruleset), ctypes.c_uint(0))
    os.close(ruleset)
