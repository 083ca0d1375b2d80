"""Environments for tests, as they are written for TRL's `environment_factory`, and some that are none."""

from __future__ import annotations

from typing import Any


class Wordle:
    """A guessing game whose word stands in the row."""

    def __init__(self) -> None:
        self.word, self.guesses, self.reward = "", 0, 0.0

    def reset(self, **kwargs: Any) -> str | None:
        self.word, self.guesses, self.reward = kwargs["word"], 0, 0.0
        return f" It has {len(self.word)} letters."

    def guess(self, guess: str) -> str:
        """
        Make a guess.

        Args:
            guess: The guessed word.

        Returns:
            The feedback.
        """
        if len(guess) != len(self.word):
            raise ValueError(f"a guess must have {len(self.word)} letters")
        self.guesses += 1
        self.reward = float(guess == self.word)
        return "".join("G" if a == b else "X" for a, b in zip(guess, self.word, strict=True))

    @property
    def broken(self) -> str:
        raise RuntimeError("a property is no tool")

    def _hidden(self) -> str:
        return self.word

    def get_reward(self) -> float:
        return self.reward


class Slow:
    """Each method is async; it has no reward."""

    async def reset(self, size: int) -> None:
        self.size = size

    async def more(self, by: int) -> int:
        """Adds.

        Args:
            by: How much.
        """
        self.size += by
        return self.size


class NoReset:
    def guess(self, guess: str) -> str:
        """Guesses.

        Args:
            guess: The word.
        """
        return guess


class Undescribed(Wordle):
    def give_up(self) -> str:
        return self.word


class NeedsKey(Wordle):
    def __init__(self) -> None:
        raise KeyError("API_KEY")


class Rewards(Wordle):
    """What get_reward returns stands in the row."""

    def reset(self, **kwargs: Any) -> Any:
        self.returned = kwargs["returned"]
        return kwargs.get("observation")

    def get_reward(self) -> Any:
        if isinstance(self.returned, str):
            raise RuntimeError(self.returned)
        return self.returned
