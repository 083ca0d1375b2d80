"""The built-in task of searching: "473+?=478" asks for one digit. Its worked solutions are search traces that end at a random try.

A trace tries the digits in random order and says of each sum whether it is too low (<), too high (>) or right (!). Behind a wrong one it says
"Wait" and tries another, or it gives up and answers with the wrong digit; behind the right one it ends, or says "Wait" and checks the same
digit again.
"""

from __future__ import annotations

import random

from rollout.records import SOLUTION, Problem

DIGITS, NUMBERS = range(1, 7), range(100, 990)
GIVES_UP = 0.35  # the probability behind each wrong try but the first
CHECKS_AGAIN = 0.65  # the probability behind each try of the right digit


def searches(count: int, *, seed: int) -> list[Problem]:
    """`count` different problems in random order; a longer list begins with the shorter one."""
    rng = random.Random(seed)
    asked = [(number, digit) for number in NUMBERS for digit in DIGITS]
    rng.shuffle(asked)
    return [_problem(number, digit, rng) for number, digit in asked[:count]]


def _problem(number: int, digit: int, rng: random.Random) -> Problem:
    question = f"{number}+?={number + digit}"
    return Problem(
        id=question,
        prompt=({"role": "user", "content": question},),
        reference=str(digit),
        metadata={SOLUTION: _trace(number, digit, rng)},
    )


def _trace(number: int, digit: int, rng: random.Random) -> str:
    tried = rng.sample(DIGITS, len(DIGITS))
    tried = tried[: tried.index(digit) + 1]
    given_up = next((n for n in range(2, len(tried)) if rng.random() < GIVES_UP), len(tried))
    tried = tried[:given_up]
    while tried[-1] == digit and rng.random() < CHECKS_AGAIN:
        tried.append(digit)
    lines = (f"+{x}={number + x}{'!' if x == digit else '<' if x < digit else '>'}\n" for x in tried)
    return "Wait\n".join(lines) + f"</think>\\boxed{{{tried[-1]}}}"
