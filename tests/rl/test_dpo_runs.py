"""Runs of dpo and online-dpo: preferences between completions of the current policy, or of the one at the start."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from rewards.errors import UserError
from rl.run.loop import train
from rl.settings.config import RunConfig
from rl.view.metrics import read_metrics
from tests.rl.test_processes import train_by
from tests.rl.test_teacher import config, same, weights

SOME: dict[str, Any] = {"algorithm": "online-dpo", "group_size": 4, "problems_per_step": 4}


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A reward for each of the answer's digits below 5, which the untaught model writes more and fewer of."""
    file = tmp_path / "small.py"
    file.write_text("def small(completion: str) -> float:\n    return float(sum(c in '01234' for c in completion))\n")
    return file


@pytest.mark.parametrize("algorithm", ["dpo", "online-dpo"])
def test_a_run_learns_from_pairs_and_goes_on_to_the_bit(
    algorithm: str, model: Path, digits: Path, small: Path, tmp_path: Path
) -> None:
    usual = {**SOME, "algorithm": algorithm, "reward": (f"{small}:small",), "save_every": 1, "num_minibatches": 2}
    usual |= {"schedule": "constant"}
    train(config(model, digits, tmp_path / "whole", **usual))
    train(config(model, digits, tmp_path / "halves", **usual, num_steps=1))
    train(config(model, digits, tmp_path / "halves", **usual, resume=True))
    assert same(weights(tmp_path / "halves"), weights(tmp_path / "whole"))
    rows = read_metrics(tmp_path / "whole")[1:]
    kl = "kl/from_start" if algorithm == "dpo" else "kl/reference"
    assert min(row["grad_norm"] for row in rows) > 0 and rows[-1][kl] > 0
    assert rows[0]["preference/loss"] == pytest.approx(math.log(2), abs=0.05)


def test_two_processes_learn_what_one_learns(model: Path, digits: Path, small: Path, tmp_path: Path) -> None:
    """Pairs are compared in the process that has their group; float32 sums in another order change weights by less than 1e-5."""
    for count in (1, 2):
        run = config(
            model, digits, tmp_path / str(count), **SOME, reward=(f"{small}:small",), num_steps=1, token_budget=32
        )
        train_by(count, run)
    one, two = (weights(tmp_path / str(count), 1) for count in (1, 2))
    assert max((one[name] - two[name]).abs().max().item() for name in one) < 1e-5


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"algorithm": "grpo", "dpo_beta": 0.5}, "dpo_beta is 0.5: grpo has no preferences; leave it out, or use dpo"),
        ({"algorithm": "dpo", "dpo_beta": 0.0}, "dpo_beta is 0.0: it must be from 1e-6 to 1e6"),
        ({"algorithm": "dpo", "group_size": 1}, "group_size is 1: it must be at least 2 for dpo"),
        ({"algorithm": "dpo", "dpo_beta": 1e39}, "dpo_beta is 1e\\+39: it must be from 1e-6 to 1e6"),
        (
            {"algorithm": "dpo", "kl_weight": 0.1},
            "kl_weight is 0.1: dpo trains on completions that are not the current",
        ),
        (
            {"algorithm": "rft", "kl_weight": 0.1},
            "kl_weight is 0.1: rft trains on completions that are not the current",
        ),
        ({"algorithm": "dpo", "teacher": "m"}, "teacher is 'm': the loss of dpo has no place for a teacher"),
        ({"algorithm": "online-dpo", "one_step_ahead": True}, "one_step_ahead is True: online-dpo has no importance"),
        ({"algorithm": "dpo", "clip_high": 0.3}, "clip_high is 0.3: dpo has no ratio to clip"),
    ],
)
def test_what_has_no_effect_is_told(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        RunConfig(model="m", **changed)
