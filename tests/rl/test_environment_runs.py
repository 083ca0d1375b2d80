"""Runs in environments, where features cross: resume, LoRA, PPO, two processes, evaluation of the checkpoint, classes from Python."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import plumbline
from rewards.errors import UserError
from rl.command.evaluate_model import evaluate_model
from rl.processes import runtime
from rl.run.build import with_environments
from rl.run.loop import Interrupted, train
from rl.settings.config import RunConfig
from rl.settings.options import EvaluateOptions
from rl.view.metrics import read_metrics
from rl.view.progress import Progress
from rollout import tool_rollout
from tests.rl.test_loop import interrupt_at, measured, options
from tests.rl.test_processes import train_in_two
from tests.rl.test_tool_runs import STOPS, TEMPLATE, calls_of_letters, one_of_two

GAME = '''
class Counts:
    def reset(self, prompt, size: int) -> str:
        self.size, self.said = size, 0
        return f" With {size}."

    def letters(self, text: str) -> str:
        """Counts letters.

        Args:
            text: The text.
        """
        self.said += len(text)
        return f"{len(text)} letters"

    def get_reward(self) -> float:
        return float(self.said % 3 == self.size % 3)

class Varies(Counts):
    """Each episode of a row begins with another word."""

    begun = 0

    def reset(self, size: int) -> str:
        super().reset("", size)
        Varies.begun += 1
        return " or" * (Varies.begun % 3) + " and"

class Unrewarded(Counts):
    get_reward = None

def mine(state, size): return float(state["said"] % 3 == size % 3)
'''


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "game.py").write_text(GAME)
    rows = [{"prompt": "How many?", "size": n} for n in range(40)]  # equal prompts, other rows
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "template.jinja").write_text(TEMPLATE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tool_rollout, "read_calls", calls_of_letters)
    return tmp_path


OWN: dict[str, Any] = {"chat_template": "template.jinja", "eval_size": 4, "max_tokens": 60, "max_turns": 3}
OWN |= {"tool_workers": 1, "stop_strings": STOPS}


def config_of(model: Path, name: str, **given: Any) -> RunConfig:
    own = {"environment": ("game.py:Counts",), **OWN, **given}
    return options(model, Path("rows.jsonl"), Path(name), **own)


@pytest.mark.parametrize(
    "more", [{}, {"lora_rank": 2}, {"algorithm": "ppo", "value": "shared"}], ids=["grpo", "lora", "ppo"]
)
def test_a_run_in_an_environment_resumes_bit_equal(
    model: Path, more: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On one core: where several threads decode, time decides which of them takes a later turn."""
    monkeypatch.setattr(runtime, "cpu_cores", lambda: 1)
    more = {"num_steps": 2, "save_every": 1, **more}
    train(config_of(model, "whole", **more))
    with pytest.raises(Interrupted):
        interrupt_at(1, config_of(model, "apart", **more))
    train(config_of(model, "apart", **more, resume=True))
    assert measured(Path("apart")) == measured(Path("whole"))
    (*_, last) = read_metrics(Path("whole"))
    assert last["tools/used"] is not None and last["tools/used"] > 0 and last["tools/end_failure"] == 0
    assert last["reward/mean"] is not None and 0 < last["reward/mean"] < 1
    assert last["mismatch/max"] is not None and last["mismatch/max"] < 3e-5  # as tests/rollout/sampler_contract.py
    rows = [json.loads(line) for line in Path("whole", "completions.jsonl").read_text().splitlines()]
    assert any(row["tool_use"]["calls"] and " letters" in row["conversation"] for row in rows)
    assert json.loads(Path("whole", "config.json").read_text())["reward"] == ["environment"]


@pytest.mark.parametrize(
    "more", [{}, {"lora_rank": 2}, {"algorithm": "ppo", "value": "shared"}], ids=["grpo", "lora", "ppo"]
)
def test_rollouts_of_a_group_may_begin_in_different_ways(model: Path, more: dict[str, Any]) -> None:
    """What each reads alone is scored as it was sampled: the trainer's log-probs are those of the engine."""
    train(config_of(model, "varied", environment=("game.py:Varies",), num_steps=1, **more))
    (*_, last) = read_metrics(Path("varied"))
    assert last["mismatch/max"] is not None and last["mismatch/max"] < 3e-5
    rows = [json.loads(line) for line in Path("varied", "completions.jsonl").read_text().splitlines()]
    said = {row["conversation"].partition("and\n")[0].strip() for row in rows}
    assert said == {"", "or", "or or"}


def test_two_processes_make_the_run_of_one(model: Path) -> None:
    train(config_of(model, "one", num_steps=1))
    train_in_two(one_of_two, config_of(model, "two", num_steps=1))
    one, two = (read_metrics(Path(name))[-1] for name in ("one", "two"))
    for name in ("reward/mean", "tools/calls", "tools/turns"):
        assert one[name] == two[name]


def test_a_checkpoint_is_evaluated_in_the_environment_of_its_run(model: Path) -> None:
    run_dir = train(config_of(model, "whole", num_steps=1))
    (checkpoint,) = (run_dir / "checkpoints").glob("step-*")
    found = evaluate_model(EvaluateOptions(model=str(checkpoint)), Progress(0, quiet=True))
    (*_, last) = read_metrics(run_dir)
    assert found["greedy accuracy"] is not None and found["greedy accuracy"].mean == last["eval/accuracy"]


class Own:
    """Of a program: neither its name nor its module can be imported by another one."""

    def reset(self, seed: int) -> str:
        self.seed = seed
        return f"Say something about {seed}."

    def letters(self, text: str) -> str:
        """Counts letters.

        Args:
            text: The text.
        """
        return str(len(text) + self.seed)

    def get_reward(self) -> float:
        return float(self.seed % 2)


@pytest.mark.parametrize("has_process", [False, True])
def test_a_class_of_a_program_plays_without_a_dataset(model: Path, has_process: bool) -> None:
    class Local(Own):
        own_process = has_process

    given: dict[str, Any] = {**OWN, "num_steps": 1, "problems_per_step": 4, "group_size": 2}
    run = plumbline.train(model=str(model), environment=Local, run_dir=Path("local"), prompt_style="plain", **given)
    assert run.metrics[-1]["reward/mean"] is not None
    rows = [json.loads(line) for line in Path("local", "completions.jsonl").read_text().splitlines()]
    assert all("Say something about" in row["prompt"] for row in rows)


NO_REWARD = "environment is 'game.py:Unrewarded': it has no get_reward, .*name another reward"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"environment": ("game.py:Absent",)}, "environment is 'game.py:Absent': no instance of it can be made"),
        ({"algorithm": "grpo-process"}, r"environment is \('game.py:Counts',\): grpo-process scores the steps"),
        ({"environment": ("a=game.py:Counts", "b=game.py:Counts")}, "problem '0' has the environment None"),
        ({"reward": ("game.py:absent",)}, "it has no function 'absent'"),
        (
            {"environment": (), "reward": ("environment",), "max_turns": 8, "tool_workers": 2},
            r"reward is \('environment',\): .*there is none; name one with",
        ),
        ({"environment": ("game.py:Unrewarded",), "reward": ("environment", "boxed")}, NO_REWARD),
        ({"environment": ("a=game.py:Counts", "b=game.py:Unrewarded")}, NO_REWARD),
        (
            {"environment": ("game.py:Unrewarded",)},
            "answer_column: .*, or, if the environment has no get_reward, add one",
        ),
        (
            {"thinking_budget": "5", "stop_strings": ()},
            "it bounds the thinking of one turn, and environment has several",
        ),
    ],
)
def test_mistakes_end_before_training(model: Path, more: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        train(config_of(model, "none", **more))


def test_a_reward_beside_get_reward_grades_an_environment_that_has_none() -> None:
    environment, reward = ("a=game.py:Counts", "b=game.py:Unrewarded"), ("game.py:mine",)
    options, environments = with_environments(EvaluateOptions(model="", environment=environment, reward=reward))
    assert environments is not None and options.reward == ("game.py:mine", "environment")


def test_a_reward_function_reads_the_state_of_the_environment(model: Path) -> None:
    train(config_of(model, "both", num_steps=1, reward=("game.py:mine",)))
    (*_, last) = read_metrics(Path("both"))
    assert last["part/mine"] == last["part/environment"] and last["reward/mean"] == 2 * (last["part/mine"] or 0)
