"""`plumbline mine` as a user types it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import rollout.corpus.mining.mine
from rl.cli import app, run_safely
from tests.rollout.corpus.made_web import write_web


def command(web: Path, out: Path, *more: str) -> list[str]:
    start = [sys.executable, "-c", "from rl.cli import main; main()", "mine", "--pages", str(web / "pages")]
    seed = ["--seed-pages", str(web / "seed.jsonl"), "--test-sets", str(web / "tests.jsonl")]
    return [*start, *seed, "--out", str(out), *more]


def test_it_is_interrupted_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_web(tmp_path / "web", 1500, 200)
    given = command(tmp_path / "web", tmp_path / "out", "--workers", "2", "--rounds", "2")

    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(SystemExit) as ended:  # noqa: PT012
        patched.setattr(rollout.corpus.mining.mine, "run_rounds", interrupted)
        run_safely(lambda: app.cli(prog="plumbline", args=given[given.index("mine") :]))
    assert ended.value.code == 130
    assert capsys.readouterr().err.endswith("interrupted: the same command goes on from here\n")
    done = subprocess.run(given, capture_output=True, text=True, check=True, timeout=100)
    printed = done.stdout[done.stdout.index(" pages mined of ") :].splitlines()
    assert [line.split("|")[1].strip() for line in printed if line.startswith("|")][2:] == ["1", "2"]
    report = (tmp_path / "out" / "report.md").read_text()
    assert done.stdout.endswith(report) and "hold text of a test set" in report


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--keep", "0"), "error: keep is 0.0: it must be more than 0 and at most 1\n"),
        (("--reviewed", "absent"), "error: reviewed is 'absent': there is no such file"),
    ],
)
def test_a_mistake_ends_with_one_message(tmp_path: Path, more: tuple[str, ...], message: str) -> None:
    write_web(tmp_path / "web", 8, 2)
    given = command(tmp_path / "web", tmp_path / "out", *more)
    done = subprocess.run(given, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 2 and done.stderr.startswith(message) and done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()
