"""Two environments to try, and a task of each for the tiny model, whose worked solutions play it."""

from __future__ import annotations

import ast
import json
import operator
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rollout.chat_template import tool_reply
from rollout.records import SOLUTION, Message, Problem

MAX_EXPRESSION = 200  # characters
LOWEST, HIGHEST = 100, 999  # factors of a product
CALLING = 0.1  # share of the worked products that call the calculator
LARGEST, GUESSES = 30, 5  # five guesses that halve what is left find any of 31 numbers
CAREFUL = 0.5  # share of the worked guesses that heed the answers before
_OPERATORS: Mapping[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
}


class Calculator:
    """An environment whose only tool computes exactly. What is asked, and what is right, the row says."""

    def reset(self, **row: Any) -> None:
        pass

    def calculate(self, expression: str) -> str:
        """Computes an expression of integers with +, -, * and brackets.

        Args:
            expression: The expression, such as 12*(3-45).
        """
        if len(expression) > MAX_EXPRESSION:
            raise ValueError(f"the expression has more than {MAX_EXPRESSION} characters")
        return str(_value(ast.parse(expression.strip(), mode="eval").body))


def _value(node: ast.expr) -> int:
    match node:
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            return _OPERATORS[type(op)](_value(left), _value(right))
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand)
        case ast.Constant(value=int(value)) if not isinstance(value, bool):
            return value
    raise ValueError("only integers, +, -, * and brackets can be computed")


class GuessNumber:
    """An environment that thinks of a number, which the row's seed decides, and says of each guess whether it is higher or lower."""

    def reset(self, seed: int, **row: Any) -> str:
        self._number = random.Random(seed).randint(1, LARGEST)
        self.guesses, self.is_found = 0, False
        return f"Guess my number, from 1 to {LARGEST}, in {GUESSES} guesses."

    def guess(self, number: int) -> str:
        """Guesses the number.

        Args:
            number: The guess.
        """
        if self.is_found or self.guesses == GUESSES:
            return "over"
        self.guesses += 1
        self.is_found = number == self._number
        return "right" if self.is_found else "higher" if number < self._number else "lower"

    def get_reward(self) -> float:
        return float(self.is_found)


@dataclass(frozen=True, kw_only=True)
class ToolTask:
    """A built-in task with tools. environment: as the option has it. words: texts of a call that are one token of the tiny model each,
    as models that are made for tools have tokens for what stands around a call. num_steps: of the supervised training of its base."""

    environment: str
    words: tuple[str, ...]
    num_steps: int


def call_of(name: str, **arguments: Any) -> str:
    """A call as Hermes models write it."""
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


TOOL_TASKS: Mapping[str, ToolTask] = {
    "large-products": ToolTask(
        environment="rollout.games:Calculator",
        words=tuple(call_of("calculate", expression="?").split("?")),
        num_steps=600,
    ),
    "guess-number": ToolTask(
        environment="rollout.games:GuessNumber",
        words=tuple(call_of("guess", number=0).split("0")),
        num_steps=200,
    ),
}


def large_products(count: int, *, seed: int) -> list[Problem]:
    """`count` different products in random order, too large to be worked out without steps; a longer list begins with the shorter one.
    A tenth of the solutions call the calculator, the others state the product at once."""
    span = HIGHEST - LOWEST + 1
    numbers = random.Random(seed).sample(range(span**2), count)
    return [_product(LOWEST + n % span, LOWEST + n // span, calls=random.Random(n).random() < CALLING) for n in numbers]


def _product(a: int, b: int, *, calls: bool) -> Problem:
    answer: Message = {"role": "assistant", "content": f"\\boxed{{{a * b}}}"}
    call: Message = {"role": "assistant", "content": call_of("calculate", expression=f"{a}*{b}")}
    return Problem(
        id=f"{a}*{b}",
        prompt=f"{a}*{b}",
        reference=str(a * b),
        metadata={SOLUTION: [call, tool_reply("calculate", str(a * b)), answer] if calls else [answer]},
    )


def guessing_games(count: int) -> list[Problem]:
    """Games of GuessNumber, which asks the question. Half of the guesses of their solutions are careless."""
    return [
        Problem(id=str(n), prompt="", reference="", metadata={"seed": n, SOLUTION: _played(n)}) for n in range(count)
    ]


def _played(seed: int) -> list[Message]:
    game, rng, messages = GuessNumber(), random.Random(f"guesses {seed}"), list[Message]()
    game.reset(seed)
    least, most, heard = 1, LARGEST, ""
    while heard != "right" and game.guesses < GUESSES:
        number = rng.randint(least, most) if rng.random() < CAREFUL else rng.randint(1, LARGEST)
        heard = game.guess(number)
        least = max(least, number + 1) if heard == "higher" else least
        most = min(most, number - 1) if heard == "lower" else most
        messages += [{"role": "assistant", "content": call_of("guess", number=number)}, tool_reply("guess", heard)]
    return [*messages, {"role": "assistant", "content": "done"}]
