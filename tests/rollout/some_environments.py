"""Environments for tests, as they are written for TRL's `environment_factory`, and some that are none."""

from __future__ import annotations

import asyncio
import os
import threading
import time
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


def guess(guess: str) -> str:
    """A tool of the name that a method has.

    Args:
        guess: The word.
    """
    return guess


class Slow:
    """Each method is async; it has no reward. Connections are bound to a loop, others to a thread."""

    def __init__(self) -> None:
        self._thread = threading.current_thread()

    async def reset(self, size: int) -> None:
        self.size, self._loop = size, asyncio.get_running_loop()

    async def more(self, by: int) -> int:
        """Adds.

        Args:
            by: How much.
        """
        self.size += by
        self.same_loop = asyncio.get_running_loop() is self._loop
        self.same_thread = threading.current_thread() is self._thread
        return self.size


class TakesAnything:
    """Its parameters are no names of arguments, or those that reward functions have another meaning for."""

    def reset(self, *args: Any, **kwargs: Any) -> str:
        return f" {len(args)} {sorted(kwargs)}"


class NamesColumns:
    def reset(self, answer: str, answers: list[str], *args: Any, completions: int = 0) -> str:
        return f" {answer} {answers} {len(args)} {completions}"


class Deals:
    """Each episode begins otherwise, in the order in which they begin."""

    count = 0

    def reset(self, **row: Any) -> str:
        Deals.count = Deals.count % 3 + 1
        return f" Your card is {Deals.count}."

    def fold(self) -> str:
        """Folds."""
        return ""

    def get_reward(self) -> float:
        return 0.0


class Hangs:
    """For longer than a test waits, in the method that the row names."""

    def reset(self, where: str) -> None:
        self.where = where
        self._wait("reset")

    def wait(self) -> str:
        """Waits."""
        self._wait("wait")
        return "waited"

    def get_reward(self) -> float:
        return 0.0

    def _wait(self, where: str) -> None:
        if self.where == where:
            time.sleep(2)


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


class Stops(BaseException):
    """Of the user, and no Exception."""


OTHER_ERRORS = {
    error.__name__: error for error in (KeyboardInterrupt, GeneratorExit, asyncio.CancelledError, TimeoutError, Stops)
}


class Raises:
    """The error that the row names, in the method that it names."""

    def reset(self, where: str, error: str) -> str:
        self._where, self._error = where, OTHER_ERRORS[error]
        return self._raise_in("reset")

    def act(self) -> str:
        """Acts."""
        return self._raise_in("act")

    async def wait(self) -> str:
        """Waits."""
        await asyncio.sleep(0)
        return self._raise_in("wait")

    def show(self) -> Raises:
        """Shows itself."""
        return self

    def get_reward(self) -> float:
        self._raise_in("get_reward")
        return 1.0

    def __str__(self) -> str:
        return self._raise_in("show")

    def _raise_in(self, where: str) -> str:
        if self._where == where:
            raise self._error("mine")
        return "done"


class RaisesAtOnce(Wordle):
    def __init__(self) -> None:
        raise KeyboardInterrupt


def logged(method: Any) -> Any:
    """A decorator that forgets the name of what it decorates."""

    def wrapper(self, text: str) -> str:  # pyright: ignore[reportMissingParameterType]
        """Repeats a text.

        Args:
            text: The text.
        """
        return method(self, text)

    return wrapper


class Decorated:
    """Its methods as TRL finds them: functions of the class, static ones too, and neither class methods nor attributes."""

    last = 0

    def __init__(self) -> None:
        self.attribute = lambda: "no tool"

    def reset(self, **row: Any) -> None:
        pass

    @logged
    def shout(self, text: str) -> str:
        return text.upper()

    @logged
    def whisper(self, text: str) -> str:
        return text.lower()

    @staticmethod
    def double(text: str) -> str:
        """Writes a text twice.

        Args:
            text: The text.
        """
        return 2 * text

    @classmethod
    def get_reward(cls) -> float:
        return 1.0


class HalfCharacters(Wordle):
    """Text in it has halves of surrogate pairs."""

    def reset(self, **kwargs: Any) -> str:
        return " a\ud800b"

    def guess(self, guess: str) -> str:
        """Guesses.

        Args:
            guess: The word.
        """
        raise ValueError(f"no {guess}")


class InItsOwnProcess(Wordle):
    own_process = True

    def misuse(self, how: str) -> str:
        """Harms the process.

        Args:
            how: In which way.
        """
        if how == "die":
            os._exit(3)
        if how == "hang":
            time.sleep(60)
        if how == "grow":
            self.history = "x" * 3_000_000
        if how == "print":
            print("x" * 100_000)
            os.write(1, b"y" * 100_000)
        return str(os.getpid())
