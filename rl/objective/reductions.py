"""How per-token terms become one number.

A reduction gives every token of a sequence of length |o| its weight; the loss of a step is the weighted sum over all
tokens of all its micro-batches and ranks. Weights depend on the counts of the whole step and on nothing smaller, so the
gradient does not depend on how a step is cut. The counts are of what is summed: a completion masked out leaves both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class StepCounts:
    """Counts over all micro-batches and ranks of a step; groups that are skipped because they carry no gradient count too."""

    num_tokens: int
    num_sequences: int
    max_tokens: int  # the sampling limit: the constant length of Dr. GRPO


Reduction = Callable[[int, StepCounts], float]


def token_mean(length: int, counts: StepCounts) -> float:
    """1 / (all tokens of the step): every token weighs the same. DAPO, arXiv 2503.14476, equation 8."""
    return 1 / counts.num_tokens


def mean_of_token_means(length: int, counts: StepCounts) -> float:
    """1 / (N |o|): the mean over sequences of the mean over tokens. GRPO, arXiv 2402.03300, equation 3."""
    return 1 / (counts.num_sequences * length)


def constant_length(length: int, counts: StepCounts) -> float:
    """1 / (N L), L the sampling limit: length does not change a token's weight. Dr. GRPO, arXiv 2503.20783, section 3.2."""
    return 1 / (counts.num_sequences * counts.max_tokens)


def sequence_sum(length: int, counts: StepCounts) -> float:
    """1 / N: the mean over sequences of the sum over tokens, i.e. of the sequence's log-prob. RLOO, arXiv 2402.14740."""
    return 1 / counts.num_sequences
