"""How long a model thinks before it answers: the values of budget forcing (s1, arXiv 2501.19393, section 3.1). Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass

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

    def maximum(self, seed: int) -> int:
        """The maximum of the completion with this seed of BUDGET_DRAW."""
        return self.least + seed % (self.most - self.least + 1)


def parse_range(text: str) -> tuple[int, int]:
    """ "64" -> (64, 64), "64:256" -> (64, 256). Raises UserError for other texts."""
    low, colon, high = text.partition(":")
    bounds = (low, high) if colon else (low, low)
    if not all(bound.isascii() and bound.isdigit() for bound in bounds) or int(bounds[0]) > int(bounds[1]):
        raise UserError(f"{text!r} is no budget: it must be a number of tokens, or LOW:HIGH with LOW at most HIGH")
    return int(bounds[0]), int(bounds[1])
