"""Norms and gated units by Triton's kernels, which its interpreter runs here, and by compiled ones give the model's numbers and gradients."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rl.forward import cpu_kernels

ROOT = Path(__file__).resolve().parents[2]
FLOAT32_ERROR = 1e-6  # of a vector, relative to its length: sums of some hundred numbers that are kept to 6e-8
BFLOAT16_ERROR = 2**-8  # a number is rounded to the nearest that has 8 bits: at most by that


@pytest.fixture(scope="module", params=["triton", "compiled"])
def found(request: pytest.FixtureRequest) -> dict[str, Any]:
    if request.param == "triton":
        pytest.importorskip("triton")
    elif cpu_kernels.compiled is None:
        pytest.skip("no compiled parts: install with a C++ compiler")
    command = [sys.executable, "-m", "tests.rl.check_fused", request.param]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_values_and_gradients_of_the_kernels(found: dict[str, Any]) -> None:
    """Against float64."""
    for name, error in found["kernels"].items():
        assert error < (BFLOAT16_ERROR if "bfloat16" in name else FLOAT32_ERROR), name


@pytest.mark.parametrize("name", ["Qwen2", "Qwen3", "Qwen2, LoRA"])
def test_a_model_gives_its_own_logprobs_and_gradients(found: dict[str, Any], name: str) -> None:
    """Under autocast it is as far from float32 as the model's own forward: the two round other numbers. What the up to six products that
    read a norm send back is added in 16 bits, so gradients may be off by twice as much."""
    model = found["models"][name]
    logprobs, gradients = model["bfloat16"]
    assert model["refused"] is None
    assert model["float32"] < 1e-5  # 8 layers' worth of FLOAT32_ERROR
    assert logprobs < 1.5 and gradients < 2


@pytest.mark.parametrize("name", ["Qwen2", "Qwen3", "Qwen2, LoRA"])
def test_layers_that_are_run_again_in_the_backward_are_fused_too(found: dict[str, Any], name: str) -> None:
    """Else gradients would be those of another rounding."""
    assert found["models"][name]["recomputed"] == 0


def test_nothing_of_it_stays_in_the_model(found: dict[str, Any]) -> None:
    assert all(model["left"] == 0 for model in found["models"].values())


def test_products_read_16_bits_and_what_layers_add_up_stays_float32(found: dict[str, Any]) -> None:
    """A norm of heads (before rotary positions), the input and output of gate_proj, of the unit, of the layer."""
    plain, fused = (found["types"][name] for name in ("plain", "fused"))
    assert plain == ["bfloat16 float32", "float32 bfloat16", "float32 bfloat16", "float32 float32"]
    assert fused == ["bfloat16 float32", "bfloat16 bfloat16", "bfloat16 bfloat16", "float32 float32"]


def test_a_norm_that_looks_like_llamas_and_is_another_is_found_out(found: dict[str, Any]) -> None:
    assert "its log-probs differ from the model's own by" in found["another norm"]


def test_which_families_are_fused(found: dict[str, Any]) -> None:
    refused = {name for name, reason in found["families"].items() if reason is not None}
    assert refused == {"Gemma", "OLMo 2", "GPT-2", "Mixtral"}
