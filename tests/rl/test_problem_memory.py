"""Runs with a mix of data sets, and runs that remember the pass rates of their problems."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rewards.errors import UserError
from rewards.math_answer import MathVerifier
from rewards.score import Outcome, Score
from rl.run.checkpoint import checksum
from rl.run.loop import Interrupted, train
from rl.settings.config import RunConfig
from rl.view.metrics import read_metrics
from tests.rl.test_checkpoint import assert_equal_runs, resumed
from tests.rl.test_loop import interrupt_at, odd_lengths, options
from tests.rl.test_processes import assert_same_run, train_by

GROUP = 4


@pytest.fixture(autouse=True)
def _odd_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MathVerifier, "verify_batch", odd_lengths)


def visits(run_dir: Path) -> list[tuple[int, str, list[str]]]:
    """(step, problem, outcomes) of each group in the order of completions.jsonl."""
    rows = [json.loads(line) for line in (run_dir / "completions.jsonl").read_text().splitlines()]
    groups = [rows[i : i + GROUP] for i in range(0, len(rows), GROUP)]
    assert all(len({row["problem_id"] for row in group}) == 1 for group in groups)
    return [(g[0]["step"], g[0]["problem_id"], [row["outcome"] for row in g]) for g in groups]


def remembered(run_dir: Path, step: int) -> dict[str, dict[str, Any]]:
    lines = (run_dir / "checkpoints" / f"step-{step:06d}" / "pass_rates.jsonl").read_text().splitlines()
    return {row.pop("id"): row for row in map(json.loads, lines)}


def test_a_run_remembers_the_pass_rate_of_each_problem(model: Path, digits: Path, tmp_path: Path) -> None:
    """Of 10 problems in 5 steps of 4, every count and last rate is that of completions.jsonl."""
    run_dir = train(options(model, digits, tmp_path / "run", eval_size=50, num_steps=5))
    expected: dict[str, dict[str, Any]] = {}
    for _, name, outcomes in visits(run_dir):
        correct = outcomes.count("correct")
        before = expected.get(name, {"graded": 0, "correct": 0})
        counts = {"graded": before["graded"] + GROUP, "correct": before["correct"] + correct}
        expected[name] = {**counts, "rate": correct / GROUP}
    assert remembered(run_dir, 5) == expected and len(expected) == 10
    rows = read_metrics(run_dir)[1:]
    assert [(row["problems/drawn"], row["problems/left"]) for row in rows] == [(4, 10), (8, 10), *[(10, 10)] * 3]


MIXED: list[dict[str, object]] = [
    {"algorithm": "grpo"},
    {"algorithm": "dapo", "max_refills": 1},
    {"algorithm": "grpo", "one_step_ahead": True},
    {"algorithm": "dapo", "max_refills": 1, "one_step_ahead": True},
]


@pytest.fixture
def even_and_odd(tmp_path: Path) -> tuple[str, str]:
    """Two data sets of 30 problems each, twice as many draws from the first."""
    for name, rest in (("even", 0), ("odd", 1)):
        rows = [{"question": f"{i}+{i}=", "answer": f"{2 * i}"} for i in range(rest, 60, 2)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"{tmp_path}/even.jsonl=2", f"{tmp_path}/odd.jsonl=1"


@pytest.mark.parametrize("changed", MIXED, ids=lambda c: "-".join(map(str, c.values())))
def test_a_resumed_run_with_a_mix_and_a_memory_equals_one_that_was_not_interrupted(
    changed: dict[str, object], model: Path, even_and_odd: tuple[str, str], tmp_path: Path
) -> None:
    """Problems are drawn several times and some are mastered, so that every draw depends on the memory. SIGINT in step 3 of 6."""
    usual = {"eval_size": 40, "num_steps": 6, "drop_mastered": 0.25, "eval_every": 6, "schedule": "constant", **changed}
    whole = options(model, Path(), tmp_path / "whole", **{**usual, "dataset": even_and_odd})
    train(whole)
    assert (read_metrics(tmp_path / "whole")[-1]["problems/mastered"] or 0) > 0
    counts = Counter(Path(name.partition(":")[0]).stem for _, name, _ in visits(tmp_path / "whole")[:12])
    assert counts == {"even": 8, "odd": 4}
    parted = replace(whole, run_dir=tmp_path / "parted")
    with pytest.raises(Interrupted, match="saved after step 3"):
        interrupt_at(3, parted)
    train(resumed(parted))
    last = int(read_metrics(tmp_path / "whole")[-1]["step"] or 0)
    assert_equal_runs(tmp_path / "parted", tmp_path / "whole", last)
    assert remembered(tmp_path / "parted", last) == remembered(tmp_path / "whole", last)


@pytest.mark.parametrize("changed", MIXED, ids=lambda c: "-".join(map(str, c.values())))
def test_a_mastered_problem_is_never_drawn_again_in_a_run(
    changed: dict[str, object], model: Path, digits: Path, tmp_path: Path
) -> None:
    """Not in a later round of the same step either, and one step ahead not in the next step: its problems are drawn when the
    completions of this one are graded."""
    config = options(
        model, digits, tmp_path / "run", eval_size=36, num_steps=9, drop_mastered=0.25, eval_every=9, **changed
    )
    run_dir = train(config)
    rounds: list[list[tuple[str, bool]]] = []
    for number, (_, name, outcomes) in enumerate(visits(run_dir)):
        if number % 4 == 0:  # problems_per_step are drawn at once
            rounds.append([])
        rounds[-1].append((name, "correct" in outcomes))
    mastered: set[str] = set()
    for drawn in rounds:
        assert not mastered & {name for name, _ in drawn}
        mastered |= {name for name, is_mastered in dict(drawn).items() if is_mastered}
    assert len(mastered) > 2 and read_metrics(run_dir)[-1]["problems/mastered"] == len(mastered)


def all_right(self: MathVerifier, answers: Sequence[str], references: Sequence[str]) -> list[Score]:
    return [Score(1.0, Outcome.CORRECT) for _ in answers]


@pytest.mark.parametrize("changed", MIXED, ids=lambda c: "-".join(map(str, c.values())))
def test_a_run_without_problems_left_ends_with_an_evaluation_a_checkpoint_and_a_message(
    changed: dict[str, object],
    model: Path,
    digits: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """10 problems in steps of 4, all mastered at once: GRPO ends after step 3; DAPO draws 8 in its first step."""
    monkeypatch.setattr(MathVerifier, "verify_batch", all_right)
    config = options(model, digits, tmp_path / "run", eval_size=50, num_steps=40, drop_mastered=0.9, **changed)
    last = 3 if changed["algorithm"] == "grpo" else 2
    for again in (config, resumed(config)):
        run_dir = train(again)
        said = " ".join(capsys.readouterr().out.split())
        assert f"drop_mastered is 0.9: no problem is left to draw after step {last} of 40, 10 are mastered" in said
        row = read_metrics(run_dir)[-1]
        assert (row["step"], row["problems/left"]) == (last, 0) and row["eval/accuracy"] is not None
    assert (run_dir / "report.html").exists() and (run_dir / "checkpoints" / f"step-{last:06d}").is_dir()
    drawn = Counter(name for _, name, _ in visits(run_dir))
    assert len(drawn) == 10 and drawn.total() == 12  # the last round of four had two problems left


@pytest.mark.parametrize("changed", MIXED[:1] + MIXED[3:], ids=lambda c: "-".join(map(str, c.values())))
def test_two_processes_remember_the_same(changed: dict[str, object], model: Path, digits: Path, tmp_path: Path) -> None:
    """Each samples half of the problems, and draws by the pass rates of all."""
    usual = {"eval_size": 40, "num_steps": 5, "drop_mastered": 0.25, "learning_rate": 1e-4, **changed}
    one = options(model, digits, tmp_path / "one", eval_every=5, **usual)
    train(one)
    train_by(2, RunConfig(**{**vars(one), "run_dir": tmp_path / "two"}))
    assert_same_run(tmp_path / "two", tmp_path / "one", 5)
    assert remembered(tmp_path / "two", 5) == remembered(tmp_path / "one", 5)
    assert (read_metrics(tmp_path / "one")[-1]["problems/mastered"] or 0) > 0


def test_where_no_problem_is_within_the_difficulty_the_run_does_not_begin(model: Path, tmp_path: Path) -> None:
    easy = tmp_path / "easy.jsonl"
    rows = [{"question": f"{i}+{i}=", "answer": f"{2 * i}", "pass_rate": 0.95} for i in range(60)]
    easy.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match=r"difficulty is '0.1:0.9': the pass_rate of each of the 50 training problems"):
        train(options(model, easy, tmp_path / "run", difficulty="0.1:0.9"))
    easy.write_text(easy.read_text().replace("0.95", "0.9", 25))
    run_dir = train(options(model, easy, tmp_path / "other", difficulty="0.1:0.9", num_steps=1))
    assert all(int(name) < 25 for _, name, _ in visits(run_dir))


def test_a_checkpoint_of_an_earlier_version_is_resumed_in_its_order(model: Path, digits: Path, tmp_path: Path) -> None:
    """It has the number of draws, and no pass rates."""
    config = options(model, digits, tmp_path / "run", num_steps=2, eval_every=4, schedule="constant")
    train(replace(config, run_dir=tmp_path / "whole", num_steps=4))
    train(config)
    folder = tmp_path / "run" / "checkpoints" / "step-000002"
    (folder / "pass_rates.jsonl").unlink()
    counters = json.loads((folder / "trainer.json").read_text())
    assert counters["cursor"] == {str(digits): {"drawn": 8, "cursor": 8}}
    (folder / "trainer.json").write_text(json.dumps({**counters, "cursor": 8}))
    sums = [line.split("  ") for line in (folder / "SHA256SUMS").read_text().splitlines()]
    kept = [(checksum(folder / name), name) for _, name in sums if name != "pass_rates.jsonl"]
    (folder / "SHA256SUMS").write_text("".join(f"{total}  {name}\n" for total, name in kept))
    train(resumed(replace(config, num_steps=4)))
    assert visits(tmp_path / "run") == visits(tmp_path / "whole")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"drop_mastered": 0.0}, r"drop_mastered is 0.0: it must be more than 0 and at most 1"),
        ({"drop_mastered": 90.0}, r"drop_mastered is 90.0: it must be more than 0"),
        ({"drop_mastered": 0.9, "algorithm": "sft"}, r"drop_mastered is 0.9: sft samples nothing"),
        ({"difficulty": "0.9:0.1"}, r"difficulty is '0.9:0.1': it must be two pass rates"),
    ],
)
def test_a_bound_that_cannot_be_is_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        RunConfig(**changed)
