"""Greedy accuracy at several thinking budgets, and what s1 (arXiv 2501.19393, section 3.2) measures of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rewards.errors import UserError
from rl.command.estimate import Estimate
from rl.run.evaluate import is_right
from rl.view.plots import budgets_figure
from rl.view.progress import Progress
from rollout.budget_forcing import BudgetForcing
from rollout.collect import Collector
from rollout.records import Problem

PER_TOKENS = 1000  # of scaling
SCALING = f"scaling, points of accuracy per {PER_TOKENS} tokens"
Floats = NDArray[np.float64]


def budget_estimates(
    greedy: Collector, forcing: BudgetForcing, budgets: Sequence[int], problems: Sequence[Problem], progress: Progress
) -> dict[str, Estimate | None]:
    """Estimates by measure, over the problems whose completions could be graded at every budget. forcing: the rules, whose own budget
    does not matter."""
    rollouts = []
    for budget in budgets:
        progress.start(f"{len(problems)} problems, thinking budget {budget}")
        groups = replace(greedy, rollout=forcing.at(budget)).collect(problems, step=0).groups
        rollouts.append([group.rollouts[0] for group in groups])
    graded = [at for at in zip(*rollouts, strict=True) if all(r.is_graded for r in at)]
    thinking = [[r.completion.thinking for r in at] for at in graded]
    num_tokens = np.array([[t.num_tokens for t in at if t is not None] for at in thinking], float)
    right = np.array([[is_right(r) for r in at] for at in graded], float)
    size = (len(graded), len(budgets))
    return s1_estimates(budgets, num_tokens.reshape(size), right.reshape(size))


def s1_estimates(budgets: Sequence[int], num_tokens: Floats, right: Floats) -> dict[str, Estimate | None]:
    """Estimates of the accuracy f and the mean thinking tokens a at each budget, and the three metrics over the set A of these a:

    control, the share of the a that are at most their budget (s1's a_max; its a_min is 0); scaling, the mean over all pairs a < b of A of
    the slope (f(b) - f(a)) / (b - a), not measured where all a are equal; performance, the largest f(a). Beside control, which a few long
    completions do not change, the share of single completions within their budget.

    num_tokens, right: thinking tokens of the problems at the budgets, and 1 for correct answers, float[problems, budgets].
    """
    n, found = len(right), dict[str, Estimate | None]()
    for i, budget in enumerate(budgets):
        accuracy, tokens = names_at(budget)
        found[accuracy] = Estimate.of(right[:, i].tolist())
        found[tokens] = Estimate.of(num_tokens[:, i].tolist(), is_share=False)
    most = np.array(budgets)
    found["control"] = Estimate.by_bootstrap(lambda drawn: (num_tokens[drawn].mean(1) <= most).mean(-1), n)
    found["completions within the budget"] = Estimate.of((num_tokens <= most).mean(1).tolist())
    found[SCALING] = Estimate.by_bootstrap(
        lambda drawn: 100 * PER_TOKENS * mean_slope(num_tokens[drawn].mean(1), right[drawn].mean(1)), n, is_share=False
    )
    found["performance"] = Estimate.by_bootstrap(lambda drawn: right[drawn].mean(1).max(-1), n)
    return found


def names_at(budget: int) -> tuple[str, str]:
    """What the estimates of accuracy and of thinking tokens at this budget are called."""
    return f"budget {budget}: greedy accuracy", f"budget {budget}: thinking tokens"


def draw_budgets(found: Mapping[str, Estimate | None], budgets: Sequence[int], path: Path) -> None:
    """Draws the accuracy over the thinking tokens at the budgets. found: as budget_estimates returns it."""
    at = [(str(budget), *(found[name] for name in names_at(budget))) for budget in budgets]
    points = [(label, _interval(a), _interval(f)) for label, f, a in at if a is not None and f is not None]
    if not points:
        raise UserError(
            f"figure is {str(path)!r}: no completion could be graded, so there is nothing to draw; leave it out"
        )
    budgets_figure(points, path)


def _interval(x: Estimate) -> tuple[float, float, float]:
    return x.mean, x.low, x.high


def mean_slope(at: Floats, values: Floats) -> Floats:
    """The mean slope between all pairs of different points. at, values: float[B, K]. -> float[B], nan where all points are equal."""
    a, b = np.array(list(combinations(range(at.shape[1]), 2))).T
    run, rise = at[:, b] - at[:, a], values[:, b] - values[:, a]
    differ = run != 0
    slopes = np.divide(rise, run, out=np.zeros_like(run), where=differ)
    num_pairs = differ.sum(1)
    return np.where(num_pairs > 0, slopes.sum(1) / np.maximum(1, num_pairs), np.nan)
