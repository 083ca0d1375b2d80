"""What others get of a run: the card of its model, the upload to the hub, and trackers."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import accelerate.tracking
import huggingface_hub
import huggingface_hub.constants
import pytest
import yaml
from accelerate.utils import LoggerType
from huggingface_hub import ModelCard
from huggingface_hub.errors import LocalTokenNotFoundError

import rl.view.report
from rewards.errors import UserError
from rewards.math_answer import MathVerifier
from rl.policy.merge import merge_adapters
from rl.run.checkpoint import damage
from rl.run.loop import train
from rl.run.publish import NOT_UPLOADED, require_uploadable
from rl.settings.config import RunConfig
from rl.settings.config_file import read_options
from rl.view.metrics import read_metrics
from rl.view.model_card import metadata
from tests.rl.conftest import draw_nothing
from tests.rl.test_checkpoint import in_a_child
from tests.rl.test_loop import odd_lengths, options
from tests.rl.test_processes import be, free_port

LAST = Path("checkpoints") / "step-000002"


def test_a_saved_model_has_a_card_with_its_figures_and_the_options_that_repeat_it(
    model: Path, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MathVerifier, "verify_batch", odd_lengths)
    run_dir = train(options(model, digits, tmp_path / "run", num_steps=2, save_every=1))
    card, earlier = (ModelCard.load(run_dir / "checkpoints" / f"step-00000{i}" / "README.md") for i in (2, 1))
    rows, config = read_metrics(run_dir), json.loads((run_dir / "config.json").read_text())
    before, after = rows[0]["eval/accuracy"], rows[2]["eval/accuracy"]
    assert before is not None and after is not None
    assert f"| held-out accuracy, greedy, of 10 problems | {before:.1%} | {after:.1%} (step 2) |" in card.text
    assert f"{before:.1%} (step 0)" in earlier.text and "This is step 1 of 2." in earlier.text
    assert f"{config['hardware']['cpu_cores']} CPU cores" in card.text and config["versions"]["torch"] in card.text
    (tmp_path / "again.yaml").write_text(card.text.partition("```yaml\n")[2].partition("```")[0])
    assert read_options(tmp_path / "again.yaml") == read_options(run_dir / "config.yaml")
    assert card.data.to_dict() == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["plumbline", "grpo"],
    }


@pytest.mark.parametrize(
    ("named", "base", "data"),
    [
        ({"model": "Qwen/Qwen2.5-0.5B", "dataset": "gsm8k"}, "Qwen/Qwen2.5-0.5B", ["openai/gsm8k"]),
        ({"model": "tiny", "dataset": "arithmetic"}, None, None),
        ({"model": "a/b/c", "dataset": ["a.jsonl=0.7", "gsm8k=0.3", "who/what:main/train"]}, None, ["openai/gsm8k", "who/what"]),
        ({"model": "tests/rl", "dataset": "reasoning-gym:leg_counting"}, None, None),
    ],
)  # fmt: skip
def test_the_card_names_only_models_and_data_of_the_hub(named: dict[str, Any], base: object, data: object) -> None:
    found = metadata({**named, "lora_rank": 0, "algorithm": "grpo"})
    assert (found.base_model, found.datasets) == (base, data)


def test_a_card_that_was_edited_or_removed_changes_nothing_for_a_resume(
    model: Path, digits: Path, tmp_path: Path
) -> None:
    """Of adapters: peft writes a card of its own, which must not be among the files with checksums either."""
    config = options(model, digits, tmp_path / "run", num_steps=2, lora_rank=2)
    checkpoint = train(config) / LAST
    for change in (lambda card: card.write_text("mine"), lambda card: card.unlink()):
        change(checkpoint / "README.md")
        assert damage(checkpoint) is None
    train(replace(config, num_steps=3, resume=True))
    assert [row["step"] for row in read_metrics(tmp_path / "run")] == [0, 1, 2, 3]
    assert (checkpoint.with_name("step-000003") / "README.md").read_text().startswith("---\n")


def test_merged_adapters_have_their_card_as_a_plain_model(model: Path, digits: Path, tmp_path: Path) -> None:
    checkpoint = train(options(model, digits, tmp_path / "run", num_steps=2, lora_rank=2)) / LAST
    card = ModelCard.load(checkpoint / "README.md")
    assert card.data.to_dict() == {
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["plumbline", "grpo", "lora"],
    }
    merged = ModelCard.load(merge_adapters(checkpoint, tmp_path / "merged") / "README.md")
    assert merged.data.to_dict() == {
        **card.data.to_dict(),
        "library_name": "transformers",
        "tags": ["plumbline", "grpo"],
    }
    assert merged.text == card.text
    for number, text in enumerate(("---\ntags: [\n---\n", "no metadata", None)):
        (checkpoint / "README.md").write_text(text) if text else (checkpoint / "README.md").unlink()
        assert (merge_adapters(checkpoint, tmp_path / f"{number}") / "config.json").is_file()


def hub(
    monkeypatch: pytest.MonkeyPatch, calls: list[tuple[str, dict[str, Any]]], failure: Exception | None = None
) -> None:
    """A hub that takes note of what it is sent, or that fails to take it."""

    def upload_folder(**given: Any) -> None:
        if failure is not None:
            raise failure
        calls.append(("upload_folder", given))

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "whoami", lambda: {"name": "me"})
    monkeypatch.setattr(huggingface_hub, "create_repo", lambda name, **given: calls.append((name, given)))
    monkeypatch.setattr(huggingface_hub, "upload_folder", upload_folder)


def test_the_final_model_is_uploaded_without_what_only_a_resume_reads(
    model: Path, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, dict[str, Any]]] = []
    hub(monkeypatch, calls)
    run_dir = train(options(model, digits, tmp_path / "run", num_steps=2, save_every=1, push_to_hub="me/sums"))
    assert calls[0] == ("me/sums", {"private": True, "exist_ok": True})
    uploaded = {"repo_id": "me/sums", "folder_path": run_dir / LAST, "ignore_patterns": NOT_UPLOADED}
    assert calls[1:] == [("upload_folder", uploaded)]
    files = [str(path.relative_to(run_dir / LAST)) for path in (run_dir / LAST).rglob("*") if path.is_file()]
    sent = set(huggingface_hub.utils.filter_repo_objects(files, ignore_patterns=NOT_UPLOADED))
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json"} <= sent
    assert set(files) - sent == {"optimizer.pt", "trainer.json", "SHA256SUMS"}
    assert "push_to_hub" not in yaml.safe_load((run_dir / "config.yaml").read_text())


def test_a_failed_upload_is_told_with_the_command_that_does_it_by_hand(
    model: Path, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hub(monkeypatch, [], OSError("the hub is down"))
    config = options(model, digits, tmp_path / "run", num_steps=2, push_to_hub="me/sums")
    run_dir = train(config)
    told = "".join(capsys.readouterr().out.split())
    assert "theuploadfailed(thehubisdown);theruniscomplete" in told and f"hfuploadme/sums{run_dir / LAST}" in told
    calls: list[tuple[str, dict[str, Any]]] = []
    hub(monkeypatch, calls)
    train(replace(config, resume=True))  # no step is left
    assert [name for name, _ in calls] == ["me/sums", "upload_folder"]


def upload_by(rank: int, port: int, config: RunConfig, notes: Path) -> None:
    """One of two processes. Each call of the hub is noted with the rank that made it."""

    def note(call: str) -> Any:
        return lambda *args, **given: notes.open("a").write(f"{call} {rank}\n")

    be(rank, port)
    huggingface_hub.constants.HF_HUB_OFFLINE = False
    for name in ("whoami", "create_repo", "upload_folder"):
        setattr(huggingface_hub, name, note(name))
    rl.view.report.svg_of = draw_nothing
    train(config)


def test_of_two_processes_the_main_one_uploads(model: Path, digits: Path, tmp_path: Path) -> None:
    port, config = free_port(), options(model, digits, tmp_path / "run", num_steps=1, push_to_hub="me/sums")
    children = [in_a_child(upload_by, rank, port, config, tmp_path / "notes") for rank in range(2)]
    for child in children:
        child.join(300)
    assert [child.exitcode for child in children] == [0, 0]
    assert (tmp_path / "notes").read_text().splitlines() == ["whoami 0", "create_repo 0", "upload_folder 0"]
    assert "This is step 1 of 1." in (tmp_path / "run" / "checkpoints" / "step-000001" / "README.md").read_text()


def refuse() -> None:
    raise LocalTokenNotFoundError("no token found")


def test_an_upload_that_cannot_be_is_refused_before_training(
    model: Path, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"push_to_hub is 'me/sums': HF_HUB_OFFLINE is set; unset it"):
        train(options(model, digits, tmp_path / "run", push_to_hub="me/sums"))
    assert not (tmp_path / "run").exists()
    hub(monkeypatch, [])
    for name in ("", "a b", "me/my/sums", "-x"):
        with pytest.raises(
            UserError, match=r"push_to_hub is .*: it must be the name of a repository, such as me/model"
        ):
            require_uploadable(name)
    monkeypatch.setattr(huggingface_hub, "whoami", refuse)
    with pytest.raises(UserError, match=r"does not accept this machine's token \(no token found\); run hf auth login"):
        require_uploadable("me/sums")


class Recorder(ModuleType):
    """A tracker's package, of which every function notes its call."""

    def __init__(self, name: str, calls: list[tuple[str, Any]]) -> None:
        super().__init__(name)
        self.__spec__ = ModuleSpec(name, None)
        self.calls = calls

    def note(self, name: str) -> Any:
        return lambda *args, **given: self.calls.append((name, (*args, *given.values())))


def test_mlflow_and_swanlab_get_the_options_and_the_metrics(
    model: Path, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, Any]] = []
    kept: dict[str, Any] = {}
    mlflow, swanlab = Recorder("mlflow", calls), Recorder("swanlab", calls)
    limits = SimpleNamespace(MAX_PARAM_VAL_LENGTH=500, MAX_PARAMS_TAGS_PER_BATCH=100)
    vars(mlflow).update(
        search_experiments=lambda **given: [],
        create_experiment=lambda **given: calls.append(("experiment", given["name"])),
        start_run=mlflow.note("start_run"),
        log_params=mlflow.note("log_params"),
        log_metrics=mlflow.note("log_metrics"),
        end_run=mlflow.note("end_run"),
        utils=SimpleNamespace(validation=limits),
    )
    config = MagicMock(update=lambda values, **given: kept.update(values))
    run = SimpleNamespace(log=swanlab.note("swanlab.log"), finish=swanlab.note("swanlab.finish"))
    vars(swanlab).update(init=lambda project: calls.append(("swanlab.init", project)) or run, config=config)
    for module in (mlflow, swanlab):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(accelerate.tracking, "_available_trackers", [LoggerType.MLFLOW, LoggerType.SWANLAB])
    train(options(model, digits, tmp_path / "run", num_steps=1, trackers=("mlflow", "swanlab")))
    assert ("experiment", "plumbline") in calls and ("swanlab.init", "plumbline") in calls
    params = {
        key: value for name, given in calls if name == "log_params" for key, value in given[0].items()
    }  # in batches
    assert params["group_size"] == 4 and kept["group_size"] == 4
    for name in ("log_metrics", "swanlab.log"):
        logged = [given for called, given in calls if called == name]
        assert [step for _, step in logged] == [0, 1]
        assert "reward/mean" in logged[1][0] and all(isinstance(v, int | float) for v in logged[1][0].values())
    assert {"end_run", "swanlab.finish"} <= {name for name, _ in calls}


@pytest.mark.parametrize("tracker", ["mlflow", "swanlab"])
def test_a_tracker_that_is_not_installed_is_told_before_training(
    tracker: str, model: Path, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accelerate.tracking, "_available_trackers", [LoggerType.WANDB])
    with pytest.raises(UserError, match=rf"\['{tracker}'\] is not installed; pip install it"):
        train(options(model, digits, tmp_path / "run", trackers=("wandb", tracker)))
    assert not (tmp_path / "run").exists()
