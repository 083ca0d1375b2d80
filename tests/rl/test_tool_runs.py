"""Runs with tools, where features cross: resume, sampling ahead, LoRA, PPO, evaluation of the checkpoint, two kinds of answering."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import plumbline
from rewards.errors import UserError
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

TOOLS = '''
def letters(text: str) -> str:
    """Counts letters.

    Args:
        text: The text.
    """
    return f"{len(text)} letters"

def reward(completion, size): return len(completion) % 3 == size % 3
'''
STOPS = tuple("aeiou0123456789")
TEMPLATE = (
    "{# <tool_call> #}{% for tool in tools or [] %}{{ tool.function.name }} {% endfor %}"
    "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
)


def calls_of_letters(text: str, *_: object) -> list[ToolCall]:
    """In place of the format: a random model calls the tool by a turn that ends with one of these signs. It never writes JSON."""
    return [ToolCall("letters", {"text": text})] if text.endswith(STOPS) else []


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "mine.py").write_text(TOOLS)
    rows = [{"prompt": f"{n}+{n}", "size": n} for n in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "template.jinja").write_text(TEMPLATE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tool_rollout, "read_calls", calls_of_letters)
    return tmp_path


def config_of(model: Path, name: str, **given: Any) -> RunConfig:
    own = {"reward": ("mine.py:reward",), "tools": ("mine.py:letters",), "chat_template": "template.jinja"}
    own |= {"eval_size": 4, "max_tokens": 60, "max_turns": 3, "tool_workers": 1, "stop_strings": STOPS}
    return options(model, Path("rows.jsonl"), Path(name), **{**own, **given})


def run(model: Path, name: str, **given: Any) -> Path:
    return train(config_of(model, name, **given))


def completions(name: str) -> Iterator[dict[str, Any]]:
    return map(json.loads, Path(name, "completions.jsonl").read_text().splitlines())


@pytest.mark.parametrize(
    "more",
    [{}, {"one_step_ahead": True, "lora_rank": 2}, {"algorithm": "ppo", "value": "shared"}],
    ids=lambda more: "-".join(map(str, more.values())) or "grpo",
)
def test_a_run_with_tools_resumes_bit_equal(model: Path, more: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """On one core: where several threads decode, time decides which of them takes a later turn."""
    monkeypatch.setattr(runtime, "cpu_cores", lambda: 1)
    more = {"num_steps": 2, "save_every": 1, **more}
    run(model, "whole", **more)
    with pytest.raises(Interrupted):
        interrupt_at(1, config_of(model, "apart", **more))
    run(model, "apart", **more, resume=True)
    assert measured(Path("apart")) == measured(Path("whole"))
    called = [row for row in completions("whole") if row["tool_use"]["calls"]]
    assert len(called) > 5
    for row in called:
        assert " letters" in row["conversation"] and " letters" not in row["completion"]
        assert row["length"] < len(row["conversation"])
    (*_, last) = read_metrics(Path("whole"))
    assert last["tools/turns"] is not None and 1 < last["tools/turns"] <= 3
    assert last["tools/failed"] == 0 and last["mismatch/max"] is not None
    if not more.get("one_step_ahead"):  # float32 in another order, as tests/rollout/sampler_contract.py measures it
        assert last["mismatch/max"] < 3e-5


def test_threads_that_answer_change_no_draw(model: Path) -> None:
    for workers in (1, 3):
        run(model, f"of-{workers}", num_steps=1, tool_workers=workers)
    one, three = (sorted(row["conversation"] for row in completions(f"of-{n}")) for n in (1, 3))
    assert one == three


def test_a_function_of_a_program_is_a_tool(model: Path) -> None:
    calls = ["of this program"]

    def letters(text: str) -> str:
        """Counts letters.

        Args:
            text: The text.
        """
        return f"{len(text)} letters, {calls[0]}"

    given = {**vars(config_of(model, "local", num_steps=1)), "tools": [letters], "reward": "mine.py:reward"}
    plumbline.train(**{name: value for name, value in given.items() if value != RunConfig.__dict__.get(name)})
    assert any("letters, of this program" in row["conversation"] for row in completions("local"))
    with pytest.raises(UserError, match="tools is 3: it must be a function, or a name as for --tools"):
        plumbline.train(tools=3)  # pyright: ignore[reportArgumentType]


def one_of_two(rank: int, port: int, config: RunConfig) -> None:
    be(rank, port)
    tool_rollout.read_calls = calls_of_letters
    train(config)


def test_two_processes_make_the_run_of_one(model: Path) -> None:
    """Each has workers of its own for the tools of its rollouts."""
    run(model, "one", num_steps=1)
    train_in_two(one_of_two, config_of(model, "two", num_steps=1))
    one, two = ([row["conversation"] for row in completions(name)] for name in ("one", "two"))
    assert one == two and any(row["tool_use"]["calls"] for row in completions("two"))
    (*_, ours), (*_, theirs) = (read_metrics(Path(name)) for name in ("one", "two"))
    assert {k: v for k, v in ours.items() if k.startswith("tools/")} == {
        k: v for k, v in theirs.items() if k.startswith("tools/")
    }


def test_a_checkpoint_is_evaluated_with_the_tools_of_its_run(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On one core: an untaught model's greedy choice is so close that rounding decides it."""
    monkeypatch.setattr(runtime, "cpu_cores", lambda: 1)
    folder = run(model, "run", num_steps=2)
    (checkpoint,) = sorted((folder / "checkpoints").glob("step-*"))[-1:]
    with Progress(0) as progress:
        found = evaluate_model(EvaluateOptions(model=str(checkpoint)), progress)
    (*_, last) = read_metrics(folder)
    assert found["greedy accuracy"] is not None and found["greedy accuracy"].mean == last["eval/accuracy"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tools": ()}, "max_turns is 3: there are no tools; name them with tools or an environment, or leave it out"),
        ({"tools": ("mine.py:reward",)}, "tools has .*mine.py:reward: .*no docstring"),
        ({"tools": ("absent.py:f",)}, "tools is 'absent.py:f': there is no file"),
        ({"chat_template": None}, "tools are letters: the chat template has no place for tools"),
        ({"algorithm": "sft", "group_size": None}, "tools is .*: sft samples nothing"),
        ({"algorithm": "grpo-process"}, "tools is .*: grpo-process scores the steps of one turn"),
        ({"tool_deadline": 0.0}, "tool_deadline is 0.0: it must be more than 0"),
    ],
)
def test_what_is_wrong_with_tools_is_said_before_training(model: Path, given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        run(model, "run", num_steps=1, **given)


def test_other_tools_on_resume_are_refused(model: Path) -> None:
    run(model, "run", num_steps=1)
    with pytest.raises(UserError, match="tools"):
        run(model, "run", num_steps=2, tools=("mine.py:letters", "mine.py:letters"), resume=True)
