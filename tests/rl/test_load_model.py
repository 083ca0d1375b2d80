"""A folder whose weights are not all there, or no numbers, is refused: what is missing would be random."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from rewards.errors import UserError, first_line
from rl.policy import load_pretrained

HEAD, LAYER = "lm_head.weight", "model.layers.0.mlp.down_proj.weight"


@pytest.fixture
def untied(model: Path, tmp_path: Path) -> Path:
    """The tiny model with an output layer of its own."""
    folder = Path(shutil.copytree(model, tmp_path / "untied"))
    loaded = AutoModelForCausalLM.from_pretrained(model)
    loaded.config.tie_word_embeddings = False
    loaded.lm_head.weight = torch.nn.Parameter(2 * loaded.lm_head.weight.detach())
    loaded.save_pretrained(folder)
    return folder


def change(folder: Path, name: str, tensor: torch.Tensor | None) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights[name]
    if tensor is not None:
        weights[name] = tensor
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("name", [HEAD, LAYER])
def test_missing_weights_are_named(name: str, untied: Path) -> None:
    change(untied, name, None)
    with pytest.raises(UserError, match=rf"files lack 1 of the weights .*{name}.*random"):
        load_pretrained(untied, torch.device("cpu"))


def test_a_critic_needs_no_output_layer(untied: Path) -> None:
    change(untied, HEAD, None)
    load_pretrained(untied, torch.device("cpu"), needs_head=False)
    change(untied, LAYER, None)
    with pytest.raises(UserError, match="files lack 1 of the weights"):
        load_pretrained(untied, torch.device("cpu"), needs_head=False)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_no_numbers_are_named(value: float, untied: Path) -> None:
    weight = load_file(untied / "model.safetensors")[LAYER]
    weight[0, 1] = value
    change(untied, LAYER, weight)
    with pytest.raises(UserError, match=f"{LAYER} holds numbers that are not finite"):
        load_pretrained(untied, torch.device("cpu"))


def test_an_error_without_a_message_is_told_by_its_type() -> None:
    assert first_line(RuntimeError("\n one\n two")) == "one"
    assert first_line(MemoryError()) == "MemoryError"
