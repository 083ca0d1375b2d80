"""What --dtype auto stands for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import Qwen2Config

from rl.forward.output_head import _exact_product
from rl.settings.defaults import hidden_size, resolved_dtype


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)


def saved(folder: Path, size: int) -> str:
    Qwen2Config(hidden_size=size).save_pretrained(folder)
    return str(folder)


@pytest.mark.usefixtures("on_cpu")
@pytest.mark.parametrize(
    ("units", "size", "expected"),
    [
        ({"avx512_bf16": True}, 256, "bfloat16"),
        ({"amx_bf16": True}, 576, "bfloat16"),
        ({"avx512_bf16": True}, 255, "float32"),
        ({"avx512_bf16": False, "avx512_f": True}, 576, "float32"),
        ({}, 576, "float32"),
    ],
)
def test_a_cpu_that_multiplies_in_bfloat16_does_for_models_of_some_size(
    units: dict[str, bool], size: int, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: units)
    model = saved(tmp_path, size)
    assert resolved_dtype("auto", model) == expected
    assert resolved_dtype("float32", model) == "float32"
    assert resolved_dtype("auto", "tiny") == "float32"


def test_a_model_without_a_config_has_no_size(tmp_path: Path) -> None:
    """Loading it tells."""
    assert hidden_size(str(tmp_path)) == 0


def test_logits_in_16_bits_are_not_rounded_to_16_bits() -> None:
    """Beside the float64 product of the same rounded factors: 2^-9 of 30 would be 0.06."""
    torch.manual_seed(0)
    hidden, weight = (torch.randn(64, 256) * 2).bfloat16(), torch.randn(256, 1000).bfloat16()
    right = hidden.double() @ weight.double()
    assert right.abs().max() > 30
    assert (_exact_product(hidden, weight).double() - right).abs().max() < 1e-3
