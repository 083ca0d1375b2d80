"""What an update asks of a GPU does not grow: launches, bytes and operations of a layer, of the output layer, of the whole.

Bounds are what was measured and a few percent. A row of about 7,500 tokens at lengths as in training, Qwen2.5-1.5B's shape.
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
    ("full", "forward"): (55, 3.6, 0.88),
    ("full", "backward"): (110, 9.6, 1.85),
    ("lora", "forward"): (107, 7.3, 0.89),
    ("lora", "backward"): (152, 12.7, 1.15),
}


@pytest.mark.parametrize(("kind", "part"), LAYER)
def test_a_layer(found: dict[str, Any], kind: str, part: str) -> None:
    """By padded blocks it takes 320 launches and 15.1 GB, with LoRA 412 and 21.8."""
    layer, (launches, gigabytes, teraflops) = found[kind][part], LAYER[kind, part]
    assert layer["launches"] <= launches
    assert layer["bytes"] / 1e9 <= gigabytes
    assert layer["flops"] / 1e12 <= teraflops


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_a_micro_batch_is_moved_by_two_copies(found: dict[str, Any], kind: str) -> None:
    """Its tensors, and the layout of its attention."""
    update = found[kind]["update"]
    assert update["copies"] == {"to the device": 2 * update["micro-batches"]}


def test_scaled_dot_product_attention_leaves_cudnn_out(found: dict[str, Any]) -> None:
    assert found["cudnn"] is False
