"""Several data sets in one run: their weights, their ids, what is held out of each, and options that cannot hold for all of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from rewards.errors import UserError
from rewards.extract import answer_by_form
from rewards.verifiers import VerifierOptions, Verifiers
from rl.command.evaluate_model import evaluate_model
from rl.run.load_data import fitting, gradable_data, joined, load_data, load_held_out
from rl.run.loop import Interrupted, train
from rl.run.tiny import tiny_tokenizer
from rl.settings.config import RunConfig
from rl.settings.options import EvaluateOptions
from rl.settings.resolve import RunSettings, resolve
from rl.view.metrics import read_metrics
from rl.view.progress import Progress
from rollout.problems import load_problems, split_held_out
from rollout.prompts import PromptRenderer
from tests.rl.test_loop import interrupt_at, measured, options


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """Data sets of 10, 30 and 1 sums. The first three of a and b are the same questions."""
    written = {}
    for name, size in (("a", 10), ("b", 30), ("one", 1)):
        texts = [f"{n}+0" if n < 3 and name != "one" else f"{n}+{size}" for n in range(size)]
        rows = [{"question": text, "answer": str(eval(text))} for text in texts]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        written[name] = str(tmp_path / f"{name}.jsonl")
    return written


def settings_of(*dataset: str, **options: Any) -> RunSettings:
    return resolve(RunConfig(dataset=dataset, **{"eval_size": 8, **options}), "cpu")


def test_a_single_data_set_is_split_as_it_always_was(files: dict[str, str]) -> None:
    """The same problems, ids and order, also with a weight, which then says nothing."""
    expected = split_held_out(load_problems(files["b"]), 8)
    for given in (files["b"], f"{files['b']}=0.3"):
        ((source,), held_out) = load_data(settings_of(given))
        assert (source.problems, held_out) == expected
        assert (source.name, source.weight) == (files["b"], 1.0)


def test_each_data_set_gives_its_share_of_what_is_held_out(files: dict[str, str]) -> None:
    """8 of 40 problems: 2 of 10 and 6 of 30. A question that is held out of one data set is trained on in none."""
    (a, b), held_out = load_data(settings_of(files["a"], files["b"]))
    assert [sum(p.id.startswith(f"{name}:") for p in held_out) for name in (files["a"], files["b"])] == [2, 6]
    problems = [*a.problems, *b.problems, *held_out]
    assert len({p.id for p in problems}) == len(problems)
    asked = {str(p.prompt) for p in held_out}
    assert not asked & {str(p.prompt) for p in joined([a, b])}
    assert load_held_out(settings_of(files["a"], files["b"])) == held_out


def test_without_weights_a_data_set_weighs_as_much_as_its_problems(files: dict[str, str]) -> None:
    sources, _ = load_data(settings_of(files["a"], files["b"]))
    sizes = [len(source.problems) for source in sources]
    assert [source.weight for source in sources] == [size / sum(sizes) for size in sizes]
    weighted, _ = load_data(settings_of(f"{files['a']}=3", f"{files['b']}=1"))
    assert [source.weight for source in weighted] == [0.75, 0.25]


def test_weights_are_those_of_the_problems_that_are_left(files: dict[str, str], tmp_path: Path) -> None:
    """Unusable references and long prompts are left out of every data set, with a message that names it."""
    long = {"question": "1" * 50, "answer": "1"}
    with Path(files["a"]).open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in ({"question": "?", "answer": "N/A"}, long))
    said: list[str] = []
    progress = cast(Progress, SimpleNamespace(message=said.append))
    settings = settings_of(files["a"], files["b"], eval_dataset=files["one"], max_prompt_tokens=20)
    renderer = PromptRenderer(tiny_tokenizer(), style="plain")
    verifiers = Verifiers(VerifierOptions(num_workers=1))
    try:
        data = gradable_data(load_data(settings), verifiers, progress)
        sources, _ = fitting(settings, renderer, verifiers, data, len(renderer.tokenizer), progress)
    finally:
        verifiers.close()
    assert [len(source.problems) for source in sources] == [10, 30]
    assert [source.weight for source in sources] == [0.25, 0.75]
    assert f"1 of 12 {files['a']!r} training problems are left out, their reference" in said[0]
    assert f"1 of 11 {files['a']!r} training problems are left out, their prompt is longer" in said[1]


def test_a_data_set_that_would_have_nothing_left_to_train_on_is_named(files: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"eval_size is 30: 1 of them would be held out of the 1 problems of '.*one.jsonl'"
    ):
        load_data(settings_of(files["b"], files["one"], eval_size=30))
    with pytest.raises(UserError, match=r"dataset is '.*one.jsonl': every problem of it is among the 1 held-out ones"):
        load_data(settings_of(files["b"], files["one"], eval_dataset=files["one"]))
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(UserError, match=r"dataset is '.*empty.jsonl': it has no rows"):
        load_data(settings_of(files["b"], str(tmp_path / "empty.jsonl")))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dataset": ("a.jsonl=1", "gsm8k")}, r"'gsm8k' has no weight and another has one"),
        ({"dataset": ("gsm8k", "math"), "dataset_config": "main"}, r"dataset_config is 'main': there are 2 data sets; .*gsm8k:config/split"),
        ({"dataset": ("gsm8k", "math"), "eval_split": "test"}, r"eval_split is 'test': there are 2 data sets; name an eval_dataset"),
        ({"dataset": "gsm8k:main", "dataset_config": "main"}, r"dataset_config is 'main': 'gsm8k:main' names its own"),
        ({"dataset": "x/y:/dev", "dataset_split": "test"}, r"dataset_split is 'test': 'x/y:/dev' names its own"),
        ({"dataset": "x/y", "eval_dataset": "v/w:a/b", "eval_split": "c"}, r"eval_split is 'c': 'v/w:a/b' names its own"),
        ({"dataset": "reasoning-gym:gcd", "dataset_split": "test"}, r"'reasoning-gym:gcd' is no data set of the hub"),
    ],
)  # fmt: skip
def test_options_that_cannot_hold_for_the_data_sets_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        RunConfig(**options)


def test_a_mixed_run_resumes_to_the_bit_and_is_evaluated_as_it_was(model: Path, digits: Path, tmp_path: Path) -> None:
    """Its form of answers reaches training, completions.jsonl, and the evaluation of its checkpoint."""
    rows = "".join(f"{n}-{n}=,0,easy\n" for n in range(20))
    (tmp_path / "minus.csv").write_text("question,answer,level\n" + rows)
    mixed = (f"{digits}=0.5", f"{tmp_path / 'minus.csv'}=0.5")
    own = {"dataset": mixed, "answer_form": "last-number", "max_unjudged": 1.0, "lora_rank": 2, "num_steps": 2}
    whole = options(model, digits, tmp_path / "whole", **own)
    train(whole)
    parted = replace(whole, run_dir=tmp_path / "parted")
    with pytest.raises(Interrupted, match="saved after step 1"):
        interrupt_at(1, parted)
    train(replace(parted, resume=True))
    assert measured(tmp_path / "parted") == measured(tmp_path / "whole")
    texts = [(tmp_path / name / "completions.jsonl").read_text() for name in ("parted", "whole")]
    assert texts[0] == texts[1]
    graded = [json.loads(line) for line in texts[0].splitlines()]
    assert all(row["problem_id"].startswith((f"{digits}:", f"{tmp_path / 'minus.csv'}:")) for row in graded)
    found = [answer_by_form(row["completion"], "last-number") is not None for row in graded]
    assert found == [row["outcome"] != "no_answer" for row in graded] and any(found)
    saved = EvaluateOptions(model=str(tmp_path / "whole" / "checkpoints" / "step-000002"), device="cpu")
    accuracy = evaluate_model(saved, Progress(0, quiet=True))["greedy accuracy"]
    assert accuracy is not None and accuracy.problems == 10
    assert accuracy.mean == read_metrics(tmp_path / "whole")[-1]["eval/accuracy"]


def test_one_name_is_a_list_of_one_in_python_and_in_an_earlier_runs_config() -> None:
    config = RunConfig(dataset="gsm8k", model="m")  # pyright: ignore[reportArgumentType]
    assert config.dataset == ("gsm8k",)
    assert RunConfig.from_json({**config.as_json(), "dataset": "gsm8k"}) == config
    assert RunConfig.from_json(config.as_json()) == config


@pytest.mark.parametrize(
    ("dataset", "name"),
    [
        (("data/a.jsonl",), "a"),
        (("data/a.jsonl=0.7", "gsm8k=0.3"), "a+gsm8k"),
        (("openai/gsm8k:main/train",), "gsm8k:main-train"),
        (("reasoning-gym:gcd",), "reasoning-gym:gcd"),
        (tuple(f"{n:050}.jsonl" for n in range(9)), f"{0:050}+{0:049}"),
    ],
)
def test_a_runs_folder_is_named_after_its_data_sets(dataset: tuple[str, ...], name: str) -> None:
    (folder, *_) = RunConfig(dataset=dataset, resume=True).possible_run_dirs()
    assert folder.name == f"tiny-{name}-grpo-seed0"


def test_a_folder_of_the_hub_is_read_by_its_name_with_configuration_and_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The held-out problems may be those of another split of the same configuration."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    hub = tmp_path / "hub"
    hub.mkdir()
    listed = ""
    for config in ("main", "other"):
        listed += f"- config_name: {config}\n  data_files:\n"
        for split in ("train", "dev"):
            row = {"question": f"{config} {split}", "answer": "2"}
            (hub / f"{config}-{split}.jsonl").write_text(json.dumps(row) + "\n")
            listed += f"  - split: {split}\n    path: {config}-{split}.jsonl\n"
    (hub / "README.md").write_text(f"---\nconfigs:\n{listed}---\n")
    ((source,), held_out) = load_data(settings_of(f"{hub}:other/train", eval_split="dev"))
    texts = [problem.question for problem in (*source.problems, *held_out)]
    assert texts == ["other train", "other dev"]
    assert [p.question for p in load_problems(f"{hub}:main/dev")] == ["main dev"]
