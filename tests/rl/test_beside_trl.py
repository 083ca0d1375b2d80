"""What the GPU suite sets beside this trainer's update: TRL's own, on the tokens that it was given and no others."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.models import word_tokenizer
from rl.forward.forward import plain_forward
from rl.forward.micro_batch import MicroBatch, TrainGroup, TrainSequence
from rl.objective.reductions import StepCounts
from rl.update.batch import Batch
from tests.rl.models import VOCAB, make
from tests.rl.test_ragged import by_loop


def test_async_grpo_takes_the_gradient_of_the_given_completions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Plain descent by 1 without clipping leaves the gradient in the weights. The policy's own log-probs are the old ones: ratio 1."""
    pytest.importorskip("trl.experimental.async_grpo")
    from benchmarks.trl_async_side import seconds_of_steps, train

    # It asks for a GPU's name.
    monkeypatch.setattr("trl.experimental.async_grpo.async_grpo_trainer.get_peak_flops_per_device", lambda *_: 1.0)

    chance, model = random.Random(0), make("qwen2")
    model.save_pretrained(tmp_path)

    def drawn(most: int) -> list[int]:
        return [chance.randrange(3, VOCAB) for _ in range(chance.randint(2, most))]

    completions = [[drawn(9) for _ in range(3)] for _ in range(2)]
    prompts, count = [tuple(drawn(7)) for _ in completions], sum(len(c) for rows in completions for c in rows)
    micro = MicroBatch.of(
        [TrainGroup(p, tuple(map(TrainSequence.to_score, rows))) for p, rows in zip(prompts, completions, strict=True)]
    )
    logprobs = plain_forward.score(model, micro, 1.0).logprobs
    parts = iter(logprobs.detach().split([len(c) for rows in completions for c in rows]))
    signs = [[chance.choice((-1.0, 1.0)) for _ in rows] for rows in completions]

    def sequence(tokens: list[int], sign: float) -> TrainSequence:
        old, advantages = tuple(next(parts).tolist()), torch.full((len(tokens),), sign)
        return TrainSequence(token_ids=tuple(tokens), sampler_logprobs=old, advantages=advantages, weight=1 / count)

    groups = tuple(
        TrainGroup(prompt, tuple(map(sequence, rows, row_signs)))
        for prompt, rows, row_signs in zip(prompts, completions, signs, strict=True)
    )
    batch = Batch(groups, StepCounts(num_tokens=count, num_sequences=6, num_groups=len(groups), max_tokens=9))
    advantages = torch.cat([s.advantages for g in groups for s in g.sequences])
    (-(advantages * logprobs).sum() / count).backward()

    options: dict[str, Any] = {
        "use_cpu": True,
        "bf16": False,
        "optim": "sgd",
        "learning_rate": 1.0,
        "max_grad_norm": 0.0,
    }

    def attend(query: Tensor, key: Tensor, value: Tensor, pieces: Any, scale: float, window: tuple[int, int]) -> Tensor:
        lengths = (pieces.query_starts, pieces.key_starts, pieces.most_queries, pieces.most_keys)
        return by_loop(query, key, value, *lengths, scale, (window[0], 0))

    trained: list[Any] = []

    def run(end: Callable[[], object]) -> None:
        trained.append(
            train(batch, tmp_path, word_tokenizer(64), num_steps=1, after_each=end, attend=attend, **options)
        )

    assert seconds_of_steps(lambda: None, run) == []  # the first is not counted
    moved = dict(trained[0].model.named_parameters())
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(
            parameter.detach() - moved[name].detach().cpu(), parameter.grad, atol=1e-6, rtol=1e-3
        )
