"""vLLM's output layer multiplies in float32 where the run asks for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rl.capacity.cost import ModelCost
from rollout.turn import stop_token_ids
from tests.rollout.tiny import tokenizer
from tests.vllm.conftest import MAX_LENGTH, model_of, saved
from tests.vllm.test_delivery import in_a_process_of_its_own


def logits_of(worker: Any, states: Tensor) -> Tensor:
    return worker.model_runner.get_model().compute_logits(states)


def test_its_logits_are_not_rounded(tmp_path: Path) -> None:
    in_a_process_of_its_own(has_exact_logits, tmp_path)


def has_exact_logits(folder: Path) -> None:
    """In a model in bfloat16: as a product in float64 of its states and weights, both in 16 bits. Rounded they would be off by 1e-2."""
    from rollout.vllm_sampler import VLLMOptions, VLLMSampler

    model = model_of(0)
    key_values = ModelCost.of(model).key_value
    options = VLLMOptions(dtype="bfloat16", max_length=MAX_LENGTH, key_values=key_values, float32_head=True)
    sampler = VLLMSampler(saved(model, folder), tokenizer(), stop_token_ids(model, tokenizer()), options)
    sampler.update_weights(model.named_parameters(remove_duplicate=False), version=0)
    states = torch.randn(5, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    (found,) = sampler.llm.collective_rpc(logits_of, args=(states,))
    weight = model.get_output_embeddings().weight.detach().bfloat16()  # pyright: ignore
    assert found.dtype == torch.float32
    # Sums of 64 products of size 1 in float32.
    assert (found - states.double() @ weight.double().T).abs().max() < 1e-5
    sampler.close()
