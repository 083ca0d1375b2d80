"""On a GPU: what is kept in 16 bits is, what waits in the host's memory waits there, and no devices mix on the way."""

from __future__ import annotations

import pytest

from tests.made_up_cuda import needs_compiler, run

pytestmark = needs_compiler


@pytest.fixture(scope="module")
def found() -> dict[str, dict[str, object]]:
    return run("tests.made_up_cuda.check_memory")


def test_frozen_weights_are_in_16_bits_and_trained_ones_are_not(found: dict[str, dict[str, object]]) -> None:
    plain, adapters = found["nothing away"], found["adapters"]
    assert plain["reference"] == ["bfloat16 on cuda"] and plain["weights"] == plain["trained"] == ["float32 on cuda"]
    assert adapters["weights"] == ["bfloat16 on cuda"] and adapters["trained"] == ["float32 on cuda"]


def test_moments_wait_in_the_hosts_memory(found: dict[str, dict[str, object]]) -> None:
    """Each travels to the device and back once a step. (Tensors without contents keep their device when their data are replaced, so
    the way of the reference is tested on a CPU only.)"""
    assert found["nothing away"]["moments"] == ["float32 on cuda"]
    base: dict[str, int] = found["nothing away"]["copies"]  # pyright: ignore[reportAssignmentType]  of the micro-batches and their losses
    for name in ("all, gradients in 16 bits", "adapters"):
        copies: dict[str, int] = found[name]["copies"]  # pyright: ignore[reportAssignmentType]
        assert found[name]["moments"] == ["float32 on cpu"]
        for way in ("to the host", "to the device"):
            assert copies[way] - base[way] == found[name]["number of moments"]
