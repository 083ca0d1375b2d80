"""Warnings about a run that goes wrong: each appears where it should, and none for a healthy run."""

from __future__ import annotations

import re

import pytest

from rl.view.health_checks import WINDOW, HealthChecks, MetricWindows
from rl.view.metrics import Row

# As the default run begins and ends, docs/results.md.
HEALTHY: dict[str, tuple[float, float]] = {
    "entropy": (0.1, 0.05),
    "kl/reference": (0.02, 0.06),
    "kl/sampler": (1e-9, 1e-9),
    "length/mean": (22.8, 22.8),
    "length/truncated": (0.001, 0.003),
    "groups/no_signal": (0.1, 0.21),
    "accuracy/sampled": (0.4, 0.75),
    "outcome/unparsed": (0.03, 0.01),
    "reward/mean": (0.4, 0.75),
    "eval/accuracy": (0.48, 0.85),
}


def run_of(**changed: tuple[float, float]) -> list[Row]:
    """A run that goes from one value to the other in a line, between as many steps at each as are averaged over."""
    steps = range(1, 4 * WINDOW + 1)
    part = [min(1.0, max(0.0, (s - WINDOW) / (2 * WINDOW))) for s in steps]
    values = HEALTHY | changed
    return [
        {"step": s, **{key: a + (b - a) * p for key, (a, b) in values.items()}}
        for s, p in zip(steps, part, strict=True)
    ]


def test_a_healthy_run_has_no_warning() -> None:
    rows = run_of()
    assert not any(MetricWindows(rows[:n]).warnings() for n in range(len(rows) + 1))


@pytest.mark.parametrize(
    ("changed", "key", "cause"),
    [
        (
            {"entropy": (0.5, 0.01)},
            "entropy",
            "entropy fell from 0.5 to 0.01 nats: .*learning rate is probably too high",
        ),
        ({"entropy": (0.5, 4.0)}, "entropy", "dissolves into noise"),
        ({"kl/reference": (0.01, 2.0)}, "kl/reference", "leaves the reference behind"),
        ({"kl/sampler": (0.001, 0.2)}, "kl/sampler", "samples from another policy"),
        ({"length/truncated": (0.0, 0.8)}, "length/mean", "80% of completions are cut by max_tokens"),
        ({"length/mean": (300.0, 20.0)}, "length/mean", "completions shrank, from 300 to 20 tokens"),
        (
            {"groups/no_signal": (0.2, 0.97), "accuracy/sampled": (0.3, 0.01)},
            "groups/no_signal",
            "the dataset is too hard, or the verifier too strict",
        ),
        (
            {"groups/no_signal": (0.2, 0.97), "accuracy/sampled": (0.3, 0.99)},
            "groups/no_signal",
            "nothing left to learn",
        ),
        ({"groups/no_signal": (0.2, 0.97)}, "groups/no_signal", "solved always or never"),
        ({"outcome/unparsed": (0.02, 0.4)}, "outcome/unparsed", "forgets the answer format"),
        ({"eval/accuracy": (0.8, 0.6)}, "eval/accuracy", "from 80.0% to 60.0% while the reward rose"),
    ],
)
def test_a_warning_is_reported_once_with_its_likely_cause(
    changed: dict[str, tuple[float, float]], key: str, cause: str
) -> None:
    rows = run_of(**changed)
    found = MetricWindows(rows).warnings()
    assert list(found) == [key]
    assert re.search(cause, found[key])
    checks = HealthChecks([])
    reported = [text for row in rows for text in checks.add(row)]
    assert len(reported) == 1


@pytest.mark.parametrize(
    ("key", "within", "beyond"),
    [
        ("entropy", {"entropy": (0.5, 0.051)}, {"entropy": (0.5, 0.049)}),  # a tenth
        ("entropy", {"entropy": (0.5, 1.49)}, {"entropy": (0.5, 1.51)}),  # three times
        ("entropy", {"entropy": (0.1, 0.99)}, {"entropy": (0.1, 1.01)}),  # a nat
        ("kl/reference", {"kl/reference": (0.04, 0.49)}, {"kl/reference": (0.04, 0.51)}),
        ("kl/reference", {"kl/reference": (0.1, 0.99)}, {"kl/reference": (0.1, 1.01)}),  # ten times
        ("kl/sampler", {"kl/sampler": (0.0, 0.049)}, {"kl/sampler": (0.0, 0.051)}),
        ("length/mean", {"length/truncated": (0.0, 0.49)}, {"length/truncated": (0.0, 0.51)}),
        ("length/mean", {"length/mean": (300.0, 101.0)}, {"length/mean": (300.0, 99.0)}),  # a third
        ("groups/no_signal", {"groups/no_signal": (0.2, 0.89)}, {"groups/no_signal": (0.2, 0.91)}),
        ("outcome/unparsed", {"outcome/unparsed": (0.02, 0.19)}, {"outcome/unparsed": (0.02, 0.21)}),
        ("outcome/unparsed", {"outcome/unparsed": (0.1, 0.29)}, {"outcome/unparsed": (0.1, 0.31)}),  # three times
        ("eval/accuracy", {"eval/accuracy": (0.8, 0.71)}, {"eval/accuracy": (0.8, 0.69)}),  # ten points below the best
    ],
)
def test_a_warning_is_reported_beyond_its_threshold_and_not_within(
    key: str, within: dict[str, tuple[float, float]], beyond: dict[str, tuple[float, float]]
) -> None:
    assert [list(MetricWindows(run_of(**changed)).warnings()) for changed in (within, beyond)] == [[], [key]]


@pytest.mark.parametrize(
    ("right", "why"),
    [(0.09, "too hard"), (0.11, "always or never"), (0.89, "always or never"), (0.91, "nothing left to learn")],
)
def test_why_groups_teach_nothing_is_reported_by_how_many_answers_are_right(right: float, why: str) -> None:
    """A tenth of them, and nine tenths."""
    rows = run_of(**{"groups/no_signal": (0.2, 0.97), "accuracy/sampled": (0.4, right)})
    assert why in MetricWindows(rows).warnings()["groups/no_signal"]


def test_held_out_accuracy_that_falls_with_the_reward_is_no_hacking() -> None:
    assert not MetricWindows(run_of(**{"eval/accuracy": (0.8, 0.5), "reward/mean": (0.7, 0.5)})).warnings()


def test_a_metric_is_compared_once_it_was_measured_twice_as_often_as_is_averaged() -> None:
    """Its first ten steps with its last ten, and step 0, the base, is none of them."""
    rows: list[Row] = [{"step": 0, "kl/sampler": 1.0}]
    rows += [{"step": s, "kl/sampler": 1.0} for s in range(1, 2 * WINDOW + 1)]
    assert not MetricWindows(rows[:-1]).warnings()
    assert list(MetricWindows(rows).warnings()) == ["kl/sampler"]


def test_a_warning_that_had_gone_is_reported_again_and_one_that_stood_before_a_resume_is_not() -> None:
    bad, good = run_of(entropy=(0.5, 0.01)), run_of(entropy=(0.5, 0.5))
    checks = HealthChecks(list(bad))
    assert checks.add({**bad[-1]}) == []
    reported = [text for row in [*good[-WINDOW:], *bad[-WINDOW:]] for text in checks.add(row)]
    assert len(reported) == 1
