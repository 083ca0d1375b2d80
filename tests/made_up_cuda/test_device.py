"""The made-up device does what a GPU does where it matters here: autocast, gradients, devices that do not mix."""

from __future__ import annotations

from tests.made_up_cuda import needs_compiler, run


@needs_compiler
def test_the_device_computes_types_and_counts_and_refuses_mixes() -> None:
    """One product of [4, 8] and [8, 16] forward and two backward, each 2 x 4 x 8 x 16 operations, in 16 bits: together they read and
    write every factor and result thrice."""
    found = run("tests.made_up_cuda.check_device")
    assert found["dtype"] == "torch.bfloat16" and found["grad"] == "cuda:0" and found["read"] == 0.0
    assert found["products"] == 3 and found["flops"] == 3 * 2 * 4 * 8 * 16
    assert found["bytes of products"] == 3 * 2 * (4 * 8 + 8 * 16 + 4 * 16)
    assert found["reads"] == {"__float__": 1} and found["copies"] == {"to the device": 1}
    assert found["cpu and gpu"] and found["two gpus"]
