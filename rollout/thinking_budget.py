"""How long a model thinks before it answers: the values of budget forcing (s1, arXiv 2501.19393, section 3.1). Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rewards.errors import UserError

BUDGET_DRAW = -1  # in place of a turn's number, for a seed that no turn has


@dataclass(frozen=True, kw_only=True)
class ThinkingBudget:
    """Bounds of a completion's thinking tokens, and what is written to keep to them.

    least, most: the range that each completion's maximum is drawn from, both included; equal for a fixed maximum.
    waits: how often the model is made to think on where it would end its thinking.
    end: what the model writes at the end of its thinking. wait: what makes it think on. closing: what follows `end` where the maximum
        ends the thinking.
    """

    least: int
    most: int
    waits: int = 0
    end: str = "</think>"
    wait: str = "Wait"
    closing: str = "Final Answer:"

    @property
    def ending(self) -> str:
        """The text that ends the thinking at the maximum."""
        return f"{self.end}\n\n{self.closing}" if self.closing else self.end

    @property
    def bounds(self) -> str:
        """The range as an option writes it."""
        return str(self.most) if self.least == self.most else f"{self.least}:{self.most}"

    @staticmethod
    def of(budget: str, *, waits: int | None, end: str | None, wait: str | None, closing: str | None) -> ThinkingBudget:
        """The budget that a run or a command is given as options; None is the default of the others."""
        least, most = parse_range(budget)
        given: dict[str, Any] = {"waits": waits, "end": end, "wait": wait, "closing": closing}
        return ThinkingBudget(least=least, most=most, **{name: x for name, x in given.items() if x is not None})

    def maximum(self, seed: int) -> int:
        """The maximum of the completion with this seed of BUDGET_DRAW."""
        return self.least + seed % (self.most - self.least + 1)


def parse_range(text: str) -> tuple[int, int]:
    """The bounds that a text gives: "64" has 64 and 64, "64:256" has 64 and 256. Raises UserError for other texts."""
    low, colon, high = text.partition(":")
    bounds = (low, high) if colon else (low, low)
    if not all(bound.isascii() and bound.isdigit() for bound in bounds) or int(bounds[0]) > int(bounds[1]):
        raise UserError(
            f"thinking_budget is {text!r}: it must be a number of tokens, such as 256, or LOW:HIGH with LOW at most HIGH"
        )
    return int(bounds[0]), int(bounds[1])


def parse_budgets(text: str) -> tuple[int, ...]:
    """The budgets of a text such as "0,64,128", in rising order. Raises UserError for other texts."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() for part in parts) or len({*map(int, parts)}) < max(2, len(parts)):
        raise UserError(
            f"thinking_budgets is {text!r}: it must be at least two different numbers of tokens, such as 0,64,128,256"
        )
    return tuple(sorted(map(int, parts)))
