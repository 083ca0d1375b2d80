"""A decode step is a known amount of work, and nothing in it waits for the host: so one graph can hold it."""

from __future__ import annotations

from tests.made_up_cuda import needs_compiler, run


@needs_compiler
def test_a_decode_step_reads_nothing_back_and_costs_what_it_did() -> None:
    """Four layers, 256 rows, 512 shared and 576 own columns. The forward reads weights and head, 0.84 GB, and 0.6 GB of own keys and
    values; the rest is states, and scores in float32. A draw moves 30 bytes for each of 256 x 151,936 logits."""
    found = run("tests.made_up_cuda.check_decode")
    assert found["reads"] == {}
    assert found["forward"]["copies"] == found["draw"]["copies"] == 0
    assert found["forward"]["launches"] <= 192
    assert found["forward"]["bytes"] <= 2.6e9
    assert found["draw"]["launches"] <= 60
    assert found["draw"]["bytes"] <= 1.2e9
