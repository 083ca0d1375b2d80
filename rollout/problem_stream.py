"""Where a run's training problems come from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rollout.records import Problem


@dataclass(frozen=True, kw_only=True)
class Source:
    """A data set's training problems, and the weight with which they are drawn beside those of other data sets."""

    name: str
    problems: Sequence[Problem]
    weight: float
