"""One run in a folder at a time; what is in it is resumed as it stands there, on the data that it began with, or refused."""

from __future__ import annotations

import json
import multiprocessing
import os
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from rewards.errors import UserError
from rewards.math_answer import MathVerifier
from rl.run.loop import train
from rl.run.run_folder import FolderLock, claim_folder
from rl.settings.config import RunConfig
from tests.rl.test_checkpoint import in_a_child, resumed
from tests.rl.test_loop import measured, odd_lengths, options


@pytest.fixture(autouse=True)
def _lucky(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MathVerifier, "verify_batch", odd_lengths)


def hold(config: RunConfig, here: Path, told: Connection, stop: Connection) -> None:
    """Another run, which has opened its folder and is setting up."""
    os.chdir(here)
    lock = FolderLock()
    told.send(str(claim_folder(config, lock)))
    stop.poll(60)


def test_two_runs_never_write_in_one_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second of two default runs takes the next folder; a folder that is named is refused until the other run has ended."""
    monkeypatch.chdir(tmp_path)
    told, tell = multiprocessing.Pipe()
    stop, stopped = multiprocessing.Pipe()
    other = in_a_child(hold, RunConfig(), tmp_path, tell, stopped)
    assert told.poll(60)
    theirs = told.recv()
    lock = FolderLock()
    assert theirs == "runs/tiny-arithmetic-grpo-seed0"
    assert str(claim_folder(RunConfig(), lock)) == f"{theirs}-2"
    lock.release()
    with pytest.raises(UserError, match="another run is using it"):
        claim_folder(RunConfig(run_dir=Path(theirs)), lock)
    stop.send(None)
    other.join()
    assert str(claim_folder(RunConfig(run_dir=Path(theirs)), lock)) == theirs
    lock.release()


def test_options_that_a_resume_changes_are_written_down(
    model: Path, digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """So that the next --resume goes on with them; and a run with no step left says so."""
    config = options(model, digits, tmp_path / "run", num_steps=1, schedule="constant")
    train(config)
    longer = RunConfig(**{**vars(resumed(config)), "num_steps": 2, "eval_every": 5})
    train(longer)
    written = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (written["num_steps"], written["eval_every"], written["resume"]) == (2, 5, False)
    assert "no step is left" not in capsys.readouterr().out
    of_run = resumed(config).of_existing_run()
    assert of_run is not None and of_run.num_steps == 2
    before = measured(tmp_path / "run")
    train(of_run)
    assert "no step is left: num_steps is 2 and the run has done 2" in " ".join(capsys.readouterr().out.split())
    assert measured(tmp_path / "run") == before


def test_a_run_is_not_resumed_on_data_of_other_contents(model: Path, digits: Path, tmp_path: Path) -> None:
    """A row in front holds out another problem, which the run may have been trained on. The name is the same."""
    data = tmp_path / "data.jsonl"
    data.write_text(digits.read_text())
    config = options(model, data, tmp_path / "run", num_steps=1)
    train(config)
    row = json.dumps({"question": "9+8=", "answer": "17"}) + "\n"
    data.write_text(row + digits.read_text())
    with pytest.raises(UserError, match=r"dataset: its training .*problems are other ones than those"):
        train(resumed(config))
    data.write_text(digits.read_text().replace('"answer": "2"', '"answer": "3"'))
    with pytest.raises(UserError, match="problems are other ones"):
        train(resumed(config))
    data.write_text(digits.read_text())
    train(resumed(config))
    written = json.loads((tmp_path / "run" / "config.json").read_text())
    (written["dataset"],) = written["dataset"]
    (tmp_path / "run" / "config.json").write_text(json.dumps({k: v for k, v in written.items() if k != "data"}))
    train(resumed(config))  # a run from before fingerprints were written, when there was one data set


@pytest.mark.parametrize("text", ["{", "[]", '{"group_size": "x"}', "\udcff"], ids=repr)
def test_a_configuration_that_cannot_be_read_is_told(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=r"its config\.json cannot be read"):
        RunConfig(run_dir=tmp_path, resume=True).of_existing_run()


@pytest.mark.parametrize("line", ["{broken\n", "[1]\n", '{"step": null}\n', '"text"\n'])
def test_metrics_that_cannot_be_read_are_told(line: str, model: Path, digits: Path, tmp_path: Path) -> None:
    config = options(model, digits, tmp_path / "run", num_steps=1)
    train(config)
    path = tmp_path / "run" / "metrics.jsonl"
    path.write_text(line + path.read_text())
    with pytest.raises(UserError, match=r"metrics.jsonl, line 1 is .*delete that line"):
        train(resumed(config))
