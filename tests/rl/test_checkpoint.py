"""A run is never lost: damaged checkpoints, full disks, and kills at any moment."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

import pytest
import torch

import rl.update.update
import rl.view.report
from rewards.errors import UserError
from rewards.math_answer import MathVerifier
from rl.run.checkpoint import checkpoints
from rl.run.loop import train
from rl.run.run_files import write_config
from rl.settings.config import RunConfig
from rl.settings.resolve import resolve
from rl.view.metrics import read_metrics
from tests.rl.conftest import draw_nothing
from tests.rl.test_loop import final_weights, measured, odd_lengths, options

KILLS = 30
STEPS = 5


def resumed(config: RunConfig) -> RunConfig:
    return RunConfig(**{**vars(config), "resume": True})


def assert_equal_runs(ours: Path, theirs: Path, step: int) -> None:
    assert measured(ours) == measured(theirs)
    assert (ours / "completions.jsonl").read_text() == (theirs / "completions.jsonl").read_text()
    a, b = final_weights(ours, step), final_weights(theirs, step)
    assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in b)


@pytest.fixture
def lucky(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MathVerifier, "verify_batch", odd_lengths)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "one bit of the weights": lambda folder: flip(folder / "model.safetensors"),
    "one bit of the optimiser": lambda folder: flip(folder / "optimizer.pt"),
    "cut short": lambda folder: os.truncate(folder / "optimizer.pt", 1000),
    "a file is gone": lambda folder: (folder / "trainer.json").unlink(),
    "no checksums": lambda folder: (folder / "SHA256SUMS").unlink(),
    "checksums are empty": lambda folder: os.truncate(folder / "SHA256SUMS", 0),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.usefixtures("lucky")
def test_a_damaged_checkpoint_is_told_and_the_one_before_it_is_used(
    damage: Callable[[Path], object],
    model: Path,
    digits: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = options(model, digits, tmp_path / "run", num_steps=3, save_every=1, eval_every=3)
    train(RunConfig(**{**vars(config), "run_dir": tmp_path / "whole"}))
    train(RunConfig(**{**vars(config), "num_steps": 2, "schedule": "constant"}))
    damage(tmp_path / "run" / "checkpoints" / "step-000002")
    train(resumed(config))
    said = " ".join(capsys.readouterr().out.split())
    assert "step-000002 is damaged" in said and "renamed to damaged-step-000002" in said
    ours, theirs = (final_weights(tmp_path / name, 3) for name in ("run", "whole"))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert [path.name for path in checkpoints(tmp_path / "run")] == ["step-000002", "step-000003"]


@pytest.mark.usefixtures("lucky")
def test_where_every_checkpoint_is_damaged_the_run_begins_again(
    model: Path, digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = options(model, digits, tmp_path / "run", num_steps=2)
    train(RunConfig(**{**vars(config), "run_dir": tmp_path / "whole"}))
    train(config)
    for folder in checkpoints(tmp_path / "run"):
        flip(folder / "model.safetensors")
    train(resumed(config))
    assert "no checkpoint to resume from: the run begins again" in " ".join(capsys.readouterr().out.split())
    assert_equal_runs(tmp_path / "run", tmp_path / "whole", 2)


@pytest.mark.usefixtures("lucky")
def test_a_run_that_was_killed_between_saving_and_removing_removes_when_it_is_resumed(
    model: Path, digits: Path, tmp_path: Path
) -> None:
    config = options(model, digits, tmp_path / "run", num_steps=3, save_every=1, save_total_limit=2)
    train(config)
    shutil.copytree(tmp_path / "run/checkpoints/step-000002", tmp_path / "run/checkpoints/step-000001")
    train(resumed(config))
    assert [path.name for path in checkpoints(tmp_path / "run")] == ["step-000002", "step-000003"]


def test_a_kill_while_the_configuration_is_written_again_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a run does that is resumed before its first checkpoint."""
    write_config(tmp_path, resolve(RunConfig(seed=1), "cpu").as_json())

    def killed(path: Path, *_: object, **__: object) -> int:
        path.open("w").close()
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_text", killed)
    with pytest.raises(KeyboardInterrupt):
        write_config(tmp_path, resolve(RunConfig(seed=2), "cpu").as_json())
    assert json.loads((tmp_path / "config.json").read_text())["seed"] == 1


def small_disk(config: RunConfig, limit: int, told: Connection) -> None:
    """In a process of its own: no file may be longer than that, as on a disk that is full."""
    MathVerifier.verify_batch = odd_lengths
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # pytest keeps the output in a file
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        train(resumed(config))
    except UserError as error:
        told.send(str(error))


@pytest.mark.parametrize("limit", [500, 20_000], ids=["metrics", "checkpoint"])
@pytest.mark.usefixtures("lucky")
def test_a_full_disk_ends_the_run_with_a_message_and_the_last_checkpoint_stands(
    limit: int, model: Path, digits: Path, tmp_path: Path
) -> None:
    config = options(model, digits, tmp_path / "run", num_steps=3, save_every=1, eval_every=1, schedule="constant")
    train(RunConfig(**{**vars(config), "run_dir": tmp_path / "whole"}))
    train(RunConfig(**{**vars(config), "num_steps": 1}))
    here, there = multiprocessing.Pipe()
    child = in_a_child(small_disk, config, limit, there)
    assert here.poll(60)
    said = here.recv()
    child.join()
    assert "it could not be written" in said and "step-000001 is complete" in said and "--resume" in said
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-000001"]
    train(resumed(config))
    assert_equal_runs(tmp_path / "run", tmp_path / "whole", 3)


def forking() -> ForkServerContext:
    """Its children have torch loaded already: a start takes a tenth of a second and not five."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def in_a_child(target: Callable[..., None], *args: object) -> ForkServerProcess:
    child = forking().Process(target=target, args=args)
    child.start()
    return child


def dying(config: RunConfig, touches: int | None) -> None:
    """Trains, and kills itself when it touches its own folder for the n-th time: opens, renames, removes or makes something there."""
    MathVerifier.verify_batch = odd_lengths
    left = touches

    def count(event: str, args: Sequence[object]) -> None:
        nonlocal left
        if left is None or event not in ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree"):
            return
        if isinstance(args[0], (str, Path)) and str(config.run_dir) in str(args[0]):
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    rl.view.report.svg_of = draw_nothing
    sys.addaudithook(count)
    train(config)


def test_a_run_that_is_killed_thirty_times_ends_as_one_that_is_not(
    model: Path, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGKILL at random moments: two of three while a file of the run is touched, the others at any time."""
    monkeypatch.setattr(MathVerifier, "verify_batch", odd_lengths)
    whole = options(model, digits, tmp_path / "whole", num_steps=STEPS, save_every=1, eval_every=2)
    train(whole)
    dice, kills, runs = random.Random(0), 0, 0
    while kills < KILLS:
        runs += 1
        config = RunConfig(**{**vars(whole), "run_dir": tmp_path / f"killed-{runs}"})
        ended = False
        while not ended:
            is_begun = (tmp_path / f"killed-{runs}" / "config.json").exists()
            by_touch = dice.random() < 2 / 3
            child = in_a_child(dying, resumed(config) if is_begun else config, dice.randrange(60) if by_touch else None)
            if not by_touch:
                child.join(dice.uniform(0.5, 3.0))
                child.kill()
            child.join()
            ended = child.exitcode == 0
            kills += child.exitcode == -signal.SIGKILL
            assert child.exitcode in (0, -signal.SIGKILL)
        assert_equal_runs(tmp_path / f"killed-{runs}", tmp_path / "whole", STEPS)
        assert len(checkpoints(tmp_path / f"killed-{runs}")) == 2


def test_updates_that_were_left_out_are_counted_across_a_resume(
    model: Path, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two before it and two after it are four in a row."""
    monkeypatch.setattr(MathVerifier, "verify_batch", odd_lengths)
    differentiate = rl.update.update.differentiate

    def never_finite(*args: Any, **options: Any) -> Any:
        losses, scores, seen = differentiate(*args, **options)
        return losses * float("nan"), scores, seen

    monkeypatch.setattr(rl.update.update, "differentiate", never_finite)
    config = options(model, digits, tmp_path / "run", num_steps=2, max_skipped=3)
    train(config)
    assert [row["updates/skipped"] for row in read_metrics(tmp_path / "run")[1:]] == [1, 1]
    with pytest.raises(UserError, match="4 updates in a row"):
        train(resumed(RunConfig(**{**vars(config), "num_steps": 4})))
