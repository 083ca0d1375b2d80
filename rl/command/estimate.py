"""A measured number over problems with its confidence interval."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES, AT_ONCE = 10_000, 100
Statistic = Callable[[NDArray[np.int64]], NDArray[np.float64]]


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number over problems, mostly a mean, with its 95 % confidence interval, by bootstrap over problems.

    If all values are 0, or all 1, every resample is the same, and the exact bound of a binomial share is used instead: (0.05 / 2)^(1/n)
    from the other end (Clopper and Pearson 1934).
    """

    mean: float
    low: float
    high: float
    problems: int
    is_share: bool = True

    @staticmethod
    def of(values: Sequence[float], *, is_share: bool = True) -> Estimate | None:
        """The mean of the problems' values; None without values."""
        numbers = np.asarray(values, float)
        return Estimate.by_bootstrap(lambda drawn: numbers[drawn].mean(-1), len(values), is_share=is_share)

    @staticmethod
    def by_bootstrap(statistic: Statistic, n: int, *, is_share: bool = True) -> Estimate | None:
        """A statistic of n problems. It is given the indices of the problems of some resamples, int[B, n], and returns float[B], nan
        where it is not defined. None where it is not defined on the problems themselves."""
        measured = float(statistic(np.arange(n)[None])[0]) if n else np.nan
        if np.isnan(measured):
            return None
        dice = np.random.default_rng(0)
        found = [statistic(dice.integers(n, size=(AT_ONCE, n))) for _ in range(RESAMPLES // AT_ONCE)]
        low, high = np.nanquantile(found, [0.025, 0.975])
        if is_share and low == high == 0:
            high = 1 - 0.025 ** (1 / n)
        elif is_share and low == high == 1:
            low = 0.025 ** (1 / n)
        return Estimate(mean=measured, low=float(low), high=float(high), problems=n, is_share=is_share)

    def __str__(self) -> str:
        if not self.is_share:
            return f"{self.mean:6.3g}  [{self.low:.3g}, {self.high:.3g}]  of {self.problems}"
        return f"{self.mean:6.1%}  [{self.low:.1%}, {self.high:.1%}]  of {self.problems}"
