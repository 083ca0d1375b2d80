"""Runs with the tool python in code fences: what is trained on, resume, and the checkpoint's evaluation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rewards.errors import UserError
from rewards.sandbox.isolation import MIN_LEVEL, measure
from rl.command.evaluate_model import evaluate_model
from rl.processes import runtime
from rl.run.loop import Interrupted, train
from rl.settings.config import RunConfig
from rl.settings.options import EvaluateOptions
from rl.view.metrics import read_metrics
from rl.view.progress import Progress
from rollout import tool_rollout
from rollout.tool_calls import ToolCall
from tests.rl.test_loop import interrupt_at, measured, options
from tests.rl.test_processes import be, train_in_two

pytestmark = pytest.mark.skipif(measure().rank < MIN_LEVEL, reason="this machine does not isolate code")
CODE = "n = globals().get('n', 0) + 1\nprint('computed', n)"


def calls_at_a_vowel(text: str, *_: object) -> list[ToolCall]:
    """In place of the format: a random model writes no fences, but its turns often end with a vowel."""
    return [ToolCall("python", {"code": CODE})] if text.endswith(tuple("aeiou")) else []


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "mine.py").write_text("def reward(completion, size): return len(completion) % 3 == size % 3\n")
    rows = [{"prompt": f"{n}+{n}", "size": n} for n in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runtime, "cpu_cores", lambda: 1)
    monkeypatch.setattr(tool_rollout, "read_calls", calls_at_a_vowel)
    return tmp_path


def config_of(model: Path, name: str, **given: Any) -> RunConfig:
    own = {"reward": ("mine.py:reward",), "tools": ("python",), "tool_format": "code-fences", "eval_size": 4}
    own |= {"max_tokens": 60, "max_turns": 3, "tool_workers": 1, "stop_strings": tuple("aeiou")}
    return options(model, Path("rows.jsonl"), Path(name), **{**own, **given})


@pytest.mark.parametrize("python_state", [True, False])
def test_a_run_resumes_bit_equal(model: Path, python_state: bool, capsys: pytest.CaptureFixture[str]) -> None:
    more = {"num_steps": 2, "save_every": 1, "python_state": python_state}
    train(config_of(model, "whole", **more))
    with pytest.raises(Interrupted):
        interrupt_at(1, config_of(model, "apart", **more))
    train(config_of(model, "apart", **more, resume=True))
    assert measured(Path("apart")) == measured(Path("whole"))
    rows = [json.loads(line) for line in Path("whole", "completions.jsonl").read_text().splitlines()]
    assert any("computed 1" in row["conversation"] for row in rows)
    assert any("computed 2" in row["conversation"] for row in rows) == python_state
    assert not any("computed" in row["completion"] for row in rows)
    (*_, last) = read_metrics(Path("whole"))
    turns, mismatch = last["tools/turns"], last["mismatch/max"]
    assert last["tools/failed"] == 0 and turns is not None and 1 < turns <= 3
    assert (
        mismatch is not None and mismatch < 3e-5
    )  # float32 in another order, as tests/rollout/sampler_contract.py measures it
    assert "a completion ends with <|end|>, 'a', 'e', 'i', 'o', 'u', '```output'" in capsys.readouterr().out


def test_a_checkpoint_is_evaluated_with_the_tool(model: Path) -> None:
    folder = train(config_of(model, "run", num_steps=1, python_state=False))
    (checkpoint,) = sorted((folder / "checkpoints").glob("step-*"))[-1:]
    with Progress(0) as progress:
        found = evaluate_model(EvaluateOptions(model=str(checkpoint)), progress)
    (*_, last) = read_metrics(folder)
    assert found["greedy accuracy"] is not None and found["greedy accuracy"].mean == last["eval/accuracy"]


def one_of_two(rank: int, port: int, config: RunConfig) -> None:
    be(rank, port)
    tool_rollout.read_calls = calls_at_a_vowel
    train(config)


def test_two_processes_make_the_run_of_one(model: Path) -> None:
    """Each has a sandbox of its own."""
    train(config_of(model, "one", num_steps=1))
    train_in_two(one_of_two, config_of(model, "two", num_steps=1))
    one, two = (
        [json.loads(line)["conversation"] for line in Path(name, "completions.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    )
    assert one == two and any("computed" in conversation for conversation in two)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tools": ("mine.py:reward",)}, "tool_format is 'code-fences': a block of code calls the tool python alone"),
        ({"tools": ("mine.py:reward",), "tool_format": "hermes", "python_state": False}, "python_state is False: there is no tool python"),
        ({"tool_format": None}, "tools are python: the (chat template has no place|model's tokenizer has no chat template)"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_the_tool_is_said_before_training(model: Path, given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        train(config_of(model, "run", num_steps=1, **given))
