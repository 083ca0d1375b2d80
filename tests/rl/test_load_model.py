"""A folder whose weights are not all there, or no numbers, is refused: what is missing would be random."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from rewards.errors import UserError, first_line
from rl.policy.load import load_pretrained

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


LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("left", ["pointer", "nothing", "its head", "all but its end"])
def test_a_weight_file_that_is_cut_short_or_a_pointer_is_no_trace(name: str, left: str, untied: Path) -> None:
    whole = (untied / "model.safetensors").read_bytes()
    (untied / "model.safetensors").unlink()
    contents = {"pointer": LFS_POINTER, "nothing": b"", "its head": whole[:40], "all but its end": whole[:-40]}
    (untied / name).write_bytes(contents[left])
    with pytest.raises(UserError, match=r"untied.*: it cannot be loaded as a causal LM .*; give a folder"):
        load_pretrained(untied, torch.device("cpu"))


def test_weights_of_another_shape_than_the_configuration_s_are_named(untied: Path) -> None:
    change(untied, LAYER, load_file(untied / "model.safetensors")[LAYER][:-1].clone())
    width, inner = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(untied)).get_parameter(LAYER).shape
    expected = rf"asks for a {LAYER} of shape \[{width}, {inner}\], and its files have one of \[{width - 1}, {inner}\]"
    with pytest.raises(UserError, match=expected):
        load_pretrained(untied, torch.device("cpu"))


def test_an_output_layer_of_another_shape_is_no_matter_to_a_critic(untied: Path) -> None:
    change(untied, HEAD, load_file(untied / "model.safetensors")[HEAD][:-1].clone())
    load_pretrained(untied, torch.device("cpu"), needs_head=False)
    with pytest.raises(UserError, match=f"asks for a {HEAD} of shape"):
        load_pretrained(untied, torch.device("cpu"))


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
