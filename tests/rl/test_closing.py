"""Nothing that a run has started outlives its error, and a second Ctrl-C waits for nothing."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

import rl.run.loop
import rl.run.setup
from rewards.math_answer import MathVerifier
from rl.run.loop import train
from rl.run.setup import Run
from rl.update.prefetch import Prefetcher
from rollout.torch_sampler import TorchSampler
from tests.rl.test_loop import odd_lengths, options


class AnError(Exception):
    pass


@pytest.mark.parametrize("where", ["proven_delivery", "run_steps"])
def test_the_engine_and_the_threads_end_with_an_error(
    where: str, model: Path, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the midst of setting up, and of the steps."""
    monkeypatch.setattr(MathVerifier, "verify_batch", odd_lengths)
    closed: list[str] = []
    inner = TorchSampler.close
    monkeypatch.setattr(TorchSampler, "close", lambda self: (closed.append("sampler"), inner(self))[0])

    def fail(run: Run, *_: object) -> None:
        if where == "run_steps":
            assert run.prefetcher is not None
            run.prefetcher.take(1, lambda step: (_ for _ in ()).throw(AnError))
        raise AnError

    monkeypatch.setattr(rl.run.setup if where == "proven_delivery" else rl.run.loop, where, fail)
    before = set(threading.enumerate())
    with pytest.raises(AnError):
        train(options(model, digits, tmp_path / "run", algorithm="dapo", one_step_ahead=True))
    assert closed == ["sampler"]
    assert not set(threading.enumerate()) - before


def test_closing_at_once_does_not_wait_for_what_is_sampled_ahead() -> None:
    prefetcher, ended = Prefetcher(last_step=3), threading.Event()

    def sample(step: int) -> int:
        if step > 1:
            ended.wait(20)
        return step

    prefetcher.take(1, sample)  # pyright: ignore[reportArgumentType]
    started = time.monotonic()
    prefetcher.close(wait=False)
    assert time.monotonic() - started < 5  # of the twenty seconds
    ended.set()
    prefetcher.close()
