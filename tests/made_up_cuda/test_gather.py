"""Processes whose GPUs are different ones can put together what they tell each other."""

from __future__ import annotations

from tests.made_up_cuda import needs_compiler, run


@needs_compiler
def test_what_two_gpus_have_seen_can_be_put_together() -> None:
    """The means over the values of both, and advantages whitened over both, which stay where they were."""
    found = run("tests.made_up_cuda.check_gather")
    assert found["tokens"] == 10 and {"value/mean", "value/return", "value/explained"} <= set(found["values"])
    assert found["whitened on"] == "cuda:0"
