"""A policy that draws more than tokens is a pair, sample and score, and the step knows nothing of it.

This one reads its prompt through a random mask, of which the completion keeps the seed as its view.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from rewards.score import Outcome, Score
from rl.forward.forward import Forward
from rl.forward.micro_batch import MicroBatch
from rl.objective.algorithms import GRPO
from rl.policy.policy import Policy
from rl.processes.runtime import Runtime
from rl.update.batch import pack
from rl.update.learner import Learner
from rl.update.step import update
from rollout.engine.draw import draw_tokens, uniforms
from rollout.records import Completion, FinishReason, Problem, Rollout, RolloutGroup
from rollout.sampler import SamplingParams, completion_seed
from tests.rl.models import VOCAB, make

LENGTH = 6


def masked(prompt: Tensor, view: int) -> Tensor:
    """About half of its tokens, token 0 for the others."""
    return prompt * (torch.rand(len(prompt), generator=torch.Generator().manual_seed(view)) < 0.5)


def score(model: PreTrainedModel, micro: MicroBatch) -> Tensor:
    """The hidden states of whole rows, each behind its prompt as its view masks it."""
    rows = micro.input_ids[micro.contexts]
    starts = [sum(micro.lengths[:i]) for i in range(len(micro.lengths))]
    for row, view, start in zip(rows, micro.views, starts, strict=True):
        length = int(micro.position_ids[micro.score_from[start]]) + 1
        if view is not None:
            row[:length] = masked(row[:length], view)
    hidden = model.get_decoder()(input_ids=rows, use_cache=False).last_hidden_state
    return hidden.flatten(0, 1).index_select(0, micro.score_from_padded)


@torch.no_grad()
def sample(model: PreTrainedModel, prompt: Sequence[int], seed: int) -> Completion:
    ids, logprobs = masked(torch.tensor(prompt), seed), []
    for step in range(LENGTH):
        logits = model(input_ids=ids[None], use_cache=False).logits[0, -1:]
        u = uniforms(torch.tensor([seed]), torch.tensor([step]))
        token, logprob = draw_tokens(logits, u, SamplingParams(max_tokens=LENGTH))
        ids = torch.cat([ids, token])
        logprobs.append(float(logprob))
    return Completion(
        token_ids=tuple(ids[len(prompt) :].tolist()),
        sampler_logprobs=tuple(logprobs),
        finish_reason=FinishReason.LENGTH,
        policy_version=0,
        seed=seed,
        text="",
        view=seed,
    )


def sampled(model: PreTrainedModel) -> list[RolloutGroup]:
    groups = []
    for p in range(4):
        prompt = tuple((7 * p + 3 * i) % (VOCAB - 2) + 2 for i in range(6))
        problem = Problem(id=str(p), prompt="", reference="")
        completions = [sample(model, prompt, completion_seed(0, 1, str(p), i)) for i in range(4)]
        right = [Score(float(i % 2), Outcome.CORRECT if i % 2 else Outcome.WRONG) for i in range(4)]
        rollouts = (Rollout(problem=problem, completion=c, score=s) for c, s in zip(completions, right, strict=True))
        groups.append(RolloutGroup(problem=problem, prompt_ids=prompt, rollouts=tuple(rollouts)))
    return groups


def test_completions_are_scored_under_the_views_they_were_sampled_with() -> None:
    policy = Policy(make("qwen2"), forward=Forward(score))
    groups = sampled(policy.model)
    batch = pack(GRPO.assign_credit(groups, LENGTH), GRPO, LENGTH)
    (micro,) = batch.micro_batches(10_000)
    with torch.no_grad():
        first, second = (policy.score(micro, 1.0).logprobs for _ in range(2))
        plain = Policy(policy.model).score(micro, 1.0).logprobs
    assert torch.equal(first, second)
    assert (first - micro.sampler_logprobs).abs().max() < 1e-5  # two float32 forwards of other shapes
    assert (plain - micro.sampler_logprobs).abs().max() > 0.1

    learner = Learner(
        policy=policy,
        reference=policy.frozen_copy(),
        optimizer=torch.optim.SGD(policy.model.parameters(), lr=0.1),
        runtime=Runtime(dtype="float32", device="cpu"),
        algorithm=GRPO,
        temperature=1.0,
        token_budget=40,
        max_grad_norm=1.0,
    )
    measured = update(learner, batch)
    assert measured["ratio/max"] == 1.0
    assert measured["kl/reference"] == 0.0
    assert measured["mismatch/max"] == pytest.approx(0.0, abs=1e-5)
