"""A thinking budget in vLLM: its turns are cut and gone on with as those of the embedded engine."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rl.capacity.cost import ModelCost
from rollout.torch_sampler import stop_token_ids
from tests.rollout.test_budget_forcing import RANGE, collected_by
from tests.rollout.tiny import plain_logprobs, tokenizer
from tests.vllm.conftest import saved
from tests.vllm.test_delivery import in_a_process_of_its_own
from tests.vllm.test_turns import model_of


@pytest.mark.timeout(180)
def test_completions_of_vllm_keep_to_their_budget(tmp_path: Path) -> None:
    in_a_process_of_its_own(keeps_to_the_budget, tmp_path)


def keeps_to_the_budget(folder: Path) -> None:
    """What the policy chose has the model's own log-probs at its place behind the forced tokens."""
    from rollout.vllm_sampler import VLLMOptions, VLLMSampler

    model = model_of(0)
    options = VLLMOptions(dtype="float32", max_length=64, key_values=ModelCost.of(model).key_value)
    sampler = VLLMSampler(saved(model, folder), tokenizer(), stop_token_ids(model, tokenizer()), options)
    groups = collected_by(RANGE, sampler).groups  # pyright: ignore[reportArgumentType]  another engine with `turns`
    sampler.close()
    completions = [(group.prompt_ids, rollout.completion) for group in groups for rollout in group.rollouts]
    thinking = [c.thinking for _, c in completions if c.thinking is not None]
    assert len(thinking) == len(completions) == 18 and all(t.num_tokens <= RANGE.most for t in thinking)
    assert any(t.is_cut for t in thinking) and any(t.num_waits for t in thinking)
    for prompt_ids, completion in completions:
        expected = plain_logprobs(model, prompt_ids, completion.token_ids)[torch.tensor(completion.loss_mask)]
        assert (expected - torch.tensor(completion.sampler_logprobs)).abs().max() < 1e-4  # other sums in float32
