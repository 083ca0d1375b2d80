"""One step ahead: the next completions are sampled while this step is trained on, with weights that are one update old."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from rewards.errors import UserError
from rewards.math_answer import MathVerifier
from rl.run.loop import train
from rl.settings.config import RunConfig
from rl.update.prefetch import Prefetcher
from rl.view.metrics import read_metrics
from rollout.collect import Collected
from tests.rl.test_loop import odd_lengths, options


def collected(number: int) -> Collected:
    return Collected(
        groups=[], sampled=[], num_refills=0, num_sampled_tokens=number, sample_seconds=1.0, verify_seconds=0.0
    )


def test_the_next_step_is_sampled_before_it_is_asked_for_and_the_one_after_the_last_never() -> None:
    begun, may_end = threading.Event(), threading.Event()

    def sample(step: int) -> Collected:
        if step == 2:
            begun.set()
            assert may_end.wait(10)
        return collected(step)

    prefetcher = Prefetcher(last_step=2)
    assert prefetcher.take(1, sample).num_sampled_tokens == 1
    assert begun.wait(10)  # nobody has asked for step 2 yet, and it is not held up by it
    may_end.set()
    waiting = prefetcher.wait()
    assert waiting is not None and waiting.num_sampled_tokens == 2
    assert prefetcher.take(2, sample).num_sampled_tokens == 2
    assert prefetcher.wait() is None
    prefetcher.close()


def test_completions_are_one_update_old_but_for_the_first(
    model: Path, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MathVerifier, "verify_batch", odd_lengths)  # an untaught model is never right
    run_dir = train(options(model, digits, tmp_path / "run", one_step_ahead=True, num_steps=4))
    assert [row.get("staleness") for row in read_metrics(run_dir)[1:]] == [0, 1, 1, 1]
    rows = [json.loads(line) for line in (run_dir / "completions.jsonl").read_text().splitlines()]
    assert {(row["step"], row["policy_version"]) for row in rows} == {(1, 0), (2, 0), (3, 1), (4, 2)}
    weights = [row["tis/weight"] for row in read_metrics(run_dir)[1:]]
    assert weights[0] == pytest.approx(1.0, abs=1e-5)
    assert all(abs((w or 0) - 1) > 1e-5 for w in weights[1:])  # the policy has moved since


@pytest.mark.parametrize("algorithm", ["rft", "sft", "online-rft"])
def test_what_cannot_be_corrected_is_refused(algorithm: str) -> None:
    with pytest.raises(UserError, match=rf"one_step_ahead is True: {algorithm} "):
        RunConfig(algorithm=algorithm, one_step_ahead=True)
