"""`plumbline try-reward`: its table and its warnings, and rewards that installed packages name."""

from __future__ import annotations

import json
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

import rewards.reward_spec
import rl.command.try_reward
from rewards.errors import UserError
from rewards.reward_spec import parse_rewards
from rl.command.try_reward import try_rewards
from rl.settings.options import EvaluateOptions, TryRewardOptions
from rl.view.progress import Progress
from rollout.records import style_of_rewards

FUNCTIONS = """
def right(answer, reference): return answer == reference
def greedy(answer): return 1.0
def blank(completion): return not completion.strip()
def echo(completion, prompt): return prompt in completion
def rejects(answer): return None
def wrong_type(answer): return "yes"
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "functions.py").write_text(FUNCTIONS)
    with_answer = [{"prompt": f"{n} + 1", "answer": str(n + 1)} for n in range(30)]
    (tmp_path / "answered.jsonl").write_text("".join(json.dumps(row) + "\n" for row in with_answer))
    (tmp_path / "open.jsonl").write_text("".join(json.dumps({"prompt": row["prompt"]}) + "\n" for row in with_answer))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def tried(*reward: str, dataset: str = "answered.jsonl", **options: object) -> str:
    with Progress(0, quiet=True) as progress:
        return try_rewards(TryRewardOptions(reward=reward, dataset=dataset, **options), progress)  # pyright: ignore


def row(table: str, kind: str) -> list[str]:
    (line,) = [line for line in table.splitlines() if line.startswith(kind) and ":" not in line]
    return line.removeprefix(kind).split()


def test_the_table_of_a_reward_that_pays_for_the_right_answer_only() -> None:
    table = tried("functions.py:right")
    assert row(table, "the reference") == ["20/20", "1", "1", "1"]
    for kind in ("nothing", "the prompt itself", "nonsense"):
        assert row(table, kind) == ["20/20", "0", "0", "0"]
    assert "warning" not in table


@pytest.mark.parametrize(
    ("name", "warned"),
    [
        ("greedy", ["for nothing on 20 of 20", "for the prompt itself", "for nonsense", "everything that was tried"]),
        ("rejects", ["it could grade no reference"]),
    ],
)
def test_rewards_that_teach_nothing_or_the_wrong_thing_are_warned_about(name: str, warned: list[str]) -> None:
    table = tried(f"functions.py:{name}")
    assert table.count("warning: ") == len(warned)
    assert all(text in table for text in warned)


@pytest.mark.parametrize(("name", "kind"), [("blank", "nothing"), ("echo", "the prompt itself")])
def test_without_references_whatever_is_paid_for_no_answer_is_warned_about(name: str, kind: str) -> None:
    table = tried(f"functions.py:{name}", dataset="open.jsonl", size=5)
    assert "the reference" not in table
    assert table.count("warning: ") == 1
    assert f"warning: it pays for {kind} on 5 of 5 problems" in table


def test_a_sum_and_a_verifier_are_tried_too() -> None:
    table = tried("math", "functions.py:greedy=0.5", "boxed=0.25")
    assert row(table, "the reference") == ["20/20", "1.75", "1.75", "1.75"]
    assert row(table, "nothing") == ["20/20", "0.5", "0.5", "0.5"]


def test_what_is_no_reward_is_refused() -> None:
    with pytest.raises(UserError, match="returned 'yes', which is not a reward"):
        tried("functions.py:wrong_type")


@pytest.mark.parametrize(
    ("model", "reward", "style"),
    [("elsewhere", "math", "boxed"), ("elsewhere", "functions.py:right", None), ("tiny", "math", "plain")],
)
def test_samples_are_prompted_as_a_run_would(
    monkeypatch: pytest.MonkeyPatch, model: str, reward: str, style: str | None
) -> None:
    """A verifier that reads a box needs the prompt that asks for one; the tiny model has been taught without."""
    seen: list[EvaluateOptions] = []

    def stop(options: EvaluateOptions, *_: object, **__: object) -> None:
        seen.append(options)
        raise UserError("seen")

    monkeypatch.setattr(rl.command.try_reward, "make_collector", stop)
    with pytest.raises(UserError, match="seen"):
        tried(reward, model=model)
    (options,) = seen
    assert (options.prompt_style or style_of_rewards(parse_rewards(options.reward or ()), None)) == style


def test_an_installed_package_may_name_a_reward(monkeypatch: pytest.MonkeyPatch) -> None:
    named = [EntryPoint(name="politeness", value="functions:greedy", group="plumbline.rewards")]
    monkeypatch.setattr(rewards.reward_spec, "entry_points", lambda group: named)
    assert row(tried("politeness=3"), "nonsense") == ["20/20", "3", "3", "3"]
    with pytest.raises(UserError, match="or politeness of an installed package"):
        tried("kindness")
