"""Runs that learn from a reward model: where it is loaded, trained, saved and shared out, and where it is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from rewards.errors import UserError
from rewards.math_answer import MathVerifier
from rl.cli import app
from rl.processes.runtime import Runtime
from rl.run.build_learner import build_reward_model
from rl.run.loop import train
from rl.run.setup import require_shardable
from rl.settings.config import RunConfig
from rl.settings.resolve import resolve
from rl.view.metrics import read_metrics
from tests.rl.test_checkpoint import assert_equal_runs, resumed
from tests.rl.test_loop import final_weights, measured, odd_lengths, options
from tests.rl.test_process_rewards import sums, writer  # noqa: F401  fixtures
from tests.rl.test_processes import train_by
from tests.rl.test_reward_model import scorer, step_scorer, with_head  # noqa: F401  fixtures

FOLDER = "reward-model"


@pytest.fixture(autouse=True)
def _rules(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rules by which an untaught model is right half of the time."""
    monkeypatch.setattr(MathVerifier, "verify_batch", odd_lengths)


@pytest.fixture
def trains(model: Path, digits: Path, scorer: Path, tmp_path: Path) -> Any:  # noqa: F811
    """Options of a run in a folder of this name, whose completions have several lengths."""

    def make(name: str, **changed: Any) -> RunConfig:
        usual = {"reward_model": str(scorer), "stop_strings": ("1", "2", "3"), "schedule": "constant", "save_every": 1}
        usual |= {"eval_size": 4, "eval_every": 1, "problems_per_step": 3}
        return options(model, digits, tmp_path / name, **{**usual, **changed})

    return make


def trained_model(run: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / f"step-{step:06d}" / FOLDER / "model.safetensors")


def test_rewards_are_the_models_and_accuracy_the_rules(trains: Any) -> None:
    run = train(trains("run"))
    written = [json.loads(line) for line in (run / "completions.jsonl").read_text().splitlines()]
    for row in read_metrics(run)[1:]:
        of_step = [line for line in written if line["step"] == row["step"]]
        assert {line["value"] == line["parts"]["reward_model"] for line in of_step} == {True}
        right = [line["outcome"] == "correct" for line in of_step]
        assert row["accuracy/sampled"] == pytest.approx(sum(right) / len(right))
        assert row["reward/mean"] == pytest.approx(row["part/reward_model"], rel=1e-5)
        scores = {
            kind: [x["value"] for x, ok in zip(of_step, right, strict=True) if ok is kind] for kind in (True, False)
        }
        pairs = [(a > b) + (a == b) / 2 for a in scores[True] for b in scores[False]]
        assert row["reward_model/auc"] == pytest.approx(sum(pairs) / len(pairs))
    assert not (run / "checkpoints/step-000003" / FOLDER).exists()
    held_out = [row["eval/reward"] for row in read_metrics(run) if "eval/reward" in row]
    assert all(reward in [n / 4 for n in range(5)] for reward in held_out)  # the rules' 0 and 1 of four problems


def test_with_weight_0_a_reward_model_is_measured_and_changes_nothing(trains: Any) -> None:
    """Below 1 the rules count: the weights are those of the run without a reward model, bit by bit."""
    with_it, without = train(trains("with", reward_model_weight=0.0)), train(trains("without", reward_model=None))
    ours, theirs = final_weights(with_it, 3), final_weights(without, 3)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert "part/reward_model" in read_metrics(with_it)[1] and "part/reward_model" not in read_metrics(without)[1]


@pytest.mark.parametrize(
    ("last", "changed"),
    [
        (4, {"algorithm": "grpo-iterative", "reward_model_replay": 0.5}),
        (2, {"algorithm": "ppo", "lora_rank": 4}),
        (2, {"algorithm": "dapo", "one_step_ahead": True}),
    ],
    ids=str,
)
def test_a_run_goes_on_to_the_bit_within_an_iteration(last: int, changed: dict[str, Any], trains: Any) -> None:
    """The reward model is trained after every second step, and the run goes on from one step before the last training. Weights, moments
    and examples are those of the run that went through, and so is all that follows."""
    iterative = {"reward_model_every": 2, "num_steps": last, **changed}
    whole, config = train(trains("whole", **iterative)), trains("again", **iterative)
    shutil.copytree(whole, config.run_dir)
    shutil.rmtree(config.run_dir / f"checkpoints/step-{last:06d}")
    train(resumed(config))
    assert_equal_runs(config.run_dir, whole, last)
    for name in ("model.safetensors", "optimizer.pt", "examples.jsonl"):
        ours, theirs = (run / f"checkpoints/step-{last:06d}" / FOLDER / name for run in (config.run_dir, whole))
        if name == "optimizer.pt":
            a, b = (torch.load(path, weights_only=True)["state"] for path in (ours, theirs))
            assert a and all(torch.equal(a[i][key], b[i][key]) for i in b for key in b[i])
        else:
            assert ours.read_bytes() == theirs.read_bytes()
    losses = {row["step"]: row.get("reward_model/loss") for row in read_metrics(whole)}
    assert [step for step, loss in losses.items() if loss is not None] == [2, 4][: last // 2]
    before, after = trained_model(whole, last - 1), trained_model(whole, last)
    assert not torch.equal(before["score.weight"], after["score.weight"])


def test_a_trained_reward_model_is_one_to_start_from(trains: Any) -> None:
    """In the folder that a checkpoint has of it. Its own context, tokenizer and weights are read."""
    first = train(trains("first", reward_model_every=1, num_steps=1))
    folder = first / "checkpoints/step-000001" / FOLDER
    second = train(trains("second", reward_model=str(folder), num_steps=1))
    assert read_metrics(second)[1]["part/reward_model"] != read_metrics(first)[1]["part/reward_model"]


@pytest.mark.parametrize(
    "changed", [{"algorithm": "grpo"}, {"algorithm": "ppo", "lora_rank": 4}], ids=lambda of: of["algorithm"]
)
def test_two_processes_make_the_run_of_one(changed: dict[str, Any], trains: Any) -> None:
    """Three problems of which one process has two. Each scores its own; both together make the gradient of the reward model. Scores are
    rounded in other batches, which AdamW, whose step is 1e-4 here, makes up to a tenth of a step of."""
    given = {"reward_model_every": 2, "learning_rate": 1e-4, "reward_model_learning_rate": 1e-4, **changed}
    one, two = trains("one", **given), trains("two", **given)
    train(one)
    train_by(2, two)
    for a, b in zip(measured(one.run_dir), measured(two.run_dir), strict=True):
        assert a.keys() == b.keys()
        for key in (
            "reward/mean",
            "part/reward_model",
            "reward_model/auc",
            "reward_model/loss",
            "reward_model/examples",
        ):
            if key in a:
                assert b[key] == pytest.approx(a[key], rel=1e-3), key
    x, y = trained_model(one.run_dir, 3), trained_model(two.run_dir, 3)
    assert max((x[name] - y[name]).abs().max() for name in x) < 1e-5
    x, y = final_weights(one.run_dir, 3), final_weights(two.run_dir, 3)
    assert max((x[name] - y[name]).abs().max() for name in x) < 1e-5


def test_steps_are_learnt_from(writer: Path, sums: Path, tmp_path: Path) -> None:  # noqa: F811
    """The advantages are of the model's scores: the weights become other ones than by the rules' scores of the steps."""
    folder = with_head(writer, tmp_path / "steps", num_labels=2, tokenizer=writer)
    usual = {"algorithm": "grpo-process", "num_steps": 1, "group_size": 8, "eval_size": 2}
    runs = {
        name: train(options(writer, sums, tmp_path / name, reward_model=scored_by, **usual, **changed))
        for name, scored_by, changed in (
            ("model", str(folder), {}),
            ("rules", None, {}),
            ("measured", str(folder), {"reward_model_weight": 0.0}),
        )
    }
    model, rules, measured_only = (final_weights(run, 1) for run in runs.values())
    (name, *_) = (name for name in model if "q_proj.weight" in name)
    assert not torch.equal(model[name], rules[name]) and torch.equal(measured_only[name], rules[name])
    row = read_metrics(runs["model"])[1]
    assert row["reward/mean"] == row["accuracy/sampled"] and 0 < (row["part/reward_model"] or 0) < 1


def test_a_checkpoint_is_evaluated_without_the_reward_model(trains: Any, scorer: Path, tmp_path: Path) -> None:  # noqa: F811
    moved = tmp_path / "moved"
    shutil.copytree(scorer, moved)
    run = train(trains("run", reward_model=str(moved), reward_model_every=1, num_steps=1))
    shutil.rmtree(moved)
    checkpoint, out = run / "checkpoints/step-000001", tmp_path / "found.json"
    app.cli(prog="plumbline", args=["evaluate", str(checkpoint), "--out", str(out), "--device", "cpu"])
    assert json.loads(out.read_text())["greedy accuracy"]["mean"] == read_metrics(run)[-1]["eval/accuracy"]


def test_a_frozen_reward_model_may_wait_in_the_hosts_memory(trains: Any) -> None:
    """It scores as one that stays."""
    offloaded, stays = train(trains("offloaded", offload="reference", num_steps=1)), train(trains("stays", num_steps=1))
    assert measured(offloaded) == measured(stays)


def test_scores_that_are_no_numbers_end_the_run(trains: Any, scorer: Path, tmp_path: Path) -> None:  # noqa: F811
    """The head's weights are finite, and its products overflow."""
    huge = tmp_path / "huge"
    shutil.copytree(scorer, huge)
    made = AutoModelForSequenceClassification.from_pretrained(huge)
    with torch.no_grad():
        made.score.weight.fill_(3e38)
    made.save_pretrained(huge)
    with pytest.raises(
        UserError, match=r"12 of 12 answers of this step were unparsed(.|\n)*crashed: the reward model gave (nan|-?inf)"
    ):
        train(trains("run", reward_model=str(huge)))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"reward_model": None, "reward_model_weight": 0.5}, "reward_model_weight is 0.5: there is no reward model"),
        ({"reward_model": None, "reward_model_every": 5}, "reward_model_every is 5: there is no reward model"),
        ({"reward_model_replay": 0.2}, "reward_model_replay is 0.2: the reward model is not trained"),
        ({"reward_model_learning_rate": 0.2}, "reward_model_learning_rate is 0.2: the reward model is not trained"),
        ({"reward_model_replay": 1.0, "reward_model_every": 5}, r"reward_model_replay is 1.0: it must be in \[0, 1\)"),
        ({"algorithm": "sft"}, "reward_model is 'm': sft does not learn from scores"),
        ({"algorithm": "rft"}, "reward_model is 'm': rft does not learn from scores"),
        ({"algorithm": "distill", "teacher": "t"}, "reward_model is 'm': distill does not learn from scores"),
        ({"tools": ("python",)}, r"tools is \('python',\): a reward model reads a question and one answer"),
        ({"environment": ("a:B",)}, r"environment is \('a:B',\): a reward model reads a question and one answer"),
        ({"reward": ("math", "boxed"), "reward_normalization": "each"}, "reward_model is 'm': reward_normalization 'each'"),
        ({"format": ("boxed",)}, "reward_model is 'm': it is the whole reward, and format"),
    ],
    ids=str,
)  # fmt: skip
def test_options_that_do_not_go_together_are_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        RunConfig(**{"algorithm": "grpo", "reward_model": "m", **changed})
    assert "\n" not in str(raised.value)


def test_a_function_must_not_have_the_name_of_the_models_part(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("def reward_model(answer):\n    return 1\n")
    with pytest.raises(
        UserError, match=r"reward is .*: the score's part reward_model is the reward model's; give the function"
    ):
        RunConfig(reward_model="m", reward=(f"{tmp_path}/own.py:reward_model",))


def test_format_rules_count_beside_a_reward_model_that_is_not_alone() -> None:
    assert RunConfig(reward_model="m", reward_model_weight=0.5, format=("boxed",)).format == ("boxed",)


def test_a_model_of_steps_needs_an_algorithm_with_steps_and_labels_of_steps(step_scorer: Path) -> None:  # noqa: F811
    runtime, name = Runtime.start(dtype="float32", device="cpu"), str(step_scorer)
    for changed, message in (
        ({"algorithm": "grpo"}, f"reward_model is '{name}': it scores steps, and grpo has none; use grpo-process"),
        ({"algorithm": "grpo-process", "reward_model_every": 5}, f"reward_model_every is 5: '{name}' scores steps"),
    ):
        with pytest.raises(UserError, match=message):
            build_reward_model(resolve(RunConfig(reward_model=name, **changed), "cpu"), runtime)  # pyright: ignore


def test_sharded_weights_have_no_reward_model() -> None:
    settings = resolve(RunConfig(algorithm="grpo", reward_model="m"), "cpu", shards=True)
    with pytest.raises(UserError, match="reward_model is 'm': it is unavailable with weights that FSDP2 shards"):
        require_shardable(settings)
