"""The seccomp allowlist: which system calls a program may make. What is not named here is refused with EPERM.

One classic BPF program (seccomp(2)): check the machine, then look the call's number up; some calls are allowed only with
certain arguments. A second one, of the zygote, leaves every new thread to the zygote's decision: nothing else bounds their
number for root, and 30,000 of them, which fit into a gigabyte, leave the machine no process ids.
"""

from __future__ import annotations

import errno
import os
import signal
import struct
from collections.abc import Callable, Sequence

from rewards.sandbox.kernel import MACHINE

# Numbers on (x86_64, aarch64); None where the machine has no such call. From the kernel's unistd headers.
_ALLOWED: dict[str, tuple[int | None, int | None]] = {
    # files that are open, and files to read (landlock and the mounts say which)
    "read": (0, 63), "write": (1, 64), "readv": (19, 65), "writev": (20, 66), "pread64": (17, 67),
    "pwrite64": (18, 68), "close": (3, 57), "close_range": (436, 436), "lseek": (8, 62), "fstat": (5, 80),
    "newfstatat": (262, 79), "stat": (4, None), "lstat": (6, None), "statx": (332, 291), "access": (21, None),
    "faccessat": (269, 48), "faccessat2": (439, 439), "readlink": (89, None), "readlinkat": (267, 78),
    "getdents64": (217, 61), "getcwd": (79, 17), "umask": (95, 166),
    "dup": (32, 23), "dup2": (33, None), "dup3": (292, 24), "pipe": (22, None), "pipe2": (293, 59),
    "poll": (7, None), "ppoll": (271, 73), "select": (23, None), "pselect6": (270, 72), "eventfd2": (290, 19),
    "epoll_create1": (291, 20), "epoll_ctl": (233, 21), "epoll_wait": (232, None), "epoll_pwait": (281, 22),
    # what a connected pair of its own needs: asyncio makes one
    "recvfrom": (45, 207), "shutdown": (48, 210), "getsockname": (51, 204),
    # memory
    "mmap": (9, 222), "munmap": (11, 215), "mprotect": (10, 226), "mremap": (25, 216), "madvise": (28, 233),
    "brk": (12, 214), "membarrier": (324, 283),
    # signals to itself, threads, time
    "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139), "rt_sigtimedwait": (128, 137),
    "rt_sigpending": (127, 136), "sigaltstack": (131, 132), "restart_syscall": (219, 128), "pause": (34, None),
    "futex": (202, 98), "set_robust_list": (273, 99), "rseq": (334, 293), "set_tid_address": (218, 96),
    "sched_yield": (24, 124), "sched_getaffinity": (204, 123), "exit": (60, 93), "exit_group": (231, 94),
    "clock_gettime": (228, 113), "clock_getres": (229, 114), "clock_nanosleep": (230, 115), "nanosleep": (35, 101),
    "gettimeofday": (96, 169), "time": (201, None), "times": (100, 153), "getitimer": (36, 102),
    "setitimer": (38, 103), "alarm": (37, None), "getrandom": (318, 278),
    # who and where am I
    "getpid": (39, 172), "gettid": (186, 178), "getppid": (110, 173), "getuid": (102, 174), "geteuid": (107, 175),
    "getgid": (104, 176), "getegid": (108, 177), "getresuid": (118, 148), "getresgid": (120, 150),
    "getgroups": (115, 158), "getpgrp": (111, None), "getpgid": (121, 155), "getsid": (124, 156),
    "uname": (63, 160), "sysinfo": (99, 179), "getrusage": (98, 165), "getrlimit": (97, 163), "setrlimit": (160, 164),
}  # fmt: skip
_CONDITIONAL: dict[str, tuple[int | None, int | None]] = {
    "clone": (56, 220), "clone3": (435, 435), "kill": (62, 129), "tgkill": (234, 131), "prlimit64": (302, 261),
    "open": (2, None), "openat": (257, 56), "fcntl": (72, 25), "ioctl": (16, 29), "socketpair": (53, 199),
    "sendto": (44, 206),
}  # fmt: skip
_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column above, AUDIT_ARCH_*
SUPPORTED = MACHINE in _MACHINES

_X32_BIT = 0x40000000
_CLONE_THREAD = 0x00010000
_TO_WRITE = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_FCNTL = (0, 1, 2, 3, 4, 1030, 1032)  # duplicate, flags, pipe size; F_SETOWN with F_SETSIG could signal other processes
_IOCTL = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)  # TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX
_AF_UNIX, _SOCK_STREAM, _SOCK_TYPE_MASK = 1, 1, 0xF

_LOAD, _AND, _RETURN = 0x20, 0x54, 0x06
_JUMP_EQUAL, _JUMP_SET, _JUMP_AT_LEAST = 0x15, 0x45, 0x35
_ALLOW, _KILL, _ASK = 0x7FFF0000, 0x80000000, 0x7FC00000
_REFUSE, _UNKNOWN = 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS

_Code = list[tuple[int, int, int, int]]  # opcode, jump if true, jump if false, operand


def program(pid: int) -> bytes:
    """The filter for the process `pid`, as an array of struct sock_filter."""
    column, architecture = _MACHINES[MACHINE]
    code: _Code = [(_LOAD, 0, 0, 4), (_JUMP_EQUAL, 1, 0, architecture), (_RETURN, 0, 0, _KILL), (_LOAD, 0, 0, 0)]
    if MACHINE == "x86_64":  # the calls of the x32 ABI have numbers of their own
        code += [(_JUMP_AT_LEAST, 0, 1, _X32_BIT), (_RETURN, 0, 0, _REFUSE)]
    for numbers in _ALLOWED.values():
        number = numbers[column]
        if number is not None:
            code += [(_JUMP_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ALLOW)]
    for name, numbers in _CONDITIONAL.items():
        number = numbers[column]
        if number is not None:
            rule = _RULES[name](pid)
            code += [(_JUMP_EQUAL, 0, len(rule), number), *rule]
    code.append((_RETURN, 0, 0, _REFUSE))
    return _packed(code)


def thread_watch() -> bytes:
    """The filter that asks about new threads, and only about them."""
    clone = _CONDITIONAL["clone"][_MACHINES[MACHINE][0]]
    assert clone is not None
    code: _Code = [(_LOAD, 0, 0, 0), (_JUMP_EQUAL, 0, 3, clone), _argument(0), (_JUMP_SET, 0, 1, _CLONE_THREAD)]
    code += [(_RETURN, 0, 0, _ASK), (_RETURN, 0, 0, _ALLOW)]
    return _packed(code)


def _packed(code: _Code) -> bytes:
    return b"".join(struct.pack("HBBI", *instruction) for instruction in code)


def _argument(index: int) -> tuple[int, int, int, int]:
    """Load the low half of an argument; these calls take ints, whose high half the kernel ignores too."""
    return (_LOAD, 0, 0, 16 + 8 * index)


def _one_of(index: int, values: Sequence[int]) -> _Code:
    tests = [(_JUMP_EQUAL, len(values) - i, 0, value) for i, value in enumerate(values)]
    return [_argument(index), *tests, (_RETURN, 0, 0, _REFUSE), (_RETURN, 0, 0, _ALLOW)]


def _to_itself(pid: int, *, signal_index: int) -> _Code:
    """Any signal but SIGKILL: who dies by that was killed from outside, when memory ran out for example."""
    return [
        _argument(signal_index),
        (_JUMP_EQUAL, 2, 0, signal.SIGKILL),
        _argument(0),
        (_JUMP_EQUAL, 1, 0, pid),
        (_RETURN, 0, 0, _REFUSE),
        (_RETURN, 0, 0, _ALLOW),
    ]


def _bits(index: int, mask: int, *, required: bool) -> _Code:
    """Allowed if any bit of the mask is set, or if none is."""
    if_set, if_not = (0, 1) if required else (1, 0)
    return [_argument(index), (_JUMP_SET, if_set, if_not, mask), (_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _REFUSE)]


def _connected_pair() -> _Code:
    """socketpair of local streams: a datagram socket could be sent on to an address outside."""
    return [
        _argument(0),
        (_JUMP_EQUAL, 0, 4, _AF_UNIX),
        _argument(1),
        (_AND, 0, 0, _SOCK_TYPE_MASK),
        (_JUMP_EQUAL, 0, 1, _SOCK_STREAM),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _REFUSE),
    ]


def _without_address() -> _Code:
    """sendto with a null address, which is what send() is: both halves of the pointer are zero."""
    low, high = 16 + 8 * 4, 20 + 8 * 4
    return [
        (_LOAD, 0, 0, low),
        (_JUMP_EQUAL, 0, 3, 0),
        (_LOAD, 0, 0, high),
        (_JUMP_EQUAL, 0, 1, 0),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _REFUSE),
    ]


_RULES: dict[str, Callable[[int], _Code]] = {
    "clone": lambda pid: _bits(0, _CLONE_THREAD, required=True),
    "clone3": lambda pid: [(_RETURN, 0, 0, _UNKNOWN)],  # its flags are behind a pointer; libc then falls back to clone
    "kill": lambda pid: _to_itself(pid, signal_index=1),
    "tgkill": lambda pid: _to_itself(pid, signal_index=2),
    "prlimit64": lambda pid: _one_of(0, [0, pid]),
    "open": lambda pid: _bits(1, _TO_WRITE, required=False),
    "openat": lambda pid: _bits(2, _TO_WRITE, required=False),
    "fcntl": lambda pid: _one_of(1, _FCNTL),
    "ioctl": lambda pid: _one_of(1, _IOCTL),
    "socketpair": lambda pid: _connected_pair(),
    "sendto": lambda pid: _without_address(),
}
