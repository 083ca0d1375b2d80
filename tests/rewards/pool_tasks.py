"""Grading functions that misbehave, for the tests of the pool. A separate module, since worker processes import it."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from rewards.score import Outcome


def load(counter: str = ""):
    return lambda *item: _grade(counter, *item)


def load_nothing():
    raise ImportError("the library is not installed")


def load_and_die():
    os._exit(7)


def _grade(counter: str, text: str):
    if counter:
        with Path(counter).open("a") as file:
            file.write(text + "\n")
    if text == "sleep":
        time.sleep(60)
    if text.startswith("slow"):
        time.sleep(0.02)
    if text == "die":
        os._exit(3)
    if text == "die once" and counter and Path(counter).read_text().split("\n").count("die once") == 1:
        os._exit(3)
    if text == "memory":
        return Outcome.CORRECT, str(len(bytearray(1 << 33)))
    if text == "deep":
        return _grade_deeply(text)
    if text == "bug":
        raise ZeroDivisionError("in our own code")
    if text == "noise":
        print("a library prints", flush=True)
        os.write(1, b"and writes to the descriptor\n")
        sys.stdin.read()
    return Outcome.CORRECT, f"{os.getpid()} " + text[:20]


def _grade_deeply(text: str):
    return _grade_deeply(text)
