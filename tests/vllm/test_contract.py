"""Real vLLM keeps the samplers' contract."""

from __future__ import annotations

import pytest

from rollout.sampler import Sampler, SampleRequest, SamplingParams
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


def test_more_prompts_are_sampled_than_are_run_at_once(vllm: Sampler) -> None:
    """7,200 tokens, of which vLLM runs 4,096 together. Were the last of these prompts cut there, its generator would be turned back
    afterwards, which on a CPU cannot be done."""
    requests = [SampleRequest(tuple(3 + (i + i * j) % 13 for j in range(1, 61)), (i,)) for i in range(120)]
    found = vllm.sample(requests, SamplingParams(max_tokens=3))
    assert len(found) == 120 and all(completion.token_ids for (completion,) in found)
