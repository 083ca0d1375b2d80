"""What an update asks of a GPU does not grow: launches, bytes and operations of a layer, of the output layer, of the whole.

Bounds are what was measured and a few percent. A row of about 8,000 tokens at lengths as in training, Qwen2.5-1.5B's shape.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.made_up_cuda import needs_compiler, run

pytestmark = needs_compiler


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    return run("tests.made_up_cuda.check_update", seconds=600)


# launches, GB, TFLOP; attention is counted as if it were not causal
LAYER = {
    ("full", "forward"): (55, 3.75, 0.9),
    ("full", "backward"): (110, 10.0, 1.88),
    ("lora", "forward"): (103, 6.7, 0.91),
    ("lora", "backward"): (148, 12.3, 1.13),
    ("full, fused", "forward"): (38, 2.54, 0.9),
    ("full, fused", "backward"): (72, 4.7, 1.88),
    ("lora, fused", "forward"): (81, 5.1, 0.91),
    ("lora, fused", "backward"): (107, 6.6, 1.13),
}


@pytest.mark.parametrize(("kind", "part"), LAYER)
def test_a_layer(found: dict[str, Any], kind: str, part: str) -> None:
    """By padded blocks it takes 320 launches and 15.1 GB, with LoRA 412 and 21.8.

    Without contents the backward of SiLU is seven kernels, which on a GPU are one: 2.1 GB of what is counted where it is not fused.
    """
    if kind not in found:
        pytest.skip("needs Triton")
    layer, (launches, gigabytes, teraflops) = found[kind][part], LAYER[kind, part]
    assert layer["launches"] <= launches
    assert layer["bytes"] / 1e9 <= gigabytes
    assert layer["flops"] / 1e12 <= teraflops


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_a_micro_batch_is_moved_by_two_copies(found: dict[str, Any], kind: str) -> None:
    """Its tensors, and the layout of its attention."""
    update = found[kind]["update"]
    assert update["copies"]["to the device"] == 2 * update["micro-batches"]


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_the_host_reads_a_few_numbers_a_step_and_none_a_micro_batch(found: dict[str, Any], kind: str) -> None:
    """The losses, the gradient's length, the means of what is measured: ten numbers a micro-batch before."""
    update = found[kind]["update"]
    assert sum(update["reads"].values()) + update["copies"]["to the host"] == 3


# MB a scored token
HEAD = {("full", "train"): 12.8, ("lora", "train"): 10.9, ("full", "reference"): 1.75, ("lora", "reference"): 1.75}


@pytest.mark.parametrize(("kind", "part"), HEAD)
def test_the_output_layer(found: dict[str, Any], kind: str, part: str) -> None:
    """By chunks of 128 tokens it moves 40.5 MB (17.4 with a frozen weight), the reference's 10.0."""
    assert found[kind]["head"][part] / 1e6 <= HEAD[kind, part]


def test_on_a_gpu_norms_and_gates_are_fused_and_it_is_said(found: dict[str, Any]) -> None:
    pytest.importorskip("triton")
    assert found["path"] == "packed rows, ragged attention by torch (varlen), norms and gates fused"


def test_scaled_dot_product_attention_leaves_cudnn_out(found: dict[str, Any]) -> None:
    assert found["cudnn"] is False
