"""What the benchmarks compute from their runs, by hand."""

from __future__ import annotations

import pytest

from benchmarks.deepseekmath_figures import KS, SAMPLES
from benchmarks.grpo_vs_ppo import difference, of_k, samples_to
from tests.parity.cases import group_of


def test_a_difference_is_tested_against_the_spread_of_seeds() -> None:
    """1 to 5: mean 3, standard deviation 1.5811, 2.776 x 1.5811 / sqrt(5) = 1.963. It holds no 0; shifted by 2 it does."""
    assert difference([1.0, 2.0, 3.0, 4.0, 5.0], [0.0] * 5, 1) == "**+3.0 [+1.0, +5.0]**"
    assert difference([1.0, 2.0, 3.0, 4.0, 5.0], [2.0] * 5, 1) == "+1.0 [-1.0, +3.0]"
    assert difference([1.0, None], [0.0, 0.0], 1) == "-"


def test_a_level_is_reached_between_two_looks() -> None:
    """Half of the way between steps 12 and 24, 512 completions a step."""
    assert samples_to([0, 12, 24], [0.5, 0.7, 0.8], 0.75) == pytest.approx(18 * 512)
    assert samples_to([0, 12], [0.5, 0.7], 0.75) is None


def test_votes_and_passes_of_k_samples() -> None:
    """The first 16 of 64 samples are right, the others have no answer, which does not vote: a block wins where it has a right one.
    pass@2 = 1 - C(48, 2) / C(64, 2) = 1 - 1128 / 2016."""
    (group,) = [group_of([1] * SAMPLES, [1.0] * 16 + [0.0] * 48)]
    found = of_k([group], KS)
    assert found["maj"] == [0.25, 0.25, 0.25, 0.25, 0.25, 0.5, 1.0]
    assert found["pass"][:2] == pytest.approx([0.25, 1 - 1128 / 2016]) and found["pass"][KS.index(64)] == 1.0
