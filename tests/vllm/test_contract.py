"""Real vLLM keeps the samplers' contract."""

from __future__ import annotations

import pytest

from rollout.sampler import Sampler
from tests.rollout.sampler_contract import Engine, SamplerContract
from tests.rollout.tiny import tokenizer
from tests.vllm.conftest import model_of


@pytest.fixture
def engine(vllm: Sampler) -> Engine:
    model = model_of(0)

    def anew(max_rows: int) -> Sampler:
        """With the weights of the test's model; the number of rows is the engine's own."""
        vllm.update_weights(model.named_parameters(remove_duplicate=False), version=0)
        return vllm

    return Engine(model=model, other=model_of(1), tokenizer=tokenizer(), sampler=anew, uniform=None)


class TestVLLMSampler(SamplerContract):
    pass
