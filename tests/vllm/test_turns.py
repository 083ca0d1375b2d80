"""vLLM's prefix cache serves a rollout's later turns, and a delivery empties it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from rl.capacity.cost import ModelCost
from rollout.sampler import RequestQueue, SampleRequest, SamplingParams
from rollout.torch_sampler import stop_token_ids
from tests.rollout import families
from tests.rollout.tiny import plain_logprobs, tokenizer
from tests.vllm.conftest import saved
from tests.vllm.test_delivery import in_a_process_of_its_own

LONG = 256  # vLLM shares whole blocks, of 128 tokens on a CPU


def model_of(seed: int) -> PreTrainedModel:
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 2, "num_key_value_heads": 1}
    further = {"max_position_embeddings": 2 * LONG, "initializer_range": 0.2, "tie_word_embeddings": True}
    return families.model_of("qwen2", {**sizes, **further}, seed)


@pytest.mark.timeout(180)
def test_a_later_turn_takes_up_the_cache_until_new_weights_come(tmp_path: Path) -> None:
    in_a_process_of_its_own(takes_up_the_cache, tmp_path)


def takes_up_the_cache(folder: Path) -> None:
    """Four turns. The weights come before the third, while another completion is still being decoded: all that vLLM has then is stale."""
    from rollout.vllm_sampler import VLLMOptions, VLLMSampler

    model, other = model_of(0), model_of(1)
    options = VLLMOptions(dtype="float32", max_length=2 * LONG, key_values=ModelCost.of(model).key_value)
    sampler = VLLMSampler(saved(model, folder), tokenizer(), stop_token_ids(model, tokenizer()), options)
    step, cached = sampler.llm.llm_engine.step, list[int | None]()

    def counted() -> list[Any]:
        outputs = step()
        cached.extend(output.num_cached_tokens for output in outputs if output.finished)
        return outputs

    sampler.llm.llm_engine.step = counted
    prompt, queue, turns = tuple(3 + i * i % 13 for i in range(LONG + 10)), RequestQueue(), []
    queue.put(SampleRequest(prompt, (1,), is_last=False))
    queue.put(SampleRequest(prompt[::-1], (2,), 200))  # longer than all turns together
    contexts = [prompt]
    for number, _, turn in sampler.stream(queue, SamplingParams(max_tokens=6, temperature=0)):
        if number == 1:
            continue
        turns.append(turn)
        if len(turns) == 4:
            queue.close()
            continue
        if len(turns) == 2:
            sampler.update_weights(other.named_parameters(remove_duplicate=False), version=1)
        contexts.append((*contexts[-1], *turn.token_ids, 4, 5))
        queue.put(SampleRequest(contexts[-1], (3,), is_last=False))
    assert cached[:4] == [0, LONG, 0, LONG]
    for weights, context, turn in zip((model, model, other, other), contexts, turns, strict=True):
        expected = plain_logprobs(weights, context, turn.token_ids)
        assert (expected - torch.tensor(turn.sampler_logprobs)).abs().max() < 1e-4  # vLLM's sums over 270 tokens
    sampler.close()
