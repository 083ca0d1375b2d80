"""Held-out accuracy."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from rewards.score import Outcome
from rl.measure import Metrics, mean
from rollout.collect import Collector
from rollout.records import FinishReason, Problem


def evaluate(collector: Collector, problems: Sequence[Problem]) -> Metrics:
    """One greedy completion of each problem; accuracy is the share of the graded ones that are right."""
    started = time.perf_counter()
    greedy = replace(collector, params=replace(collector.params, temperature=0.0), group_size=1, scores_steps=False)
    rollouts = [group.rollouts[0] for group in greedy.collect(problems, step=0).groups]
    return {
        "eval/accuracy": mean(r.score.outcome is Outcome.CORRECT for r in rollouts if r.is_graded),
        "eval/length": mean(len(r.completion.token_ids) for r in rollouts),
        "eval/truncated": mean(r.completion.finish_reason is FinishReason.LENGTH for r in rollouts),
        "time/evaluate": time.perf_counter() - started,
    }
