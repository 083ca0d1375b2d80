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


def test_what_is_not_needed_waits_in_the_hosts_memory(found: dict[str, dict[str, object]]) -> None:
    """Each tensor travels once a step: the reference to the device, moments there and back."""
    assert found["nothing away"]["moments"] == ["float32 on cuda"]
    assert found["reference"]["moments"] == ["float32 on cuda"]
    for name in ("reference", "all, gradients in 16 bits", "a critic"):
        assert found[name]["reference"] == ["bfloat16 on cpu"]
    base = found["nothing away"]["copies"].get("to the device", 0)  # pyright: ignore  of the micro-batches
    for name, setting in found.items():
        away = setting["moments"] == ["float32 on cpu"]
        assert away == (name not in ("nothing away", "reference"))
        moments = setting["number of moments"] if away else 0
        reference = setting["number in the reference"] if "cpu" in str(setting["reference"]) else 0
        copies: dict[str, int] = setting["copies"]  # pyright: ignore[reportAssignmentType]
        assert copies.get("to the device", 0) - base == moments + reference, name  # pyright: ignore
        assert copies.get("to the host", 0) == moments
