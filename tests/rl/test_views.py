"""A policy that draws more than tokens is a pair, sample and score, and the step knows nothing of it.

This one reads its prompt through a random mask, of which the completion keeps the seed as its view.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from rewards.score import Outcome, Score
from rl.forward.choose_forward import ForwardChoice
from rl.forward.forward import padded_forward
from rl.forward.layouts import PaddedRows, padded_tokens
from rl.forward.micro_batch import TrainGroup
from rl.objective.algorithms import GRPO
from rl.policy.families import PolicyFamily, causal_probe
from rl.policy.policy import Policy
from rl.processes.runtime import Runtime
from rl.update.batch import pack
from rl.update.learner import Learner
from rl.update.update import own_micro_batches, update
from rollout.engine.draw import draw_tokens, uniforms
from rollout.records import Completion, FinishReason, Problem, Rollout, RolloutGroup
from rollout.sampler import SamplingParams, completion_seed
from tests.rl.models import VOCAB, make

LENGTH = 6


def masked(prompt: Tensor, view: int) -> Tensor:
    """About half of its tokens, token 0 for the others."""
    return prompt * (torch.rand(len(prompt), generator=torch.Generator().manual_seed(view)) < 0.5)


def masked_rows(groups: Sequence[TrainGroup]) -> PaddedRows:
    """Whole rows, each behind its prompt as its view masks it."""
    shown = []
    for group in groups:
        for sequence in group.sequences:
            assert sequence.view is not None
            prompt = masked(torch.tensor(group.prompt_ids), sequence.view)
            shown.append(TrainGroup(tuple(prompt.tolist()), (sequence,)))
    return PaddedRows.of(shown)


MASKED = PolicyFamily(
    name="masked prompts",
    recognises=lambda config: False,
    choose_forward=lambda model, *_: ForwardChoice(replace(padded_forward, lay_out=masked_rows)),
    view_at=lambda view, epoch: view + epoch,
    runs_in_vllm=False,
    probe=causal_probe,
)


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
    policy = Policy.of(make("qwen2"), family=MASKED)
    groups = sampled(policy.model)
    batch = pack(GRPO.assign_credit(groups, LENGTH), GRPO, LENGTH)
    (micro,) = batch.viewed(MASKED.view_at, 0).micro_batches(10_000, padded_tokens)
    assert len(micro.groups) == 16  # sequences share a prompt only under one view
    with torch.no_grad():
        first, second = (policy.score(micro, 1.0).logprobs for _ in range(2))
        plain = Policy.of(policy.model).score(micro, 1.0).logprobs  # as if there were no views
    assert torch.equal(first, second)
    assert (first - micro.sampler_logprobs).abs().max() < 1e-5  # two float32 forwards of other shapes
    assert (plain - micro.sampler_logprobs).abs().max() > 0.1

    learner = Learner(
        policy=policy,
        reference=policy.frozen_copy(),
        optimizer=torch.optim.SGD(policy.model.parameters(), lr=0.1),
        runtime=Runtime.start(dtype="float32", device="cpu"),
        algorithm=GRPO,
        temperature=1.0,
        token_budget=40,
        max_grad_norm=1.0,
    )
    measured = update(learner, batch)
    assert measured["ratio/max"] == 1.0
    assert measured["kl/reference"] == 0.0
    assert measured["mismatch/max"] == pytest.approx(0.0, abs=1e-5)


def learner_of(policy: Policy, **options: int) -> Learner:
    return Learner(
        policy=policy,
        reference=None,
        optimizer=torch.optim.SGD(policy.model.parameters(), lr=0.1),
        runtime=Runtime.start(dtype="float32", device="cpu"),
        algorithm=replace(GRPO, kl_weight=0.0, importance_cap=None),
        temperature=1.0,
        token_budget=10_000,
        max_grad_norm=1.0,
        **options,
    )


def test_old_log_probs_are_kept_for_each_epochs_view() -> None:
    """d1, Algorithm 1: each inner update scores under its own mask, and so do the old log-probs it is divided by.

    The ratio of the second epoch is exp(l - b) with l and b under view + 1: b restated on the weights before the first update.
    """
    policy = Policy.of(make("qwen2"), family=MASKED)
    groups = sampled(policy.model)
    twice = learner_of(policy, num_epochs=2)
    batch = pack(twice.algorithm.assign_credit(groups, LENGTH), twice.algorithm, LENGTH)
    (second,) = batch.viewed(MASKED.view_at, 1).micro_batches(10_000, padded_tokens)
    old, _ = policy.logprobs_and_values(second, 1.0)
    once = learner_of(Policy.of(make("qwen2"), family=MASKED))
    update(once, batch)
    scores = once.policy.score(second, 1.0)
    once.algorithm.loss(scores, old, None, second).backward()
    once.step_if_finite(0.0)
    update(twice, batch)
    ours, theirs = (torch.cat([p.flatten() for p in of.policy.model.parameters()]) for of in (twice, once))
    assert torch.equal(ours, theirs)


def test_a_group_whose_completions_have_several_views_is_in_one_process() -> None:
    """DPO compares its pairs there."""
    learner = learner_of(Policy.of(make("qwen2"), family=MASKED))
    groups = sampled(learner.policy.model)
    batch = pack(GRPO.assign_credit(groups, LENGTH), GRPO, LENGTH)
    held: list[set[int]] = []
    for rank in range(2):
        learner.runtime = replace(learner.runtime, rank=rank, count=2)
        micros = own_micro_batches(learner, batch, 0)
        found = sorted(group for micro in micros for group in micro.group_of)
        assert all(found.count(group) == 4 for group in found)
        held.append(set(found))
    assert held[0] | held[1] == {0, 1, 2, 3} and not held[0] & held[1]


def test_a_family_without_views_refuses_completions_that_have_some() -> None:
    groups = sampled(make("qwen2"))
    learner = learner_of(Policy.of(make("qwen2")))
    with pytest.raises(ValueError, match="has none"):
        update(learner, pack(learner.algorithm.assign_credit(groups, LENGTH), learner.algorithm, LENGTH))


def test_two_scores_under_one_view_are_equal_and_a_ratio_is_one_before_the_first_update() -> None:
    policy = Policy.of(make("qwen2"), family=MASKED)
    groups = sampled(policy.model)
    batch = pack(GRPO.assign_credit(groups, LENGTH), GRPO, LENGTH).viewed(MASKED.view_at, 3)
    (micro,) = batch.micro_batches(10_000, padded_tokens)
    assert torch.equal(policy.score(micro, 1.0).logprobs, policy.score(micro, 1.0).logprobs)
    assert torch.equal(policy.logprobs_and_values(micro, 1.0)[0], policy.score(micro, 1.0).logprobs)
