"""A teacher behind vLLM's own server, as anybody starts it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rewards.errors import UserError
from rl.forward.micro_batch import MicroBatch, TrainGroup, TrainSequence
from rl.policy.policy import Policy
from rl.policy.served_teacher import ServedTeacher
from tests.rollout.tiny import tokenizer
from tests.vllm.conftest import model_of, saved
from tests.vllm.test_server import Server


def test_vllms_own_server_scores_as_the_model_does(tmp_path: Path) -> None:
    """Its attention sums in another order: log-probs of float32 weights differ by 1e-5. Some tokens are not scored."""
    server = Server(saved(model_of(0), tmp_path), plain=["--max-model-len", "64"], VLLM_CPU_KVCACHE_SPACE="1")
    try:
        server.wait()
        usual = {"timeout": 60.0, "report": print}
        teacher = ServedTeacher.at(server.url, tokenizer(), longest=40, **usual)  # pyright: ignore[reportArgumentType]
        masked = TrainSequence(
            token_ids=(5, 6, 7, 8),
            sampler_logprobs=(0.0, 0.0),
            advantages=torch.zeros(2),
            weight=0.0,
            loss_mask=(True, False, False, True),
        )
        groups = [TrainGroup((3, 4, 5), (TrainSequence.to_score((9,)), masked))]
        groups.append(TrainGroup((7,), tuple(TrainSequence.to_score(range(3, 3 + n)) for n in (1, 30))))
        micros = [MicroBatch.of(groups[:1]), MicroBatch.of(groups)]
        ours, theirs = Policy.of(model_of(0)).frozen_logprobs(micros, 1.0), teacher.frozen_logprobs(micros, 1.0)
        assert [len(found) for found in theirs] == [3, 34]
        assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(ours, theirs, strict=True))
        with pytest.raises(UserError, match=r"takes at most 64 tokens, and a prompt with max_tokens is 65"):
            ServedTeacher.at(server.url, tokenizer(), longest=64, **usual)  # pyright: ignore[reportArgumentType]
    finally:
        server.kill()
