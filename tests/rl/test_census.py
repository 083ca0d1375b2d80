"""`plumbline census`: pass rates that are those of the samples, in a file that a run reads back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import rl.command.census
from rewards.errors import UserError
from rewards.math_answer import MathVerifier
from rl.cli import app
from rl.command.census import Profiled, as_row, describe, nearest_bin, take_census
from rl.run.load_data import split_held_out
from rl.run.loop import train
from rl.settings.options import CensusOptions
from rl.view.progress import Progress
from rollout.problem_memory import Record
from rollout.problems import load_problems
from rollout.records import Problem
from tests.rl.test_loop import odd_lengths, options


def written(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def profiled(problem: Problem, graded: int = 8, correct: int = 2) -> Profiled:
    return Profiled(problem=problem, record=Record(graded=graded, correct=correct))


def test_the_census_of_a_data_set_is_a_data_set_for_a_run(
    model: Path, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its problems are the data set's, held-out ones too, and the run draws none outside of its difficulty."""
    monkeypatch.setattr(MathVerifier, "verify_batch", odd_lengths)
    monkeypatch.setattr(rl.command.census, "AT_ONCE", 16)
    out = tmp_path / "census.jsonl"
    given = ["--model", str(model), "--dataset", str(digits), "--samples", "4", "--max-tokens", "8", "--device", "cpu"]
    app.cli(prog="plumbline", args=["census", *given, "--prompt-style", "plain", "--out", str(out)])
    assert "60 problems, solved in" in capsys.readouterr().out
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert {row["samples"] for row in rows} == {4}
    assert {row["pass_rate"] for row in rows} <= {0, 0.25, 0.5, 0.75, 1} and len({row["pass_rate"] for row in rows}) > 2
    before, after = load_problems(str(digits)), load_problems(str(out))
    assert [(p.id, p.messages, p.reference) for p in after] == [(p.id, p.messages, p.reference) for p in before]
    rates = {row["id"]: row["pass_rate"] for row in rows}
    run_dir = train(options(model, out, tmp_path / "run", difficulty="0.25:0.75", num_steps=2))
    drawn = {json.loads(line)["problem_id"] for line in (run_dir / "completions.jsonl").read_text().splitlines()}
    training, _ = split_held_out(after, 10)
    assert drawn <= {p.id for p in training if 0.25 <= rates[p.id] <= 0.75} and len(drawn) == 8


def test_a_census_is_the_same_however_many_problems_are_sampled_at_once(
    model: Path, digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MathVerifier, "verify_batch", odd_lengths)
    given = CensusOptions(model=str(model), dataset=str(digits), samples=3, size=9, max_tokens=6, device="cpu")
    whole = take_census(given, Progress(0, quiet=True))
    monkeypatch.setattr(rl.command.census, "AT_ONCE", 2)
    assert take_census(given, Progress(0, quiet=True)) == whole and len(whole) == 9


SYSTEM = {"role": "system", "content": "Be brief."}
PROGRAM = {"entry_point": "f", "tests": ["assert f(1) == 1"]}
PROBLEMS = [
    {"question": "1+1?", "answer": "so 2\n#### 2", "level": 3},
    {"question": "2+2?", "problem": "another", "answer": "\\boxed{4}", "id": "a"},
    {"prompt": [SYSTEM, {"role": "user", "content": "3+3?"}], "answer": 6},
    {"prompt": '{"role": "user", "content": "4+4?"}', "answer": "8"},
    {"prompt": "a puzzle", "verifier": "puzzle", "reference": {"kind": "x", "numbers": [1, 2]}},
    {"prompt": "a program", "verifier": "program", "reference": PROGRAM},
    {"prompt": "5+5?", "verifier": "math", "reference": "10", "answer": "it is ten"},
    {"prompt": "6+6?", "answer": "12", "system": "Be exact."},
]


@pytest.mark.parametrize("row", PROBLEMS, ids=lambda row: str(row.get("question", row.get("prompt")))[:20])
def test_a_problem_is_read_back_as_it_was(row: dict[str, Any], tmp_path: Path) -> None:
    """With the other columns of its row and its worked solution, from a file of its own and by the usual names of columns."""
    (before,) = load_problems(str(written(tmp_path / "before.jsonl", row)))
    (after,) = load_problems(str(written(tmp_path / "after.jsonl", as_row(profiled(before)))))
    for name in ("id", "messages", "reference", "verifier", "question"):
        assert getattr(after, name) == getattr(before, name)
    assert after.metadata["pass_rate"] == 0.25 and after.metadata["samples"] == 8
    kept = {"level", "worked", "system"} & before.metadata.keys()
    assert {name: after.metadata[name] for name in kept} == {name: before.metadata[name] for name in kept}


@pytest.mark.parametrize("name", ["arithmetic", "small-programs", "countdown"])
def test_built_in_problems_are_read_back(name: str, tmp_path: Path) -> None:
    before = load_problems(name)[:3]
    after = load_problems(str(written(tmp_path / "after.jsonl", *(as_row(profiled(p)) for p in before))))
    for one, other in zip(after, before, strict=True):
        assert (one.id, one.messages, one.reference, one.verifier) == (
            other.id,
            other.messages,
            json.loads(json.dumps(other.reference)),
            other.verifier,
        )


def test_what_could_not_be_graded_has_no_pass_rate() -> None:
    problem = Problem(id="a", prompt="?", reference="1")
    assert as_row(profiled(problem, 0, 0))["pass_rate"] is None
    found = [profiled(problem, 0, 0), profiled(problem, 8, 0), profiled(problem, 8, 8), profiled(problem, 8, 2)]
    lines = describe([*found, found[-1]], 8).splitlines()
    assert [line.split()[:-1] for line in lines if "#" in line] == [
        ["never", "1", "25.0%"],
        ["25%", "2", "50.0%"],
        ["always", "1", "25.0%"],
    ]
    assert lines[10] == "4 problems, solved in 37.5% of the samples"
    assert lines[11].startswith("1 more have no sample that could be graded")


def test_each_pass_rate_of_few_samples_has_a_bin_and_those_of_many_samples_share_tenths() -> None:
    assert [nearest_bin(k / 8, 8) for k in range(9)] == [*range(9)]
    assert [nearest_bin(k / 64, 10) for k in (0, 1, 9, 32, 63, 64)] == [0, 1, 1, 5, 9, 10]
    assert [nearest_bin(rate, 1) for rate in (0.0, 1.0)] == [0, 1]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"samples": 0}, "samples is 0: it must be at least 1"),
        ({"out": Path("census.json")}, r"out is 'census.json': it must end in .jsonl"),
        ({"out": Path("/no/folder/x.jsonl")}, r"there is no folder '/no/folder'"),
        ({"temperature": 0.0}, "temperature is 0.0: it must be more than 0"),
    ],
)
def test_options_that_cannot_be_are_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        CensusOptions(model="tiny", dataset="arithmetic", **changed)
