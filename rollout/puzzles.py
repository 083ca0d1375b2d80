"""Generators of the built-in puzzles, which rewards.puzzle_answer grades, and the problems of reasoning-gym."""

from __future__ import annotations

import operator
import random
from collections.abc import Callable, Iterable, Mapping
from fractions import Fraction
from typing import Any

from rewards.puzzles.base_conversion import written
from rewards.puzzles.sudoku4 import GRIDS
from rewards.reasoning_gym_tasks import make_entries, require_task
from rollout.records import Problem

MAX_DRAWS = 1_000  # for one new problem; after so many the ranges are considered exhausted
OPERATORS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}

Range = tuple[int, int]  # both ends inclusive


def puzzle_problems(make: Callable[[random.Random], Problem], count: int, *, seed: int) -> list[Problem]:
    """`count` different problems that `make` draws; a longer list begins with the shorter one."""
    rng = random.Random(seed)
    problems: dict[str, Problem] = {}
    while len(problems) < count:
        draws = (make(rng) for _ in range(MAX_DRAWS))
        new = next((problem for problem in draws if problem.id not in problems), None)
        if new is None:
            raise ValueError(f"count={count}: the ranges hold about {len(problems)} different problems; widen them")
        problems[new.id] = new
    return list(problems.values())


def reasoning_gym_problems(task: str, count: int, *, seed: int) -> list[Problem]:
    """The distinct problems among `count` entries of a reasoning-gym task. Raises UserError if the task is unavailable."""
    require_task(task)
    problems: dict[str, Problem] = {}
    for number, entry in enumerate(make_entries(task, count, seed=seed)):
        question = f"{entry['question']}\n\nPut the final answer between <answer> and </answer>."
        problem = Problem(
            id=f"{task}/{number}",
            prompt=({"role": "user", "content": question},),
            reference={"task": task, "entry": entry},
            verifier="reasoning-gym",
        )
        problems.setdefault(question, problem)
    return list(problems.values())


def countdown(
    rng: random.Random, *, num_numbers: Range = (3, 4), numbers: Range = (1, 20), target: Range = (10, 100)
) -> Problem:
    """Find an expression of all the given numbers that has a given value."""
    given, expression, value = [], "", None
    while value is None or value.denominator > 1 or not target[0] <= value <= target[1]:
        given = [rng.randint(*numbers) for _ in range(rng.randint(*num_numbers))]
        expression, value = _random_expression(rng, given)
    return _problem(
        "countdown",
        f"{','.join(map(str, sorted(given)))}={value}",
        f"Use each of the numbers {', '.join(map(str, given))} exactly once, with +, -, *, / and brackets, to make {value}. "
        "Put the expression within \\boxed{}.",
        {"numbers": given, "target": int(value), "solution": expression},
    )


def linear_equations(rng: random.Random, *, num_unknowns: Range = (1, 2), coefficients: Range = (-12, 12)) -> Problem:
    """Solve one equation in x, whose solution is a fraction, or two in x and y, whose solution is integers."""
    determinant, equations, unknowns, shown = 0, [], "x", ""
    while not determinant:
        a, b, c, d, x, y = (rng.randint(*coefficients) for _ in range(6))
        if rng.randint(*num_unknowns) == 1:
            determinant, equations, unknowns = a - c, [[a - c, d - b]], "x"
            shown = f"{_sum((a, 'x'), (b, ''))} = {_sum((c, 'x'), (d, ''))}"
        else:
            determinant, equations, unknowns = a * d - b * c, [[a, b, a * x + b * y], [c, d, c * x + d * y]], "xy"
            shown = " and ".join(f"{_sum((p, 'x'), (q, 'y'))} = {r}" for p, q, r in equations)
    wanted = "the exact value of x" if unknowns == "x" else "x = ..., y = ... with the exact values"
    return _problem(
        "linear-equations",
        shown,
        f"Solve {shown}. Put {wanted} within \\boxed{{}}.",
        {"unknowns": [*unknowns], "equations": equations},
    )


def sudoku4(rng: random.Random, *, num_givens: Range = (5, 9)) -> Problem:
    """Fill in a 4x4 sudoku with one solution. It has more than num_givens givens where fewer would allow several solutions."""
    grid, enough = rng.choice(GRIDS), rng.randint(*num_givens)
    candidates, givens = GRIDS, ["."] * 16
    for number, cell in enumerate(rng.sample(range(16), 16)):
        if number >= enough and len(candidates) == 1:
            break
        givens[cell] = grid[cell]
        candidates = [other for other in candidates if other[cell] == grid[cell]]
    rows = ["".join(givens[start : start + 4]) for start in range(0, 16, 4)]
    lines = "\n".join(rows)
    return _problem(
        "sudoku4",
        "/".join(rows),
        "Fill in the dots, so that every row, every column and every 2x2 box holds each of 1, 2, 3 and 4 once:\n"
        f"{lines}\nPut the four rows within \\boxed{{}}.",
        {"givens": rows},
    )


def base_conversion(rng: random.Random, *, bases: Range = (2, 16), value: Range = (10, 4095)) -> Problem:
    """Convert a number from one base to another."""
    from_base, to_base = rng.sample(range(bases[0], bases[1] + 1), 2)
    number = written(rng.randint(*value), from_base)
    return _problem(
        "base-conversion",
        f"{number}_{from_base}={to_base}",
        f"Write the number {number}, which is in base {from_base}, in base {to_base}. The digits after 9 are a, b, c and so on. "
        "Put the digits within \\boxed{}.",
        {"number": number, "from_base": from_base, "to_base": to_base},
    )


def sorting(rng: random.Random, *, num_numbers: Range = (4, 10), numbers: Range = (-99, 99)) -> Problem:
    """Sort different integers in ascending or descending order."""
    given = rng.sample(range(numbers[0], numbers[1] + 1), rng.randint(*num_numbers))
    order = rng.choice(("ascending", "descending"))
    listed = ", ".join(map(str, given))
    return _problem(
        "sorting",
        f"{order}/{listed}",
        f"Sort these numbers in {order} order: {listed}. Put them within \\boxed{{}}, with commas between them.",
        {"numbers": given, "order": order},
    )


PUZZLE_MAKERS: Mapping[str, Callable[[random.Random], Problem]] = {
    "base-conversion": base_conversion,
    "countdown": countdown,
    "linear-equations": linear_equations,
    "sorting": sorting,
    "sudoku4": sudoku4,
}


def _problem(puzzle: str, instance: str, question: str, fields: Mapping[str, Any]) -> Problem:
    return Problem(
        id=f"{puzzle}/{instance}",
        prompt=({"role": "user", "content": question},),
        reference={"puzzle": puzzle, **fields},
        verifier="puzzle",
    )


def _random_expression(rng: random.Random, numbers: Iterable[int]) -> tuple[str, Fraction | None]:
    """An expression of all the numbers in random order, and its value: None if it divides by zero."""
    parts = [(str(number), Fraction(number)) for number in numbers]
    while len(parts) > 1:
        (left, a), (right, b) = (parts.pop(rng.randrange(len(parts))) for _ in range(2))
        sign = rng.choice([*OPERATORS])
        if sign == "/" and not b:
            return "", None
        parts.append((f"({left} {sign} {right})", OPERATORS[sign](a, b)))
    ((expression, value),) = parts
    return expression.removeprefix("(").removesuffix(")"), value


def _sum(*terms: tuple[int, str]) -> str:
    """Writes terms as a sum: "3x - y" from (3, "x"), (-1, "y")."""
    written_terms = [
        f"{'-' if factor < 0 else '+'} {abs(factor) if abs(factor) != 1 or not unknown else ''}{unknown}"
        for factor, unknown in terms
        if factor
    ]
    text = " ".join(written_terms).removeprefix("+ ")
    return text.replace("- ", "-", 1) if text.startswith("- ") else text or "0"
