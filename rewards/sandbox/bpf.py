"""Building blocks of classic BPF programs for seccomp(2)."""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterable

from rewards.sandbox.kernel import MACHINE

MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column of Numbers, AUDIT_ARCH_*
SUPPORTED = MACHINE in MACHINES

LOAD, AND, _RETURN = 0x20, 0x54, 0x06
JUMP_EQUAL, JUMP_SET, _JUMP_AT_LEAST = 0x15, 0x45, 0x35

Instruction = tuple[int, int, int, int]  # opcode, jump if true, jump if false, operand
Code = list[Instruction]
Numbers = tuple[int | None, int | None]
"""Numbers of a system call on (x86_64, aarch64), from the kernel's unistd headers; None if there is no such call."""

ALLOW: Instruction = (_RETURN, 0, 0, 0x7FFF0000)
NOTIFY: Instruction = (_RETURN, 0, 0, 0x7FC00000)
REFUSE: Instruction = (_RETURN, 0, 0, 0x00050000 | errno.EPERM)
UNKNOWN: Instruction = (_RETURN, 0, 0, 0x00050000 | errno.ENOSYS)  # as if the kernel did not implement the call
_KILL: Instruction = (_RETURN, 0, 0, 0x80000000)

LOAD_CALL: Instruction = (LOAD, 0, 0, 0)
_LOAD_MACHINE: Instruction = (LOAD, 0, 0, 4)
_X32_BIT = 0x40000000
CLONE_THREAD = 0x00010000  # the flag of clone that creates a thread instead of a process


def load_argument(index: int) -> Instruction:
    """Loads the low 32 bits of an argument; the kernel, too, ignores the high half of an int."""
    return (LOAD, 0, 0, 16 + 8 * index)


def prologue() -> Code:
    """Checks the machine architecture, then loads the number of the system call."""
    code = [_LOAD_MACHINE, (JUMP_EQUAL, 1, 0, MACHINES[MACHINE][1]), _KILL, LOAD_CALL]
    if MACHINE == "x86_64":  # the x32 ABI has separate numbers for the same calls
        code += [(_JUMP_AT_LEAST, 0, 1, _X32_BIT), REFUSE]
    return code


def on_call(numbers: Numbers, rule: Code) -> Code:
    """`rule` applied to this system call; no code if the machine has no such call. Control passes on to the next
    instruction where the rule does not decide."""
    number = numbers[MACHINES[MACHINE][0]]
    return [] if number is None else [(JUMP_EQUAL, 0, len(rule), number), *rule]


def assemble(code: Iterable[Instruction]) -> bytes:
    """The instructions as an array of struct sock_filter."""
    return b"".join(struct.pack("HBBI", *instruction) for instruction in code)
