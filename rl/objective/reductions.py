"""Reductions: the weight of each token in the loss of a step.

A reduction gives every token of a sequence of length |o| its weight; the loss of a step is the weighted sum over all tokens of all
its micro-batches and ranks. A weight depends on |o|, on the tokens T of the sequence's group and on counts over the whole step only,
so the gradient does not depend on how the step is divided into micro-batches. The counts cover what is summed: a masked-out
completion is in neither the sum nor the counts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class StepCounts:
    """Counts over all micro-batches and ranks of a step, including groups that are not run because their gradient is zero."""

    num_tokens: int
    num_sequences: int
    num_groups: int
    max_tokens: int  # the sampling limit, Dr. GRPO's constant length


Reduction = Callable[[int, int, StepCounts], float]  # |o|, T, counts -> the weight of each token of the sequence


def token_mean(length: int, group_tokens: int, counts: StepCounts) -> float:
    """1 / (number of tokens of the step): every token has the same weight. DAPO, arXiv 2503.14476, equation 8."""
    return 1 / counts.num_tokens


def mean_of_token_means(length: int, group_tokens: int, counts: StepCounts) -> float:
    """1 / (N |o|): the mean over sequences of the mean over tokens. GRPO, arXiv 2402.03300, equation 3."""
    return 1 / (counts.num_sequences * length)


def sum_of_token_means(length: int, group_tokens: int, counts: StepCounts) -> float:
    """1 / (P |o|): the mean over prompts of the sum over completions of the mean over tokens. DPO, arXiv 2402.03300, A.1.4."""
    return 1 / (counts.num_groups * length)


def constant_length(length: int, group_tokens: int, counts: StepCounts) -> float:
    """1 / (N L), L the sampling limit: a token's weight is independent of its sequence's length. Dr. GRPO, arXiv 2503.20783, 3.2."""
    return 1 / (counts.num_sequences * counts.max_tokens)


def sequence_sum(length: int, group_tokens: int, counts: StepCounts) -> float:
    """1 / N: the mean over sequences of the sum over tokens, i.e. of the sequence's log-prob. RLOO, arXiv 2402.14740."""
    return 1 / counts.num_sequences


def prompt_mean(length: int, group_tokens: int, counts: StepCounts) -> float:
    """1 / (P T): the mean over prompts of the mean over all tokens of the prompt's group. ScaleRL, arXiv 2510.13786, section 3."""
    return 1 / (counts.num_groups * group_tokens)
