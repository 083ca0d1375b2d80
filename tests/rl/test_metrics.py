from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from rewards.score import Outcome
from rl.run.run_files import RunRecords
from rl.update.step_metrics import TRUNCATED
from rl.view.metrics import METRICS, OUTCOMES, MetricsWriter, markdown, read_metrics, start_and_end, time_by_phase

ROOT = Path(__file__).resolve().parents[2]


def test_the_page_is_printed_from_the_registry() -> None:
    page = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert page == markdown(), "run: python -m rl.view.metrics > docs/metrics.md"


def test_every_outcome_of_a_verifier_is_measured() -> None:
    assert set(OUTCOMES) == {TRUNCATED, *(outcome.value for outcome in Outcome)}


def test_reading_metrics_needs_no_torch() -> None:
    code = "import sys, rl.view.metrics, rl.view.progress; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_writer_refuses_a_metric_that_nobody_defined(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="reward/maen"):
        MetricsWriter(tmp_path).write({"step": 1, "reward/maen": 0.5})


def test_values_that_json_does_not_know_become_null(tmp_path: Path) -> None:
    MetricsWriter(tmp_path).write(
        {"step": 1, "loss": math.nan, "grad_norm": -math.inf, "entropy": 0.25, "kl/reference": None}
    )

    def refuse(name: str) -> float:
        raise AssertionError(f"{name} is not JSON")

    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    row = json.loads(line, parse_constant=refuse)
    assert row == {"step": 1, "loss": None, "grad_norm": None, "entropy": 0.25, "kl/reference": None}


def test_a_line_cut_by_a_kill_is_not_read_and_not_glued_to_the_next(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 0.5}\n{"step": 2, "lo')
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 0.5}]
    MetricsWriter(tmp_path).write({"step": 2, "loss": 0.25})
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25}]


def test_a_broken_line_in_the_middle_is_named(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step"\n{"step": 3}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2"):
        read_metrics(tmp_path)


def test_a_resumed_run_drops_the_steps_that_it_runs_again(tmp_path: Path) -> None:
    """Saved after step 1, killed in step 3: the file must end as if the run had never been killed."""
    first = MetricsWriter(tmp_path)
    for step in range(3):
        first.write({"step": step, "loss": 0.1 * step})
    whole = (tmp_path / "metrics.jsonl").read_bytes()
    MetricsWriter(tmp_path, keep_through=1).write({"step": 2, "loss": 0.1 * 2})
    assert (tmp_path / "metrics.jsonl").read_bytes() == whole


@pytest.mark.parametrize(("keep_through", "kept"), [(1, 1), (2, 2), (-1, 0)])
def test_completions_of_the_steps_that_run_again_are_dropped_too(tmp_path: Path, keep_through: int, kept: int) -> None:
    """Killed while those of step 3 were written; -1 is a run that begins again."""
    path = tmp_path / "completions.jsonl"
    lines = [f'{{"step": {step}}}\n' for step in (1, 2)]
    path.write_text("".join(lines) + '{"step": 3')
    RunRecords(tmp_path, keep_through)
    assert path.read_text() == "".join(lines[:kept])


def test_start_and_end_average_what_is_noisy_and_not_the_evaluations() -> None:
    rows: list[dict[str, float | None]] = [
        {"step": i, "entropy": float(i), "eval/accuracy": float(i)} for i in range(20)
    ]
    assert start_and_end(rows, "entropy") == (0.5, 18.5)  # a tenth of 20 steps is two: (0 + 1) / 2, (18 + 19) / 2
    assert start_and_end(rows, "eval/accuracy") == (0.0, 19.0)
    assert start_and_end(rows, "kl/reference") is None


def test_time_outside_the_phases_is_told_as_other() -> None:
    rows: list[dict[str, float | None]] = [{"step": 1, "time/step": 10.0, "time/sample": 6.0, "time/train": 3.0}]
    assert time_by_phase(rows) == {"sample": 6.0, "verify": 0, "train": 3.0, "deliver": 0, "evaluate": 0, "other": 1.0}


def test_every_definition_is_a_sentence_and_its_key_is_its_name() -> None:
    for key, metric in METRICS.items():
        assert metric.key == key
        assert metric.meaning.endswith(".") and metric.healthy.endswith("."), key
