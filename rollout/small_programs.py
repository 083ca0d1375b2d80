"""The built-in task of programs: "reverse, drop first 2, append x" is to become `def f(s): return s[::-1][2:]+"x"`."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rollout.records import Problem

LETTERS = "abcdeABCDE"
NUM_OPERATIONS = 3
POOL = 12  # inputs that the tests of a problem are chosen from
MIN_TESTS, MAX_TESTS = 4, 6


@dataclass(frozen=True)
class Operation:
    """A step from a text to a text: in words, in Python (its operand is {}), and itself.

    loose: written with + or *, so whatever is applied to it needs parentheses around it.
    """

    words: str
    source: str
    apply: Callable[[str], str]
    loose: bool = False


def _operations() -> list[Operation]:
    operations = [
        Operation("reverse", "{}[::-1]", lambda s: s[::-1]),
        Operation("upper", "{}.upper()", str.upper),
        Operation("lower", "{}.lower()", str.lower),
        Operation("double", "{}*2", lambda s: s * 2, loose=True),
        Operation("triple", "{}*3", lambda s: s * 3, loose=True),
        Operation("every 2nd", "{}[::2]", lambda s: s[::2]),
        Operation("every 3rd", "{}[::3]", lambda s: s[::3]),
    ]
    for k in (1, 2, 3, 4):
        operations += [
            Operation(f"drop first {k}", f"{{}}[{k}:]", lambda s, k=k: s[k:]),
            Operation(f"drop last {k}", f"{{}}[:-{k}]", lambda s, k=k: s[:-k]),
        ]
    for k in (3, 4, 5, 6):
        operations += [
            Operation(f"first {k}", f"{{}}[:{k}]", lambda s, k=k: s[:k]),
            Operation(f"last {k}", f"{{}}[-{k}:]", lambda s, k=k: s[-k:]),
        ]
    for c in "abcde":
        operations += [
            Operation(f"append {c}", f'{{}}+"{c}"', lambda s, c=c: s + c, loose=True),
            Operation(f"prepend {c}", f'"{c}"+{{}}', lambda s, c=c: c + s, loose=True),
        ]
    return operations


OPERATIONS = _operations()


def program(operations: Sequence[Operation]) -> str:
    expression, is_loose = "s", False
    for operation in operations:
        expression = operation.source.format(f"({expression})" if is_loose else expression)
        is_loose = operation.loose
    return f"def f(s): return {expression}"


def outputs(operations: Sequence[Operation], inputs: Sequence[str]) -> tuple[str, ...]:
    for operation in operations:
        inputs = [operation.apply(text) for text in inputs]
    return tuple(inputs)


def small_programs(count: int, *, seed: int) -> list[Problem]:
    """`count` different problems in random order; a longer list begins with the shorter one."""
    rng = random.Random(seed)
    problems: dict[str, Problem] = {}
    while len(problems) < count:
        problem = _problem(rng.sample(OPERATIONS, NUM_OPERATIONS), rng)
        if problem is not None:
            problems.setdefault(problem.id, problem)
    return list(problems.values())


def _problem(operations: list[Operation], rng: random.Random) -> Problem | None:
    inputs = ["".join(rng.choices(LETTERS, k=rng.randint(7, 10))) for _ in range(POOL)]
    expected = outputs(operations, inputs)
    others = [outputs(near, inputs) for near in near_misses(operations)]
    if expected in others[:NUM_OPERATIONS]:
        return None  # an operation does nothing here
    missed = [other for other in others if other != expected]
    tests: list[int] = []
    while missed or len(tests) < MIN_TESTS:
        left = [i for i in range(POOL) if i not in tests]
        tests.append(max(left, key=lambda i: sum(other[i] != expected[i] for other in missed)))
        missed = [other for other in missed if other[tests[-1]] == expected[tests[-1]]]
    if len(tests) > MAX_TESTS:
        return None
    words = ", ".join(operation.words for operation in operations)
    return Problem(
        id=words,
        prompt=({"role": "user", "content": words},),
        reference={
            "type": "function",
            "fn_name": "f",
            "tests": [{"args": [inputs[i]], "expected": expected[i]} for i in tests],
        },
        verifier="program",
        metadata={"worked": program(operations)},
    )


def near_misses(operations: Sequence[Operation]) -> list[list[Operation]]:
    """Programs that are nearly right: one operation left out, two in the wrong order, a number or letter that is another."""
    left_out = [[*operations[:i], *operations[i + 1 :]] for i in range(len(operations))]
    swapped = [
        [*operations[:i], operations[i + 1], operations[i], *operations[i + 2 :]] for i in range(len(operations) - 1)
    ]
    return left_out + swapped
