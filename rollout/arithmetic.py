"""The built-in task "a+b-c", to be solved in steps: its problems with their solutions."""

from __future__ import annotations

import random

from rollout.records import SOLUTION, Problem

LOWEST, HIGHEST = 10, 39


def arithmetic_problems(count: int, *, seed: int) -> list[Problem]:
    """`count` different problems in random order; a longer list begins with the shorter one."""
    rng = random.Random(seed)
    span = HIGHEST - LOWEST + 1
    numbers = rng.sample(range(span**3), count)
    return [_problem(LOWEST + n % span, LOWEST + n // span % span, LOWEST + n // span**2) for n in numbers]


def _problem(a: int, b: int, c: int) -> Problem:
    return Problem(
        id=f"{a}+{b}-{c}",
        prompt=({"role": "user", "content": f"{a}+{b}-{c}"},),
        reference=str(a + b - c),
        metadata={SOLUTION: f"{a}+{b}={a + b}\n{a + b}-{c}={a + b - c}\n\\boxed{{{a + b - c}}}"},
    )
