"""The built-in programming task: "f(s): reverse, drop first 2, append x" has the solution `s[::-1][2:]+"x"`, and is graded by tests."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rollout.records import SOLUTION, Problem

NUM_OPERATIONS, NUM_TESTS = 3, 6
LETTERS = "abcxyzABCXYZ"
LENGTHS = range(8, 15)  # of the tests' texts: with shorter ones wrong programs pass by chance


@dataclass(frozen=True)
class Operation:
    """A step from text to text: in words, as Python source with {} for its operand, and as a function.

    loose: the source is a sum or a product, so it needs parentheses if another operation is applied to it.
    """

    words: str
    source: str
    apply: Callable[[str], str]
    loose: bool = False


OPERATIONS = (
    Operation("reverse", "{}[::-1]", lambda s: s[::-1]),
    Operation("upper", "{}.upper()", str.upper),
    Operation("lower", "{}.lower()", str.lower),
    Operation("double", "{}*2", lambda s: s * 2, loose=True),
    Operation("triple", "{}*3", lambda s: s * 3, loose=True),
    *(Operation(f"every {k}", f"{{}}[::{k}]", lambda s, k=k: s[::k]) for k in (2, 3)),
    *(Operation(f"drop first {k}", f"{{}}[{k}:]", lambda s, k=k: s[k:]) for k in (1, 2, 3, 4)),
    *(Operation(f"drop last {k}", f"{{}}[:-{k}]", lambda s, k=k: s[:-k]) for k in (1, 2, 3, 4)),
    *(Operation(f"first {k}", f"{{}}[:{k}]", lambda s, k=k: s[:k]) for k in (3, 4, 5, 6)),
    *(Operation(f"last {k}", f"{{}}[-{k}:]", lambda s, k=k: s[-k:]) for k in (3, 4, 5, 6)),
    *(Operation(f"append {c}", f'{{}}+"{c}"', lambda s, c=c: s + c, loose=True) for c in "xyz"),
    *(Operation(f"prepend {c}", f'"{c}"+{{}}', lambda s, c=c: c + s, loose=True) for c in "xyz"),
)


def small_programs(count: int, *, seed: int) -> list[Problem]:
    """`count` different problems in random order; a longer list begins with the shorter one."""
    rng = random.Random(seed)
    problems: dict[str, Problem] = {}
    while len(problems) < count:
        operations = rng.sample(OPERATIONS, NUM_OPERATIONS)
        texts = ["".join(rng.choices(LETTERS, k=rng.choice(LENGTHS))) for _ in range(NUM_TESTS)]
        if not is_degenerate(operations, texts):
            problem = _problem(operations, texts)
            problems.setdefault(problem.id, problem)
    return list(problems.values())


def run(operations: Sequence[Operation], texts: Sequence[str]) -> list[str]:
    """Applies the operations, one after the other, to each text."""
    for operation in operations:
        texts = [operation.apply(text) for text in texts]
    return list(texts)


def is_degenerate(operations: Sequence[Operation], texts: Sequence[str]) -> bool:
    """Whether a program would pass that leaves out an operation, or returns the same result for every text."""
    expected = run(operations, texts)
    shorter = (run([*operations[:i], *operations[i + 1 :]], texts) for i in range(len(operations)))
    return len(set(expected)) == 1 or expected in shorter


def _problem(operations: Sequence[Operation], texts: Sequence[str]) -> Problem:
    words = ", ".join(operation.words for operation in operations)
    tests = [{"args": [text], "expected": expected} for text, expected in zip(texts, run(operations, texts))]
    return Problem(
        id=words,
        prompt=({"role": "user", "content": f"f(s): {words}"},),
        reference={"type": "function", "fn_name": "f", "prefix": "def f(s): return ", "tests": tests},
        verifier="program",
        metadata={SOLUTION: _expression(operations)},
    )


def _expression(operations: Sequence[Operation]) -> str:
    expression, is_loose = "s", False
    for operation in operations:
        expression = operation.source.format(f"({expression})" if is_loose else expression)
        is_loose = operation.loose
    return expression
