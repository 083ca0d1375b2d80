"""A teacher scores the policy's own samples: alone (distill) or beside the rewards."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from rewards.errors import UserError
from rl.run.loop import train
from rl.run.tiny import tiny_model, tiny_tokenizer
from rl.settings.config import RunConfig
from rl.view.metrics import read_metrics
from tests.rl.test_processes import train_by


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another untaught model with the policy's tokenizer."""
    folder, tokenizer = tmp_path_factory.mktemp("teacher"), tiny_tokenizer()
    tiny_model(tokenizer, seed=5, device=torch.device("cpu")).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def config(model: Path, digits: Path, run: Path, **changed: Any) -> RunConfig:
    usual: dict[str, Any] = {
        "algorithm": "distill",
        "num_steps": 2,
        "problems_per_step": 4,
        "group_size": 2,
        "max_tokens": 6,
        "eval_size": 4,
        "warmup_steps": 0,
        "learning_rate": 1e-3,
        "answer_form": "text",
    }
    return RunConfig(**{**usual, **changed}, model=str(model), dataset=(str(digits),), device="cpu", run_dir=run)


def weights(run: Path, step: int = 2) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / f"step-{step:06d}" / "model.safetensors")


def same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize(
    "changed", [{}, {"dtype": "bfloat16", "head_dtype": "float32"}], ids=["float32", "float32-head"]
)
def test_of_itself_a_policy_has_nothing_to_learn(
    changed: dict[str, Any], model: Path, digits: Path, tmp_path: Path
) -> None:
    """log p_teacher - b is what float32 rounds, and a group of one is enough. In bfloat16 both round alike."""
    train(config(model, digits, tmp_path / "run", teacher=str(model), group_size=1, num_steps=1, **changed))
    (row,) = [row for row in read_metrics(tmp_path / "run") if row["step"] == 1]
    assert abs(row["kl/teacher"]) < 1e-5 and row["grad_norm"] < 1e-4
    assert row["tokens/trained"] > 0


def test_the_policy_comes_closer_to_its_teacher(model: Path, teacher: Path, digits: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(config(model, digits, run, teacher=str(teacher), num_steps=12, problems_per_step=16))
    found = [row["kl/teacher"] for row in read_metrics(run) if row["step"] > 0]
    assert found[0] > 0.3  # nats per token between two random models
    assert sum(found[-3:]) / 3 < 0.7 * found[0]


def test_without_groups_that_differ_rewards_alone_change_nothing_and_a_teacher_does(
    model: Path, teacher: Path, digits: Path, tmp_path: Path
) -> None:
    """An untaught model is never right: every group of plain is silent."""
    for name, changed in {"plain": {}, "taught": {"teacher": str(teacher), "teacher_weight": 0.5}}.items():
        train(config(model, digits, tmp_path / name, algorithm="plain", **changed, num_steps=1))
    first = load_file(model / "model.safetensors")
    assert same(weights(tmp_path / "plain", 1), first)
    assert not same(weights(tmp_path / "taught", 1), first)


def test_a_run_with_a_teacher_goes_on_to_the_bit(model: Path, teacher: Path, digits: Path, tmp_path: Path) -> None:
    usual = {"teacher": str(teacher), "save_every": 1, "schedule": "constant"}
    train(config(model, digits, tmp_path / "whole", **usual))
    train(config(model, digits, tmp_path / "halves", **usual, num_steps=1))
    train(config(model, digits, tmp_path / "halves", **usual, resume=True))
    assert same(weights(tmp_path / "halves"), weights(tmp_path / "whole"))


def test_two_processes_learn_what_one_learns(model: Path, teacher: Path, digits: Path, tmp_path: Path) -> None:
    """The gradients of one step; float32 sums in another order change weights near 0.1 by less than 1e-5."""
    for count in (1, 2):
        train_by(count, config(model, digits, tmp_path / str(count), teacher=str(teacher), num_steps=1))
    one, two = (weights(tmp_path / str(count), 1) for count in (1, 2))
    assert max((one[name] - two[name]).abs().max().item() for name in one) < 1e-5
    assert json.loads((tmp_path / "2" / "config.json").read_text())["teacher"] == str(teacher)


def test_a_teacher_of_another_tokenizer_is_refused(model: Path, digits: Path, tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(("another",))
    folder = tmp_path / "other"
    tiny_model(tokenizer, seed=5, device=torch.device("cpu")).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    with pytest.raises(UserError, match=r"teacher is '.*other': its tokenizer has other tokens than the policy's"):
        train(config(model, digits, tmp_path / "run", teacher=str(folder)))


@pytest.mark.parametrize(
    ("option", "algorithm"), [("teacher", "distill"), ("critic_model", "ppo-separate")], ids=["teacher", "critic"]
)
def test_a_context_that_is_too_short_is_refused(
    option: str, algorithm: str, model: Path, teacher: Path, digits: Path, tmp_path: Path
) -> None:
    """The longest prompt, such as 59+59=, has 7 tokens with the line break behind it, and a completion 6."""
    folder = shutil.copytree(teacher, tmp_path / "short")
    sizes = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**sizes, "max_position_embeddings": 12}))
    with pytest.raises(UserError, match=rf"{option} is '.*short': its context is 12, and the longest prompt .* has 13"):
        train(config(model, digits, tmp_path / "run", algorithm=algorithm, **{option: str(folder)}))


@pytest.mark.parametrize("option", ["teacher", "critic_model"])
def test_a_model_that_is_not_there_is_one_message(option: str, model: Path, digits: Path, tmp_path: Path) -> None:
    others: dict[str, Any] = {"critic_model": {"algorithm": "ppo-separate"}}.get(option, {})
    with pytest.raises(UserError, match=rf"{option} is '/no/such': there is no such folder"):
        train(config(model, digits, tmp_path / "a", **others, **{option: "/no/such"}))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=rf"{option} is '.*empty': its config.json cannot be read"):
        train(config(model, digits, tmp_path / "b", **others, **{option: str(tmp_path / "empty")}))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"algorithm": "distill"}, "teacher is not given: distill learns from a teacher; name one with --teacher"),
        ({"algorithm": "sft", "teacher": "m"}, "teacher is 'm': the loss of sft has no place"),
        (
            {"algorithm": "rft", "teacher": "m"},
            "teacher is 'm': the loss of rft has no place for a teacher; leave it out, or use one of cispo",
        ),
        ({"algorithm": "plain", "teacher_weight": 0.5}, "teacher_weight is 0.5: there is no teacher"),
        (
            {"algorithm": "plain", "teacher": "m", "teacher_weight": 0.0},
            "teacher_weight is 0.0: it must be more than 0",
        ),
    ],
)
def test_what_has_no_effect_is_told(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        RunConfig(model="m", **changed)
