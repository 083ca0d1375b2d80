"""Signs of a run that goes wrong: each is seen where it should be, and none where nothing is wrong."""

from __future__ import annotations

import re

import pytest

from rl.metrics import Row
from rl.watch import WINDOW, Courses, Watch

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


def course(**changed: tuple[float, float]) -> list[Row]:
    """A run that goes from one value to the other in a line, between as many steps at each as are averaged over."""
    steps = range(1, 4 * WINDOW + 1)
    part = [min(1.0, max(0.0, (s - WINDOW) / (2 * WINDOW))) for s in steps]
    values = HEALTHY | changed
    return [
        {"step": s, **{key: a + (b - a) * p for key, (a, b) in values.items()}}
        for s, p in zip(steps, part, strict=True)
    ]


def test_a_healthy_run_has_no_sign() -> None:
    rows = course()
    assert not any(Courses(rows[:n]).signs() for n in range(len(rows) + 1))


@pytest.mark.parametrize(
    ("changed", "key", "cause"),
    [
        ({"entropy": (0.5, 0.01)}, "entropy", "entropy fell from 0.5 to 0.01 nats: .*learning rate is too high"),
        ({"entropy": (0.5, 4.0)}, "entropy", "dissolves into noise"),
        ({"kl/reference": (0.01, 2.0)}, "kl/reference", "leaves the reference behind"),
        ({"kl/sampler": (0.001, 0.2)}, "kl/sampler", "samples from another policy"),
        ({"length/truncated": (0.0, 0.8)}, "length/mean", "80% of completions are cut by max_tokens"),
        ({"length/mean": (300.0, 20.0)}, "length/mean", "completions shrank, from 300 to 20 tokens"),
        (
            {"groups/no_signal": (0.2, 0.97), "accuracy/sampled": (0.3, 0.01)},
            "groups/no_signal",
            "too hard a dataset, or a verifier that is",
        ),
        ({"groups/no_signal": (0.2, 0.97), "accuracy/sampled": (0.3, 0.99)}, "groups/no_signal", "used up"),
        ({"groups/no_signal": (0.2, 0.97)}, "groups/no_signal", "right always or never"),
        ({"outcome/unparsed": (0.02, 0.4)}, "outcome/unparsed", "forgets the form"),
        ({"eval/accuracy": (0.8, 0.6)}, "eval/accuracy", "from 80.0% to 60.0% while the reward rose"),
    ],
)
def test_a_sign_is_told_once_with_its_likely_cause(
    changed: dict[str, tuple[float, float]], key: str, cause: str
) -> None:
    rows = course(**changed)
    found = Courses(rows).signs()
    assert list(found) == [key]
    assert re.search(cause, found[key])
    watch = Watch([])
    told = [text for row in rows for text in watch.add(row)]
    assert len(told) == 1


def test_a_sign_that_had_gone_is_told_again_and_one_that_stood_before_a_resume_is_not() -> None:
    bad, good = course(entropy=(0.5, 0.01)), course(entropy=(0.5, 0.5))
    watch = Watch(list(bad))
    assert watch.add({**bad[-1]}) == []
    told = [text for row in [*good[-WINDOW:], *bad[-WINDOW:]] for text in watch.add(row)]
    assert len(told) == 1
