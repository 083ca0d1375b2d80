"""The built-in task whose answer a program computes: "57: double, plus 12, square" has the solution `print((57*2+12)**2)`."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from rollout.records import SOLUTION, Problem

NUM_OPERATIONS, SMALLEST, LARGEST = 3, 11, 99


@dataclass(frozen=True)
class Operation:
    """A step from number to number: in words, as Python source with {} for its operand, and as a function.

    binds: how tightly the source binds; an operand that binds less tightly needs brackets.
    """

    words: str
    source: str
    apply: Callable[[int], int]
    binds: int


SUM, PRODUCT, POWER = 0, 1, 2
OPERATIONS = (
    Operation("double", "{}*2", lambda n: n * 2, PRODUCT),
    Operation("square", "{}**2", lambda n: n**2, POWER),
    Operation("cube", "{}**3", lambda n: n**3, POWER),
    *(Operation(f"times {k}", f"{{}}*{k}", lambda n, k=k: n * k, PRODUCT) for k in range(3, 10)),
    *(Operation(f"plus {k}", f"{{}}+{k}", lambda n, k=k: n + k, SUM) for k in range(1, 10)),
    *(Operation(f"minus {k}", f"{{}}-{k}", lambda n, k=k: n - k, SUM) for k in range(1, 10)),
)


def number_programs(count: int, *, seed: int) -> list[Problem]:
    """`count` different problems in random order; a longer list begins with the shorter one."""
    rng = random.Random(seed)
    problems: dict[str, Problem] = {}
    while len(problems) < count:
        problem = _problem(rng.randint(SMALLEST, LARGEST), rng.sample(OPERATIONS, NUM_OPERATIONS))
        problems.setdefault(problem.id, problem)
    return list(problems.values())


def _problem(number: int, operations: list[Operation]) -> Problem:
    source, binds, result = str(number), POWER + 1, number
    for operation in operations:
        # A power as the base of a power needs brackets too: ** binds to the right.
        is_loose = binds < operation.binds or binds == operation.binds == POWER
        source = operation.source.format(f"({source})" if is_loose else source)
        binds, result = operation.binds, operation.apply(result)
    question = f"{number}: {', '.join(operation.words for operation in operations)}"
    return Problem(
        id=question,
        prompt=question,
        reference=str(result),
        verifier="program-answer",
        metadata={SOLUTION: f"print({source})"},
    )
