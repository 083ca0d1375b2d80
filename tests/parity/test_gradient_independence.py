"""The gradient of a step is a property of the step: not of its micro-batches, its order, or what was left out as zero.

A tiny random Qwen2 in float32, the packed forward, every algorithm; and against the padded forward with the papers'
loss restated. Behaviour and reference differ from the policy, so ratios are clipped and the KL pulls.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from rl.forward.forward import packed_forward
from rl.objective.algorithms import ALGORITHMS, Algorithm
from rl.objective.losses import probability_ratio
from rl.update.batch import Batch, pack
from rollout.records import RolloutGroup
from tests.parity.cases import (
    MAX_TOKENS,
    TEMPERATURE,
    WITHOUT_CRITIC,
    advantages_of,
    drift,
    gradient_of,
    nearby,
    random_groups,
    relative_difference,
    tiny_qwen2,
)
from tests.parity.restated import (
    IMITATION,
    Scores,
    counted_lengths,
    padded_logprobs,
    padded_tables,
    step_loss,
    token_advantages,
    token_weight,
)

# Of the largest entry. float32 keeps 6e-8; an entry is a sum of about 100 tokens' terms, which partly cancel, in another
# order and through another attention kernel. Measured: at most 2e-6.
SAME = 2e-5
WHOLE = 10_000  # tokens: everything in one micro-batch

Behaviour = Callable[[Tensor, Tensor], Tensor]  # policy log-probs, sampler log-probs -> behaviour log-probs


@pytest.fixture(scope="module")
def policy() -> PreTrainedModel:
    return tiny_qwen2()


@pytest.fixture(scope="module")
def reference(policy: PreTrainedModel) -> PreTrainedModel:
    return nearby(policy, tiny_qwen2())


def packed(algorithm: Algorithm, groups: Sequence[RolloutGroup]) -> Batch:
    return pack(algorithm.assign_credit(groups, MAX_TOKENS), algorithm, MAX_TOKENS)


def step_gradient(
    algorithm: Algorithm,
    batch: Batch,
    policy: PreTrainedModel,
    reference: PreTrainedModel,
    *,
    budget: int = WHOLE,
    behaviour: Behaviour = drift,
) -> Tensor:
    """The sum of the micro-batches' gradients."""
    total = torch.zeros(sum(p.numel() for p in policy.parameters()))
    for micro in batch.micro_batches(budget):
        scores = packed_forward.score(policy, micro, TEMPERATURE)
        fixed = packed_forward.score(reference, micro, TEMPERATURE).logprobs if algorithm.kl_weight else None
        loss = algorithm.loss(scores, behaviour(scores.logprobs, micro.sampler_logprobs), fixed, micro)
        total += gradient_of(policy, loss)
    return total


@pytest.mark.parametrize("name", WITHOUT_CRITIC)
def test_the_gradient_does_not_depend_on_the_token_budget(
    name: str, policy: PreTrainedModel, reference: PreTrainedModel
) -> None:
    """40 tokens hold a group or two; 16, one completion with its prompt: groups are then split."""
    batch = packed(ALGORITHMS[name], random_groups(2))
    at_once = step_gradient(ALGORITHMS[name], batch, policy, reference)
    assert len(list(batch.micro_batches(WHOLE))) == 1
    assert len(list(batch.micro_batches(16))) > len(batch.groups) > 1
    for budget in (40, 16):
        pieces = step_gradient(ALGORITHMS[name], batch, policy, reference, budget=budget)
        assert relative_difference(pieces, at_once) < SAME


@pytest.mark.parametrize("name", WITHOUT_CRITIC)
def test_the_gradient_does_not_depend_on_order(name: str, policy: PreTrainedModel, reference: PreTrainedModel) -> None:
    """Of the groups, and of the completions within each."""
    groups, rng = random_groups(2), random.Random(0)
    shuffled = [
        replace(g, rollouts=tuple(rng.sample(g.rollouts, len(g.rollouts)))) for g in rng.sample(groups, len(groups))
    ]
    ours, other = (
        step_gradient(ALGORITHMS[name], packed(ALGORITHMS[name], g), policy, reference, budget=40)
        for g in (groups, shuffled)
    )
    assert relative_difference(other, ours) < SAME


def everything(algorithm: Algorithm, groups: Sequence[RolloutGroup]) -> Batch:
    """Nothing is left out, zero or not."""
    run = replace(algorithm, entropy_weight=1.0)
    return pack(algorithm.assign_credit(groups, MAX_TOKENS), run, MAX_TOKENS)


@pytest.mark.parametrize("name", WITHOUT_CRITIC)
def test_without_a_kl_skipping_what_has_no_advantage_changes_nothing(
    name: str, policy: PreTrainedModel, reference: PreTrainedModel
) -> None:
    """The silent group is not run, stays in the counts, and the gradient is what it is with it."""
    algorithm, groups = replace(ALGORITHMS[name], kl_weight=0.0, count_silent=True), random_groups(3)
    skipped, run = packed(algorithm, groups), everything(algorithm, groups)
    silent = [g for g in advantages_of(algorithm, groups, MAX_TOKENS) if not any(bool(a.any()) for a in g)]
    assert len(run.groups) - len(skipped.groups) == len(silent)
    assert silent or name in IMITATION  # which leave out single completions
    assert skipped.num_tokens < run.num_tokens
    assert relative_difference(
        step_gradient(algorithm, skipped, policy, reference), step_gradient(algorithm, run, policy, reference)
    ) < SAME  # fmt: skip


@pytest.mark.parametrize("name", [n for n in WITHOUT_CRITIC if ALGORITHMS[n].kl_weight > 0])
def test_with_a_kl_what_has_no_advantage_is_run(name: str, policy: PreTrainedModel, reference: PreTrainedModel) -> None:
    """Its KL has a gradient, which is a visible part of the step's."""
    algorithm, groups = ALGORITHMS[name], random_groups(3)
    ours = step_gradient(algorithm, packed(algorithm, groups), policy, reference)
    assert relative_difference(ours, step_gradient(algorithm, everything(algorithm, groups), policy, reference)) < SAME
    without = packed(replace(algorithm, kl_weight=0.0), groups)
    assert relative_difference(step_gradient(algorithm, without, policy, reference), ours) > 10 * SAME


def apply(rule: Behaviour, groups: Sequence[RolloutGroup], scores: Scores) -> Scores:
    return [
        [rule(row, torch.tensor(r.completion.sampler_logprobs)) for r, row in zip(g.rollouts, rows, strict=True)]
        for g, rows in zip(groups, scores, strict=True)
    ]


@pytest.mark.parametrize("seed", [4, 5])
@pytest.mark.parametrize("name", WITHOUT_CRITIC)
def test_the_gradient_is_that_of_a_padded_forward_and_the_papers_loss(
    name: str, seed: int, policy: PreTrainedModel, reference: PreTrainedModel
) -> None:
    groups = random_groups(seed)
    ours = step_gradient(ALGORITHMS[name], packed(ALGORITHMS[name], groups), policy, reference, budget=30)
    scores = padded_logprobs(policy, groups, TEMPERATURE)
    fixed = padded_logprobs(reference, groups, TEMPERATURE)
    theirs = gradient_of(policy, step_loss(name, groups, scores, apply(drift, groups, scores), fixed, MAX_TOKENS))
    assert relative_difference(ours, theirs) < SAME


# One update per sampling: the behaviour is the policy


def on_policy(logprobs: Tensor, sampler_logprobs: Tensor) -> Tensor:
    return logprobs.detach()


@pytest.mark.parametrize("name", WITHOUT_CRITIC)
def test_the_ratio_is_exactly_one_at_the_first_update(name: str, policy: PreTrainedModel) -> None:
    """To the last bit, sequence ratios too: otherwise tight bounds like GSPO's would clip on rounding."""
    algorithm = ALGORITHMS[name]
    for micro in packed(algorithm, random_groups(6)).micro_batches(40):
        logprobs = packed_forward.score(policy, micro, TEMPERATURE).logprobs
        ratio = probability_ratio(algorithm.ratio_level(logprobs, logprobs.detach(), micro), logprobs.detach())
        assert torch.equal(ratio, torch.ones_like(ratio))


def coefficients(
    name: str, groups: Sequence[RolloutGroup], scores: Scores, fixed: Scores
) -> list[tuple[Tensor, Tensor]]:
    """The gradient coefficient of each token (DeepSeekMath, section 5.2): the loss's gradient is sum c grad log p.

    c = weight * (-w A + KL's); KL's: beta (1 - exp(f - l)) of k3 (the paper's equation 21 with its sign), beta (l - f)
    of k2. GSPO's ratio is a mean over the sequence: its tokens share the mean of their importance weights.
    """
    lengths, pairs = counted_lengths(name, groups), []
    for group, of_group, rows, fixed_rows in zip(groups, lengths, scores, fixed, strict=True):
        if not of_group:
            continue
        graded = [x for x in zip(group.rollouts, rows, fixed_rows, strict=True) if x[0].score.value is not None]
        for advantages, (rollout, row, f) in zip(
            token_advantages(name, group, MAX_TOKENS, groups), graded, strict=True
        ):
            logprobs = row.detach()
            w = (logprobs - torch.tensor(rollout.completion.sampler_logprobs)).exp()
            w = w.clamp(max=5.0 if name == "scalerl" else 2.0)
            w = w.mean().expand(len(w)) if name == "gspo" else torch.ones_like(w) if name in IMITATION else w
            kl = {"grpo": 0.04 * (1 - (f - logprobs).exp()), "rloo": 0.03 * (logprobs - f)}
            weight = token_weight(name, len(w), of_group, lengths, MAX_TOKENS)
            pairs.append((row, weight * (kl.get(name.split("-")[0], 0) - w * torch.tensor(advantages))))
    return pairs


@pytest.mark.parametrize("name", WITHOUT_CRITIC)
def test_the_first_update_is_the_gradient_coefficients(
    name: str, policy: PreTrainedModel, reference: PreTrainedModel
) -> None:
    """sum over tokens of weight * importance weight * A * grad log p, less the KL's: no clipping is left in it."""
    groups = random_groups(6)
    ours = step_gradient(ALGORITHMS[name], packed(ALGORITHMS[name], groups), policy, reference, behaviour=on_policy)
    scores, fixed = (padded_logprobs(model, groups, TEMPERATURE) for model in (policy, reference))
    pairs = coefficients(name, groups, scores, fixed)
    theirs = gradient_of(policy, torch.stack([(c.detach() * row).sum() for row, c in pairs]).sum())
    assert relative_difference(ours, theirs) < SAME


def test_the_drift_reaches_both_sides_of_the_clip_range(policy: PreTrainedModel) -> None:
    """The tests above bite: tokens are clipped above and below, importance weights cut and left."""
    (micro,) = everything(ALGORITHMS["grpo"], random_groups(4)).micro_batches(WHOLE)
    logprobs = packed_forward.score(policy, micro, TEMPERATURE).logprobs
    behaviour = drift(logprobs, micro.sampler_logprobs)
    ratio, weight = (logprobs - behaviour).exp(), (behaviour - micro.sampler_logprobs).exp()
    for part in (ratio > 1.28, ratio < 0.8, (ratio > 0.8) & (ratio < 1.2), weight > 2, weight < 2):
        assert float(part.float().mean()) > 0.05


@pytest.mark.parametrize("name", ["grpo", "dapo", "dr-grpo"])
def test_the_entropy_bonus_is_that_of_the_whole_distribution(
    name: str, policy: PreTrainedModel, reference: PreTrainedModel
) -> None:
    """What a bonus of 0.5 adds to the gradient is that of -0.5 sum weight * H, H over the vocabulary; nothing is skipped."""
    groups, algorithm = random_groups(1, ungraded=False), ALGORITHMS[name]
    plain, rewarded = (
        step_gradient(a, packed(a, groups), policy, reference)
        for a in (algorithm, replace(algorithm, entropy_weight=0.5))
    )
    tables = [table for rows in padded_tables(policy, groups, TEMPERATURE) for table in rows]
    lengths = [len(table) for table in tables]
    bonus = torch.zeros(())
    for table in tables:
        entropy = -(table.exp() * table).sum()
        bonus = bonus - 0.5 * token_weight(name, len(table), [], [lengths], MAX_TOKENS) * entropy
    assert relative_difference(rewarded - plain, gradient_of(policy, bonus)) < SAME
