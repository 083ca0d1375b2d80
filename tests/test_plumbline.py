"""`import plumbline`: functions and rows in memory, callbacks, the finished run, and mistakes."""

from __future__ import annotations

import json
import subprocess
import sys
from decimal import Decimal
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas
import pytest
from safetensors.torch import load_file

import plumbline
from rl.run.tiny import tiny_model, tiny_tokenizer
from rl.view.metrics import read_metrics

ROWS = [{"prompt": f"{n}+{n}", "answer": str(2 * n), "size": n} for n in range(10, 40)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The tiny model, untaught."""
    import torch

    folder = tmp_path_factory.mktemp("model")
    tokenizer = tiny_tokenizer()
    tiny_model(tokenizer, seed=0, device=torch.device("cpu")).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def small(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The options of a run of a few seconds, in a cache and a folder of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return {
        "model": model, "run_dir": tmp_path / "run", "num_steps": 2, "problems_per_step": 4, "group_size": 4, "max_tokens": 6,
        "eval_size": 4, "eval_every": 1, "learning_rate": 1e-3, "prompt_style": "plain",
    }  # fmt: skip


def even(completion: str, size: int) -> float:
    return float(len(completion) % 2 == size % 2)


def test_a_run_with_a_function_rows_and_callbacks(small: dict[str, Any]) -> None:
    steps: list[tuple[float | None, list[str]]] = []
    evaluated: list[float | None] = []
    run = plumbline.train(
        dataset=ROWS,
        reward={even: 1.0, "boxed": 0.5},
        on_step=lambda metrics, groups: steps.append((metrics["step"], [g.problem.id for g in groups])),
        on_evaluation=lambda metrics: evaluated.append(metrics["step"]),
        **small,
    )
    assert [step for step, _ in steps] == [1, 2]
    assert all(len(ids) == 4 for _, ids in steps)
    assert evaluated == [0, 1, 2]
    assert run.metrics == read_metrics(run.folder)
    last = run.metrics[-1]
    assert last["reward/mean"] == pytest.approx(last["part/even"] + 0.5 * last["part/boxed"])
    assert run.metrics_frame.loc[2, "reward/mean"] == last["reward/mean"]
    for row in run.completions:
        assert row["parts"]["even"] == float(len(row["completion"]) % 2 == int(row["reference"]) // 2 % 2)
    assert run.checkpoint.name == "step-000002"
    assert run.evaluate()["greedy reward"] == pytest.approx(last["eval/reward"])
    read = load_file(run.checkpoint / "model.safetensors")
    assert all(weight.equal(run.model.get_parameter(name)) for name, weight in read.items())
    assert run.tokenizer.decode(run.tokenizer("1+1").input_ids) == "1+1"
    assert plumbline.Run(run.folder).checkpoint == run.checkpoint


def test_rows_of_the_datasets_library_are_the_same_data_as_dicts(small: dict[str, Any]) -> None:
    first = plumbline.train(dataset=ROWS, reward=even, **small)
    second = plumbline.train(
        dataset=datasets.Dataset.from_list(ROWS), reward=even, **{**small, "run_dir": small["run_dir"] / "2"}
    )
    kept = ("reward/mean", "kl/sampler", "length/mean", "grad_norm")
    assert [[row.get(k) for k in kept] for row in first.metrics] == [
        [row.get(k) for k in kept] for row in second.metrics
    ]


def test_a_resumed_run_keeps_its_options_and_gives_what_one_run_would(small: dict[str, Any]) -> None:
    whole = plumbline.train(dataset=ROWS, reward=even, **small)

    def stop(metrics: Any, groups: Any) -> None:
        raise KeyboardInterrupt

    apart = small["run_dir"] / "apart"
    with pytest.raises(KeyboardInterrupt):
        plumbline.train(dataset=ROWS, reward=even, save_every=1, on_step=stop, **{**small, "run_dir": apart})
    plumbline.train(dataset=ROWS, reward=even, model=small["model"], run_dir=apart, resume=True)
    kept = ("step", "reward/mean", "kl/sampler", "grad_norm", "eval/reward")
    found = plumbline.Run(apart).metrics
    assert [[row.get(k) for k in kept] for row in found] == [[row.get(k) for k in kept] for row in whole.metrics]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_step": 3}, "num_step is not an option; did you mean num_steps?"),
        ({"num_steps": "many"}, "num_steps is 'many': it must be a whole number"),
        ({"num_steps": 2.5}, "num_steps is 2.5: it must be a whole number"),
        ({"num_steps": 0}, "num_steps is 0: it must be at least 1"),
        ({"dataset": {"prompt": "1+1"}}, "dataset is a dict: it must be a name, a file, a list of dicts"),
        ({"dataset": [{"prompt": "1+1"}, 3]}, "dataset: row 2 is a int: each row must be a dict"),
        ({"dataset": [{"prompt": "1+1", "raw": b"1"}]}, "row 1 cannot be written as JSON (Object of type bytes is not"),
        ({"dataset": [{"prompt": "1+1", "raw": b"1"}]}, "convert its column 'raw'"),
        ({"dataset": []}, "dataset has no rows"),
        (
            {"eval_dataset": ["a.jsonl"]},
            "eval_dataset is ['a.jsonl']: it takes one name or file, or the rows themselves",
        ),
        ({"dataset": ROWS, "reward": 3}, "reward is 3: it must be a function"),
        ({"dataset": ROWS, "reward": [3]}, "reward is 3: it must be a function"),
        ({"dataset": ROWS, "tools": []}, "tools is empty; name at least one, or leave tools out"),
        (
            {"dataset": ROWS, "tools": {"f": len}},
            "tools is a mapping of ['f']: the model calls a function by its own",
        ),
        ({"dataset": ROWS, "environment": []}, "environment is empty; name at least one, or leave environment out"),
        ({"dataset": ROWS, "environment": {}}, "environment is empty"),
        ({"dataset": ROWS, "reward": {}}, "reward is empty; name a function, or leave it out"),
        (
            {"dataset": ROWS, "reward": len},
            "reward is the function 'len': its parameter 'obj' cannot be passed by name",
        ),
        ({"dataset": ROWS, "reward": dict.update}, "reward is the function 'update': its parameters have no names"),
        ({"dataset": ROWS, "reward": {even: None}}, "even' is None: it must be a number"),
        ({"dataset": ROWS, "reward": even, "on_step": 3}, "on_step is 3: it must be a function"),
        ({"reward": "nowhere.py:f"}, "there is no file 'nowhere.py'"),
        ({"reward": lambda answer, missing: 1, "dataset": ROWS}, "it asks for 'missing', which no problem offers"),
    ],
)
def test_a_mistake_is_one_message(small: dict[str, Any], given: dict[str, Any], message: str) -> None:
    with pytest.raises(plumbline.UserError) as error:
        plumbline.train(**{**small, **given})
    assert message in str(error.value)


class Size:
    def __init__(self, limit: int) -> None:
        self.limit = limit

    def __call__(self, size: int) -> float:
        return 0.5 * (size > self.limit)


def scaled(size: int, by: float) -> float:
    return size * by


def test_whatever_can_be_called_is_a_reward_and_each_has_a_name_of_its_own(small: dict[str, Any]) -> None:
    rewards = {
        partial(scaled, by=0.0): np.float64(1),
        Size(0): Decimal("0.5"),
        Size(100): Fraction(1, 2),
        (lambda size: 0.25): 1,
        (lambda size: 0.125): 1,
    }
    run = plumbline.train(dataset=pandas.DataFrame(ROWS), reward=rewards, **{**small, "num_steps": 1})
    parts = {name.removeprefix("part/"): v for name, v in run.metrics[-1].items() if name.startswith("part/")}
    assert parts == {"scaled": 0.0, "Size": 0.5, "Size_2": 0.0, "reward": 0.25, "reward_2": 0.125}
    assert run.metrics[-1]["reward/mean"] == 0.5 * 0.5 + 0.25 + 0.125


def test_a_run_is_evaluated_by_its_own_functions_and_on_rows(small: dict[str, Any]) -> None:
    first = plumbline.train(dataset=ROWS, reward=lambda answer: 0.25, **{**small, "num_steps": 1})
    here = plumbline.reward(in_process=True)(lambda answer: 0.75)
    again = {**small, "num_steps": 1, "run_dir": small["run_dir"] / "2"}
    assert plumbline.train(dataset=ROWS, reward=here, **again).metrics[-1]["reward/mean"] == 0.75
    assert first.evaluate(dataset=ROWS[:3])["greedy reward"] == 0.25
    for given, message in (
        ({"sizes": 2}, "sizes is not an option of an evaluation; did you mean size?"),
        ({"size": "many"}, "size is 'many': it must be a whole number"),
        ({"dataset": ["a.jsonl"]}, "an evaluation takes one name or file"),
    ):
        with pytest.raises(plumbline.UserError) as error:
            first.evaluate(**given)
        assert message in str(error.value)


def test_a_function_gets_the_columns_as_the_rows_have_them(small: dict[str, Any]) -> None:
    def as_given(reference: str, worked: list[int]) -> float:
        return len(worked) + (reference == "")

    rows = [{**row, "answer": float("nan"), "worked": [1, 2]} for row in ROWS]  # as pandas has a missing value
    run = plumbline.train(dataset=rows, reward=as_given, **{**small, "num_steps": 1})
    assert run.metrics[-1]["reward/mean"] == 3


def test_a_folder_without_a_run_is_none(tmp_path: Path) -> None:
    with pytest.raises(plumbline.UserError, match="it holds no run"):
        plumbline.Run(tmp_path)


def test_importing_it_loads_neither_torch_nor_the_trainer() -> None:
    code = "import sys, plumbline; plumbline.reward; print({'torch', 'rl', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "set()"


def test_a_function_of_the_program_that_runs_is_what_config_json_says(small: dict[str, Any]) -> None:
    run = plumbline.train(dataset=ROWS, reward=lambda answer: len(answer) > 2, **{**small, "num_steps": 1})
    written = json.loads((run.folder / "config.json").read_text())
    assert written["reward"] == ["__main__:reward"]
    assert "part/reward" in run.metrics[-1]
