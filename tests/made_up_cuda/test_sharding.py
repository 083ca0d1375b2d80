"""On a GPU: sharded weights are where they are said to be, and what is computed with is on the GPU."""

from __future__ import annotations

import pytest

from tests.made_up_cuda import needs_compiler, run

pytestmark = needs_compiler

RESTING = ("weights", "gradients", "moments", "reference")


@pytest.fixture(scope="module")
def found() -> dict[str, dict[str, list[str]]]:
    return run("tests.made_up_cuda.check_sharding")


@pytest.mark.parametrize(("kind", "device"), [("sharded", "cuda"), ("offloaded", "cpu")])
def test_offloaded_weights_gradients_and_moments_rest_in_the_hosts_memory(
    kind: str, device: str, found: dict[str, dict[str, list[str]]]
) -> None:
    """A mix of devices in the update would raise."""
    assert {name: found[kind][name] for name in RESTING} == {name: [device] for name in RESTING}
    for name in ("gathered", "micro-batch", "computes on"):
        assert found[kind][name] == ["cuda"]
