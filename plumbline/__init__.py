"""Plumbline from Python: `plumbline.train(model=..., dataset=..., reward=...)` trains and returns a `Run`.

A thin front of the packages rl, rollout and rewards. Importing it does not import torch, so that a file with a reward
function can import it in a worker process.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rewards.errors import UserError
from rewards.functions.declaration import reward
from rewards.score import Outcome, Score

if TYPE_CHECKING:
    from plumbline.finished_run import Run
    from plumbline.training import train

__all__ = ["Outcome", "Run", "Score", "UserError", "reward", "train"]
_LOADED_LATER = {"train": "plumbline.training", "Run": "plumbline.finished_run"}


def __getattr__(name: str) -> Any:
    if name not in _LOADED_LATER:
        raise AttributeError(f"module 'plumbline' has no attribute {name!r}; it has {', '.join(__all__)}")
    from importlib import import_module

    from rl.cli import limit_spinning

    limit_spinning()
    return getattr(import_module(_LOADED_LATER[name]), name)
