"""Runs with reward functions, where features cross: groups, resume, sampling ahead, LoRA, evaluation of the checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rewards.errors import UserError
from rl.command.evaluate_model import evaluate_model
from rl.run.loop import Interrupted, train
from rl.settings.config import RunConfig
from rl.settings.options import EvaluateOptions
from rl.view.metrics import read_metrics
from rl.view.progress import Progress
from tests.rl.test_loop import interrupt_at, measured, options

REWARDS = """
def even(completion, size): return len(completion) % 2 == size % 2
def longest(completions): return [len(c) == max(map(len, completions)) for c in completions]
async def some(completion): return None if len(completion) % 3 == 0 else 0.5
def nothing(completion): return None
def breaks_later(completion, size):
    if len(completion) % 2: raise RuntimeError("half of them")
    return True
"""
SUM = ("rewards.py:even", "rewards.py:longest=0.5", "rewards.py:some=0.1")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "rewards.py").write_text(REWARDS)
    rows = [{"prompt": f"{n}+{n}", "size": n} for n in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def config_of(model: Path, name: str, **given: Any) -> RunConfig:
    return options(model, Path("rows.jsonl"), Path(name), **{"reward": SUM, "eval_size": 4, **given})


def run(model: Path, name: str, **given: Any) -> Path:
    return train(config_of(model, name, **given))


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"one_step_ahead": True},
        {"reward_normalization": "each"},
        {"lora_rank": 2, "algorithm": "dr-grpo"},
        {"algorithm": "ppo", "value": "shared"},
    ],
    ids=lambda more: "-".join(map(str, more.values())) or "grpo",
)
def test_a_run_with_three_rewards_resumes_bit_equal(model: Path, more: dict[str, Any]) -> None:
    more = {"num_steps": 4, "save_every": 1, **more}
    run(model, "whole", **more)
    with pytest.raises(Interrupted):
        interrupt_at(2, config_of(model, "apart", **more))
    run(model, "apart", **more, resume=True)
    assert measured(Path("apart")) == measured(Path("whole"))
    rows = [json.loads(line) for line in Path("whole/completions.jsonl").read_text().splitlines()]
    assert {"some" in row["parts"] for row in rows} == {True, False}  # a reward that is None is left out of the sum
    for row in rows:
        assert {"even", "longest"} <= row["parts"].keys()
        assert row["value"] == pytest.approx(
            row["parts"]["even"] + 0.5 * row["parts"]["longest"] + 0.1 * row["parts"].get("some", 0.0)
        )


def test_a_checkpoint_is_evaluated_by_the_rewards_of_its_run(model: Path) -> None:
    folder = run(model, "run", num_steps=2, reward=("rewards.py:even", "rewards.py:longest=0.5"))
    (checkpoint,) = sorted((folder / "checkpoints").glob("step-*"))[-1:]
    with Progress(0) as progress:
        found = evaluate_model(EvaluateOptions(model=str(checkpoint)), progress)
    (*_, last) = read_metrics(folder)
    assert found["greedy reward"].mean == pytest.approx(last["eval/reward"])
    assert found["greedy accuracy"].mean == last["eval/accuracy"]


def test_a_step_without_any_graded_answer_stops_the_run(model: Path) -> None:
    with pytest.raises(UserError, match="reward returned None for all"):
        run(model, "run", num_steps=1, reward=("rewards.py:nothing",))


def test_a_reward_that_fails_too_often_stops_the_run_with_examples(model: Path) -> None:
    with pytest.raises(
        UserError, match=r"max_unjudged is 0\.1(.|\n)*RuntimeError: half of them \(rewards\.py, line 7\)"
    ):
        run(model, "run", num_steps=1, reward=("rewards.py:breaks_later",), max_unjudged=0.1)


def test_another_reward_on_resume_is_refused(model: Path) -> None:
    run(model, "run", num_steps=1)
    with pytest.raises(UserError, match="reward"):
        run(model, "run", num_steps=2, reward=("rewards.py:even",), resume=True)
