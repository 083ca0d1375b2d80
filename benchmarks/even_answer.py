"""A rule that a tiny reward model can learn in a minute: the answer is even (benchmarks/reward_model.py)."""

from __future__ import annotations


def even(answer: str) -> bool:
    """Whether the text ends with an even digit."""
    return answer.strip()[-1:] in tuple("02468")
