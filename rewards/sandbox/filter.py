"""The seccomp allowlist: the system calls that a program may make. Every other call fails with EPERM.

The filter is one classic BPF program (seccomp(2)): it checks the machine and looks up the number of the call; some
calls are allowed only with certain arguments. A second filter makes the zygote decide on every new thread: nothing else
bounds the number of root's threads, and 30,000 of them, which fit into a gigabyte, use up all process ids of the
machine.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from functools import cache

from rewards.sandbox.bpf import (
    ALLOW,
    AND,
    CLONE_THREAD,
    JUMP_EQUAL,
    JUMP_SET,
    LOAD,
    LOAD_CALL,
    NOTIFY,
    REFUSE,
    UNKNOWN,
    Code,
    Numbers,
    assemble,
    load_argument,
    on_call,
    prologue,
)

_ALLOWED: dict[str, Numbers] = {
    # open files, and opening files to read (landlock and the mounts decide which)
    "read": (0, 63), "write": (1, 64), "readv": (19, 65), "writev": (20, 66), "pread64": (17, 67),
    "pwrite64": (18, 68), "close": (3, 57), "close_range": (436, 436), "lseek": (8, 62), "fstat": (5, 80),
    "newfstatat": (262, 79), "stat": (4, None), "lstat": (6, None), "statx": (332, 291), "access": (21, None),
    "faccessat": (269, 48), "faccessat2": (439, 439), "readlink": (89, None), "readlinkat": (267, 78),
    "getdents64": (217, 61), "getcwd": (79, 17), "umask": (95, 166),
    "dup": (32, 23), "dup2": (33, None), "dup3": (292, 24), "pipe": (22, None), "pipe2": (293, 59),
    "poll": (7, None), "ppoll": (271, 73), "select": (23, None), "pselect6": (270, 72), "eventfd2": (290, 19),
    "epoll_create1": (291, 20), "epoll_ctl": (233, 21), "epoll_wait": (232, None), "epoll_pwait": (281, 22),
    # a socket pair within the process, which asyncio needs
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
    # identity and system information
    "getpid": (39, 172), "gettid": (186, 178), "getppid": (110, 173), "getuid": (102, 174), "geteuid": (107, 175),
    "getgid": (104, 176), "getegid": (108, 177), "getresuid": (118, 148), "getresgid": (120, 150),
    "getgroups": (115, 158), "getpgrp": (111, None), "getpgid": (121, 155), "getsid": (124, 156),
    "uname": (63, 160), "sysinfo": (99, 179), "getrusage": (98, 165), "getrlimit": (97, 163), "setrlimit": (160, 164),
}  # fmt: skip
_CONDITIONAL: dict[str, Numbers] = {
    "clone": (56, 220), "clone3": (435, 435), "kill": (62, 129), "tgkill": (234, 131), "prlimit64": (302, 261),
    "open": (2, None), "openat": (257, 56), "fcntl": (72, 25), "ioctl": (16, 29), "socketpair": (53, 199),
    "sendto": (44, 206),
}  # fmt: skip

_TO_WRITE = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_FCNTL = (0, 1, 2, 3, 4, 1030, 1032)  # duplicate, flags, pipe size; F_SETOWN with F_SETSIG could signal other processes
_IOCTL = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)  # TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX
_AF_UNIX, _SOCK_STREAM, _SOCK_TYPE_MASK = 1, 1, 0xF


def program(pid: int) -> bytes:
    """The allowlist as the filter of the process `pid`."""
    own = [step for name, rule in _OWN_RULES.items() for step in on_call(_CONDITIONAL[name], rule(pid))]
    return _common_rules() + assemble([*own, REFUSE])


@cache
def _common_rules() -> bytes:
    """The beginning of the filter of every process. It takes longer to assemble than to install."""
    code = prologue()
    for numbers in _ALLOWED.values():
        code += on_call(numbers, [ALLOW])
    for name, rule in _RULES.items():
        code += on_call(_CONDITIONAL[name], rule)
    return assemble(code)


def thread_filter() -> bytes:
    """The filter that notifies its listener of every new thread and allows all other calls."""
    ask = on_call(_CONDITIONAL["clone"], [load_argument(0), (JUMP_SET, 0, 1, CLONE_THREAD), NOTIFY])
    return assemble([LOAD_CALL, *ask, ALLOW])


def _one_of(index: int, values: Sequence[int]) -> Code:
    tests = [(JUMP_EQUAL, len(values) - i, 0, value) for i, value in enumerate(values)]
    return [load_argument(index), *tests, REFUSE, ALLOW]


def _signal_to_self(pid: int, *, signal_index: int) -> Code:
    """Allows all signals to the process itself except SIGKILL: a death by SIGKILL then means that the process was
    killed from outside, for example for lack of memory."""
    return [
        load_argument(signal_index),
        (JUMP_EQUAL, 2, 0, signal.SIGKILL),
        load_argument(0),
        (JUMP_EQUAL, 1, 0, pid),
        REFUSE,
        ALLOW,
    ]


def _bits(index: int, mask: int, *, required: bool) -> Code:
    """Allows the call if a bit of the mask is set (required), or if none is (not required)."""
    if_set, if_not = (0, 1) if required else (1, 0)
    return [load_argument(index), (JUMP_SET, if_set, if_not, mask), ALLOW, REFUSE]


def _connected_pair() -> Code:
    """Allows socketpair for local streams only: a datagram socket could send to an address outside."""
    return [
        load_argument(0),
        (JUMP_EQUAL, 0, 4, _AF_UNIX),
        load_argument(1),
        (AND, 0, 0, _SOCK_TYPE_MASK),
        (JUMP_EQUAL, 0, 1, _SOCK_STREAM),
        ALLOW,
        REFUSE,
    ]


def _without_address() -> Code:
    """Allows sendto with a null address only, as used by send(): both halves of the pointer are zero."""
    low, high = 16 + 8 * 4, 20 + 8 * 4
    return [
        (LOAD, 0, 0, low),
        (JUMP_EQUAL, 0, 3, 0),
        (LOAD, 0, 0, high),
        (JUMP_EQUAL, 0, 1, 0),
        ALLOW,
        REFUSE,
    ]


_RULES: dict[str, Code] = {
    "clone": _bits(0, CLONE_THREAD, required=True),
    "clone3": [UNKNOWN],  # its flags are behind a pointer; libc then falls back to clone
    "open": _bits(1, _TO_WRITE, required=False),
    "openat": _bits(2, _TO_WRITE, required=False),
    "fcntl": _one_of(1, _FCNTL),
    "ioctl": _one_of(1, _IOCTL),
    "socketpair": _connected_pair(),
    "sendto": _without_address(),
}
_OWN_RULES: dict[str, Callable[[int], Code]] = {
    "kill": lambda pid: _signal_to_self(pid, signal_index=1),
    "tgkill": lambda pid: _signal_to_self(pid, signal_index=2),
    "prlimit64": lambda pid: _one_of(0, [0, pid]),
}
