"""What a run saves is of the kind of its base, and is saved once before there is work to lose."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from rewards.errors import UserError
from rewards.math_answer import MathVerifier
from rl.policy.policy import Policy
from rl.run.checkpoint import writing
from rl.run.loop import train
from rl.settings.config import RunConfig
from rl.view.metrics import read_metrics
from tests.rl.test_loop import final_weights, measured, odd_lengths, options


@pytest.fixture(autouse=True)
def _lucky(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MathVerifier, "verify_batch", odd_lengths)


SETTINGS = {"do_sample": False, "temperature": 0.6, "top_p": 0.9}  # loaded by transformers, which refuses to save them


@pytest.mark.parametrize("where", ["generation_config.json", "config.json"])
def test_generation_settings_that_transformers_refuses_to_save_are_kept(
    where: str, model: Path, digits: Path, tmp_path: Path
) -> None:
    """Also as older models have them, among the fields of config.json."""
    base = Path(shutil.copytree(model, tmp_path / "base"))
    (base / "generation_config.json").unlink()
    read = json.loads((base / where).read_text()) if (base / where).exists() else {}
    (base / where).write_text(json.dumps({**read, **SETTINGS}))
    run = train(options(base, digits, tmp_path / "run", num_steps=1))
    saved = run / "checkpoints" / "step-000001"
    assert SETTINGS.items() <= json.loads((saved / "generation_config.json").read_text()).items()
    assert AutoModelForCausalLM.from_pretrained(saved).generation_config.temperature == 0.6


def test_a_model_in_16_bits_is_saved_in_16_bits_and_trained_in_32(model: Path, digits: Path, tmp_path: Path) -> None:
    """Its checkpoint opens in the type of its base, and a resumed run equals one that was not interrupted, bit for bit."""
    AutoModelForCausalLM.from_pretrained(model).to(torch.bfloat16).save_pretrained(tmp_path / "base")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(model / name, tmp_path / "base")
    config = options(tmp_path / "base", digits, tmp_path / "whole", num_steps=2, schedule="constant")
    train(config)
    train(RunConfig(**{**vars(config), "run_dir": tmp_path / "parted", "num_steps": 1}))
    train(RunConfig(**{**vars(config), "run_dir": tmp_path / "parted", "resume": True}))
    ours, theirs = (final_weights(tmp_path / name, 2) for name in ("parted", "whole"))
    assert {tensor.dtype for tensor in theirs.values()} == {torch.bfloat16}
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert measured(tmp_path / "parted")[2] == measured(tmp_path / "whole")[2]
    saved = tmp_path / "whole" / "checkpoints" / "step-000002"
    assert json.loads((saved / "config.json").read_text())["dtype"] == "bfloat16"
    exact = torch.load(saved / "exact_weights.pt")
    assert {tensor.dtype for tensor in exact.values()} == {torch.float32}
    assert all(torch.equal(exact[name.partition("/")[2]].bfloat16(), tensor) for name, tensor in theirs.items())


@pytest.mark.parametrize("lora_rank", [0, 4])
def test_what_cannot_be_saved_is_found_before_training(
    lora_rank: int, model: Path, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("Some tensors share memory")

    monkeypatch.setattr("transformers.PreTrainedTokenizerBase.save_pretrained", refuse)
    with pytest.raises(RuntimeError, match="share memory"):  # a bug, which keeps its trace, and no full disk
        train(options(model, digits, tmp_path / "run", lora_rank=lora_rank))
    assert read_metrics(tmp_path / "run") == []
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == []


def test_only_what_the_disk_refuses_is_told_as_such(tmp_path: Path) -> None:
    """torch raises a RuntimeError while it handles the disk's own error, which a bug has not."""

    def as_torch_saves() -> None:
        try:
            raise OSError(28, "No space left on device")
        finally:
            raise RuntimeError("unexpected pos 704 vs 598")

    with pytest.raises(UserError, match="could not be written"), writing(tmp_path):
        as_torch_saves()
    with pytest.raises(RuntimeError, match="a bug"), writing(tmp_path):
        raise RuntimeError("a bug")
    with pytest.raises(UserError, match=r"could not be written \(OSError\)"), writing(tmp_path):
        raise OSError


def test_only_the_policy_lies_where_an_engine_looks_for_weights(model: Path, digits: Path, tmp_path: Path) -> None:
    """vLLM reads every safetensors file of a folder: a critic's would take the place of the policy's."""
    run = train(options(model, digits, tmp_path / "run", num_steps=1, algorithm="ppo-separate", save_every=1))
    saved = run / "checkpoints" / "step-000001"
    assert [path.name for path in saved.glob("*.safetensors")] == ["model.safetensors"]
    assert load_file(saved / "critic" / "critic.safetensors")


def test_a_checkpoint_with_its_critic_beside_the_model_is_resumed(model: Path, digits: Path, tmp_path: Path) -> None:
    """As earlier versions wrote it."""
    config = options(model, digits, tmp_path / "run", num_steps=1, algorithm="ppo", schedule="constant")
    saved = train(config) / "checkpoints" / "step-000001"
    (saved / "critic" / "value_head.safetensors").rename(saved / "value_head.safetensors")
    (saved / "critic").rmdir()
    sums = (saved / "SHA256SUMS").read_text().replace("critic/value_head", "value_head")
    (saved / "SHA256SUMS").write_text(sums)
    train(RunConfig(**{**vars(config), "num_steps": 2, "resume": True}))
    assert [row["step"] for row in read_metrics(tmp_path / "run")] == [0, 1, 2]


def test_a_policy_keeps_float32_where_its_base_is_float32(model: Path, tmp_path: Path) -> None:
    policy = Policy.of(AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32))
    policy.save(tmp_path / "saved")
    assert not (tmp_path / "saved" / "exact_weights.pt").exists()
    assert {t.dtype for t in load_file(tmp_path / "saved" / "model.safetensors").values()} == {torch.float32}
