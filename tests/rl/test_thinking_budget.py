"""Thinking budgets in runs and in `plumbline evaluate`."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rewards.errors import UserError
from rl.cli import app
from rl.command.evaluate_model import evaluate_model
from rl.command.thinking_budgets import SCALING, draw_budgets, mean_slope, s1_estimates
from rl.run.loop import Interrupted, train
from rl.settings.config import RunConfig
from rl.settings.config_file import repeating
from rl.settings.options import EvaluateOptions
from rl.settings.resolve import resolve
from rl.view.metrics import read_metrics
from rl.view.progress import Progress
from rollout.budget_forcing import BudgetForcing
from rollout.collect import Collected, Collector
from rollout.thinking_budget import ThinkingBudget, parse_budgets
from tests.rl.test_loop import final_weights, interrupt_at, measured, options

THINKING = {
    "thinking_budget": "1:4",
    "thinking_waits": 1,
    "thinking_end": "=",
    "wait_phrase": "h",
    "closing_phrase": "",
}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"thinking_budget": "many"}, "thinking_budget is 'many': it must be a number of tokens"),
        ({"thinking_budget": "9:3"}, "thinking_budget is '9:3': it must be .* LOW at most HIGH"),
        ({"thinking_budget": "8", "thinking_waits": -1}, "thinking_waits is -1: it must be at least 0"),
        ({"thinking_budget": "8", "thinking_end": ""}, "thinking_end is '': it must be a text that is not empty"),
        ({"thinking_waits": 2}, "thinking_waits is 2: there is no thinking budget; set thinking_budget"),
        ({"thinking_end": "</t>"}, "thinking_end is '</t>': there is no thinking budget"),
        ({"closing_phrase": "So:"}, "closing_phrase is 'So:': there is no thinking budget"),
        ({"thinking_budget": "8", "wait_phrase": "Hm"}, "wait_phrase is 'Hm': the model is not made to think on"),
        ({"thinking_budget": "8", "max_tokens": 8}, "thinking_budget is '8': a completion has at most max_tokens 8"),
        ({"thinking_budget": "8", "algorithm": "grpo-process"}, "'8': grpo-process scores the steps"),
        ({"thinking_budget": "8", "algorithm": "sft"}, "thinking_budget is '8': sft samples nothing"),
        ({"thinking_budget": "8", "stop_strings": ("think>",)}, "stop_strings has 'think>': a completion would end in"),
    ],
)
def test_a_budget_that_cannot_be_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        RunConfig(**given)


def test_a_run_has_the_budget_of_its_options() -> None:
    assert RunConfig().thinking is None
    found = RunConfig(**THINKING, max_tokens=8).thinking  # pyright: ignore[reportArgumentType]
    assert found == ThinkingBudget(least=1, most=4, waits=1, end="=", wait="h", closing="")
    earlier = {name: value for name, value in RunConfig().as_json().items() if name not in THINKING}
    assert RunConfig.from_json(earlier) == RunConfig()
    assert "thinking_waits" not in repeating(resolve(RunConfig(), "cpu"))
    assert "thinking_waits: 1" in repeating(resolve(RunConfig(**THINKING, max_tokens=8), "cpu"))  # pyright: ignore


def test_a_budget_without_room_for_an_answer_is_refused_before_training(
    model: Path, digits: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="thinking_budget is 30: a completion of max_tokens 40 has room for 16 tokens"):
        train(options(model, digits, tmp_path / "run", max_tokens=40, thinking_budget="30"))
    (tmp_path / "closed.jinja").write_text("{{ messages[-1]['content'] }}\n<think>\n\n</think>\n")
    closed = {"chat_template": str(tmp_path / "closed.jinja"), "max_tokens": 40, "thinking_budget": "2"}
    with pytest.raises(UserError, match=r"the prompt of problem .* ends with '</think>', so the model does not think"):
        evaluate_model(options_of(model, digits, **closed), Progress(0, quiet=True))


def options_of(model: Path, data: Path, **given: Any) -> EvaluateOptions:
    usual = {"dataset": str(data), "max_tokens": 8, "size": 4, "device": "cpu", "prompt_style": "plain"}
    return EvaluateOptions(model=str(model), **{**usual, **given})


@pytest.mark.parametrize(
    "more",
    [{"one_step_ahead": True}, {"lora_rank": 2}, {"algorithm": "ppo", "value": "shared"}],
    ids=lambda more: "-".join(map(str, more)),
)
def test_a_run_with_a_range_resumes_bit_equal(
    model: Path, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: dict[str, Any]
) -> None:
    """With one thread: time decides which of several takes the request of a later turn, and so rounding."""
    monkeypatch.setattr("rl.processes.runtime.cpu_cores", lambda: 1)
    reward = tmp_path / "mine.py"
    reward.write_text("def even(completion): return len(completion) % 2 == 0\n")  # an untaught model earns it by chance
    small = {"num_steps": 3, "save_every": 1, "problems_per_step": 2, "eval_size": 2, "eval_every": 3}
    given = {**small, "reward": (f"{reward}:even",), **THINKING, **more}
    train(options(model, digits, tmp_path / "whole", **given))
    with pytest.raises(Interrupted):
        interrupt_at(1, options(model, digits, tmp_path / "apart", **given))
    train(options(model, digits, tmp_path / "apart", **given, resume=True))
    rows = measured(tmp_path / "whole")
    assert measured(tmp_path / "apart") == rows
    weights, again = (final_weights(tmp_path / name, 3) for name in ("whole", "apart"))
    assert weights.keys() == again.keys() and all(bool((weights[name] == again[name]).all()) for name in weights)
    assert all(0 < (row["thinking/cut"] or 0) <= 1 for row in rows[1:])
    assert all((row["mismatch/max"] or 0) < 1e-4 for row in rows[1:] if "one_step_ahead" not in more)


def test_a_checkpoint_is_evaluated_with_the_budget_of_its_run(model: Path, digits: Path, tmp_path: Path) -> None:
    folder = train(options(model, digits, tmp_path / "run", num_steps=2, **THINKING))
    (checkpoint,) = sorted((folder / "checkpoints").glob("step-*"))[-1:]
    with Progress(0, quiet=True) as progress:
        found = evaluate_model(EvaluateOptions(model=str(checkpoint), device="cpu"), progress)
    last = read_metrics(folder)[-1]
    accuracy, cut = found["greedy accuracy"], found["cut by max_tokens"]
    assert accuracy is not None and accuracy.mean == last["eval/accuracy"]
    assert cut is not None and cut.mean == last["eval/truncated"]


@pytest.mark.parametrize("more", [{}, {"thinking_budgets": "3,4"}], ids=["alone", "beside others"])
def test_a_checkpoint_is_evaluated_without_the_budget_of_its_run(
    model: Path, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: dict[str, Any]
) -> None:
    """Greedy completions are then of one turn; the budgets that are measured beside have the phrases of the run."""
    monkeypatch.setattr("rl.processes.runtime.cpu_cores", lambda: 1)
    folder = train(options(model, digits, tmp_path / "run", num_steps=1, **THINKING))
    (checkpoint,) = (folder / "checkpoints").glob("step-*")
    seen = list[tuple[ThinkingBudget | None, bool]]()
    collect = Collector.collect

    def noted(self: Collector, *args: Any, **named: Any) -> Collected:
        found = collect(self, *args, **named)
        budget = self.rollout.budget if isinstance(self.rollout, BudgetForcing) else None
        seen.append((budget, all(r.completion.thinking is None for group in found.groups for r in group.rollouts)))
        return found

    monkeypatch.setattr(Collector, "collect", noted)
    off = EvaluateOptions(model=str(checkpoint), device="cpu", thinking_budget="none", **more)
    evaluate_model(off, Progress(0, quiet=True))
    rule = ThinkingBudget(least=3, most=3, waits=1, end="=", wait="h", closing="")
    measured_beside = [(rule, False), (replace(rule, least=4, most=4), False)] if more else []
    assert seen == [(None, True), *measured_beside]
    with pytest.raises(UserError, match="there is no thinking budget; set thinking_budget, or leave them out"):
        evaluate_model(replace(off, thinking_budgets=None, thinking_waits=2), Progress(0, quiet=True))


def test_budgets_without_room_for_a_wait_are_measured_without_waits(model: Path, digits: Path) -> None:
    given = {"thinking_end": "=", "closing_phrase": "", "thinking_waits": 1, "wait_phrase": "hh"}
    found = evaluate_model(options_of(model, digits, thinking_budgets="0,2,4", **given), Progress(0, quiet=True))
    none = found["budget 0: thinking tokens"]
    assert none is not None and none.mean == 0.0 and found["budget 4: greedy accuracy"] is not None


@pytest.mark.parametrize("budget", [None, "4"])
def test_the_largest_budget_is_refused_before_anything_is_measured(
    model: Path, digits: Path, monkeypatch: pytest.MonkeyPatch, budget: str | None
) -> None:
    monkeypatch.setattr(Collector, "collect", None)
    given = {"thinking_end": "=", "closing_phrase": "", "thinking_budget": budget}
    with pytest.raises(UserError, match="thinking_budget is 20: a completion of max_tokens 8 has room for 6 tokens"):
        evaluate_model(options_of(model, digits, thinking_budgets="2,20", **given), Progress(0, quiet=True))
    with pytest.raises(
        UserError, match="thinking_waits is 1: wait_phrase has 2 tokens, and thinking_budget 2 has no room"
    ):
        evaluate_model(
            options_of(model, digits, thinking_budgets="0,2", thinking_waits=1, wait_phrase="hh", **given),
            Progress(0, quiet=True),
        )


def test_the_metrics_of_s1_are_those_of_a_table_made_by_hand() -> None:
    """Mean tokens 0, 10, 15 and accuracies 25, 50, 100 %: slopes 25/10, 75/15 and 50/5 have the mean 17.5/3. One of twelve completions
    thinks longer than its budget, but the mean of no budget is above it."""
    num_tokens = np.array([[0, 12, 20], [0, 8, 20], [0, 10, 10], [0, 10, 10]], float)
    right = np.array([[1, 1, 1], [0, 1, 1], [0, 0, 1], [0, 0, 1]], float)
    found = s1_estimates((0, 10, 20), num_tokens, right)
    means = {name: x.mean for name, x in found.items() if x is not None}
    assert means == pytest.approx(
        {
            "budget 0: greedy accuracy": 0.25,
            "budget 0: thinking tokens": 0,
            "budget 10: greedy accuracy": 0.5,
            "budget 10: thinking tokens": 10,
            "budget 20: greedy accuracy": 1,
            "budget 20: thinking tokens": 15,
            "control": 1,
            "completions within the budget": 11 / 12,
            SCALING: 17_500 / 3,
            "performance": 1,
        }
    )
    scaling, performance = found[SCALING], found["performance"]
    assert scaling is not None and scaling.low < 17_500 / 3 < scaling.high
    assert performance is not None and (performance.low, performance.high) == (pytest.approx(0.025**0.25), 1)


def test_control_counts_the_budgets_whose_mean_is_within() -> None:
    """Budgets 4, 8, 12 have the means 5, 8, 10: two of three. Of four problems only the last is above 4 tokens at the first budget, so
    one is also found where it is not drawn: in (3/4)^4 of the resamples all three are within."""
    num_tokens = np.array([[4, 8, 10], [4, 8, 10], [4, 8, 10], [8, 8, 10]], float)
    found = s1_estimates((4, 8, 12), num_tokens, np.ones((4, 3)))
    control, within = found["control"], found["completions within the budget"]
    assert control is not None and (control.mean, control.low, control.high) == pytest.approx((2 / 3, 2 / 3, 1))
    assert within is not None and within.mean == pytest.approx(11 / 12)


def test_the_interval_of_scaling_is_that_of_its_resamples() -> None:
    """With two budgets of fixed tokens the slope is a difference of two shares: its standard error is known."""
    right = np.array([[0.0, 1.0]] * 100 + [[0.0, 0.0]] * 100)
    found = s1_estimates((0, 100), np.array([[0.0, 100.0]] * 200), right)[SCALING]
    half = 1.96 * (0.25 / 200) ** 0.5 * 1000
    assert found is not None and found.mean == pytest.approx(500)
    assert (found.low, found.high) == (pytest.approx(500 - half, abs=10), pytest.approx(500 + half, abs=10))


def test_equal_points_have_no_slope() -> None:
    at, values = np.array([[1.0, 1.0, 3.0], [2.0, 2.0, 2.0]]), np.array([[0.0, 1.0, 1.0], [0.0, 1.0, 0.5]])
    assert mean_slope(at, values) == pytest.approx([0.25, np.nan], nan_ok=True)
    assert s1_estimates((1, 2), np.ones((3, 2)), np.ones((3, 2)))[SCALING] is None
    assert set(s1_estimates((1, 2), np.ones((0, 2)), np.ones((0, 2))).values()) == {None}


def test_evaluate_measures_each_budget(
    model: Path, digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = f"evaluate {model} --dataset {digits} --max-tokens 16 --size 6 --device cpu --prompt-style plain"
    files = ["--out", str(tmp_path / "x.json"), "--figure", str(tmp_path / "x.svg")]
    phrases = ["--thinking-end", "=", "--closing-phrase", "", *files]
    app.cli(prog="plumbline", args=[*command.split(), "--thinking-budgets", "0,4,8", *phrases])
    written = json.loads((tmp_path / "x.json").read_text())
    tokens = [written[f"budget {budget}: thinking tokens"]["mean"] for budget in (0, 4, 8)]
    assert tokens[0] == 0 < tokens[1] <= 4 and tokens[1] < tokens[2] <= 8
    assert written["control"]["mean"] == 1 and written["performance"]["problems"] == 6
    assert "greedy accuracy" in written and SCALING in capsys.readouterr().out
    drawn = (tmp_path / "x.svg").read_text()
    assert all(f">{text}</text>" in drawn for text in ("mean thinking tokens", "correct"))


def test_the_figure_has_each_budget_where_it_was_measured(tmp_path: Path) -> None:
    """The path of the curve in the file, whose y axis points down: three points in the order of their tokens, the middle one highest."""
    num_tokens = np.array([[20.0, 0.0, 10.0]] * 4)  # a larger budget may take fewer tokens
    found = s1_estimates((8, 16, 32), num_tokens, np.array([[0, 0, 1], [0, 0, 1], [0, 0, 1], [1, 0, 1]], float))
    draw_budgets(found, (8, 16, 32), tmp_path / "curve.svg")
    drawn = (tmp_path / "curve.svg").read_text()
    assert re.findall(r">(8|16|32)</text>", drawn) == ["16", "32", "8"]
    (curve,) = re.findall(r'<path d="([^"]*)"[^>]*stroke: #3b7dd8; stroke-width: 2', drawn)
    x, y = np.array([point.split() for point in re.split("[ML]", curve)[1:]], float).T
    assert x[1] - x[0] == pytest.approx(x[2] - x[1]) and x[0] < x[1]
    assert y[1] < y[2] < y[0] and (y[0] - y[2]) / (y[0] - y[1]) == pytest.approx(0.25)


def test_a_figure_that_cannot_be_is_refused(tmp_path: Path) -> None:
    given: dict[str, Any] = {"model": "m", "thinking_budgets": "0,4"}
    with pytest.raises(UserError, match=r"figure is .*x.txt.*: it must end in .png, .svg, .pdf; rename it"):
        EvaluateOptions(**given, figure=tmp_path / "x.txt")
    with pytest.raises(UserError, match=r"figure is .*: there is no folder"):
        EvaluateOptions(**given, figure=tmp_path / "none" / "x.png")
    with pytest.raises(UserError, match=r"figure is .*: it shows several thinking budgets, and there are none"):
        EvaluateOptions(model="m", figure=tmp_path / "x.png")
    nothing = s1_estimates((0, 4), np.ones((0, 2)), np.ones((0, 2)))
    with pytest.raises(UserError, match="no completion could be graded"):
        draw_budgets(nothing, (0, 4), tmp_path / "x.png")


@pytest.mark.parametrize("text", ["", "64", "1,1", "1,x", "-1,4", "1:2,4"])
def test_budgets_that_cannot_be_are_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"thinking_budgets is .*: it must be at least two different numbers"):
        EvaluateOptions(model="m", thinking_budgets=text)
    assert parse_budgets("128, 0,64") == (0, 64, 128)


def test_phrases_without_a_budget_are_refused(model: Path, digits: Path) -> None:
    with pytest.raises(UserError, match="there is no thinking budget; set thinking_budget"):
        evaluate_model(options_of(model, digits, thinking_waits=1), Progress(0, quiet=True))
    with pytest.raises(UserError, match="thinking_budget is 20: a completion of max_tokens 8 has room for 6 tokens"):
        evaluate_model(
            options_of(model, digits, thinking_budgets="2,20", thinking_end="=", closing_phrase=""),
            Progress(0, quiet=True),
        )
