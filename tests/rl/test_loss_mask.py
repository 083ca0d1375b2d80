"""Tokens that the policy did not choose are context: all that the loss knows is that of the completion without them."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from rewards.score import Outcome
from rl.forward.forward import Forward, packed_forward, padded_forward, plain_forward
from rl.forward.layouts import packed_tokens
from rl.forward.micro_batch import MicroBatch, TrainGroup, TrainSequence
from rl.objective.algorithms import ALGORITHMS, Algorithm
from rl.objective.tokens import TokenScores
from rl.objective.values import FrozenTargets, ValueRule
from rl.update.batch import pack
from rl.update.step_metrics import TokenMeans, describe
from rollout.collect import Collected
from rollout.records import FinishReason, Rollout, RolloutGroup
from tests.parity.cases import MAX_TOKENS, VOCAB, random_groups, tiny_qwen2

CUT = {name: ValueRule(source=ALGORITHMS[name].critic, bootstrap_cut=True) for name in ("ppo", "ppo-separate")}  # pyright: ignore
CASES = {
    **ALGORITHMS,
    **{f"{name}, cut ones go on": replace(ALGORITHMS[name], value_rule=rule) for name, rule in CUT.items()},
    "gspo with a critic": replace(
        ALGORITHMS["gspo"], value_rule=CUT["ppo"], advantage_rule=ALGORITHMS["ppo"].advantage_rule
    ),
}


def with_context(rollout: Rollout, chance: random.Random, *, is_cut: bool) -> Rollout:
    """What somebody else wrote stands before, between and, unless the limit cut it, behind what the policy chose."""
    tokens, mask, places = [], [], []
    for token in rollout.completion.token_ids:
        others = chance.choice((0, 0, 1, 3))
        tokens += [chance.randrange(VOCAB) for _ in range(others)]
        mask += [False] * others
        places.append(len(tokens))
        tokens.append(token)
        mask.append(True)
    if not is_cut:
        tokens, mask = [*tokens, 7], [*mask, False]
    completion = replace(rollout.completion, token_ids=tuple(tokens), loss_mask=tuple(mask))
    return replace(rollout, completion=completion, step_ends=tuple(places[t] for t in rollout.step_ends))


def both(seed: int) -> tuple[list[RolloutGroup], list[RolloutGroup]]:
    """Groups in which some completions are cut, without context and with it."""
    chance, plain, masked = random.Random(seed), [], []
    for group in random_groups(seed):
        rollouts = []
        for rollout in group.rollouts:
            reason = chance.choice((FinishReason.LENGTH, FinishReason.STOP))
            rollouts.append(replace(rollout, completion=replace(rollout.completion, finish_reason=reason)))
        with_it = [with_context(r, chance, is_cut=r.completion.finish_reason is FinishReason.LENGTH) for r in rollouts]
        plain.append(replace(group, rollouts=tuple(rollouts)))
        masked.append(replace(group, rollouts=tuple(with_it)))
    return plain, masked


def micro_of(algorithm: Algorithm, groups: list[RolloutGroup]) -> MicroBatch:
    """In the order of the groups."""
    return MicroBatch.of(pack(algorithm.assign_credit(groups, MAX_TOKENS), algorithm, MAX_TOKENS).groups)


KNOWN = (
    "loss_mask",
    "sequence_of",
    "sampler_logprobs",
    "advantages",
    "weights",
    "rewards",
    "bootstraps",
    "loss_indices",
    "targets",
)


@pytest.mark.parametrize("name", CASES)
def test_masking_is_slicing_the_terms_out(name: str) -> None:
    """Bit for bit: what the loss, the values' rule and the metrics are made of. So are they, whatever the scores are."""
    algorithm = CASES[name]
    plain, masked = (micro_of(algorithm, groups) for groups in both(seed=3))
    assert packed_tokens(masked.groups) > packed_tokens(plain.groups)
    assert masked.lengths == plain.lengths and masked.num_sequences == plain.num_sequences
    for known in KNOWN:
        with_it, without = getattr(masked, known), getattr(plain, known)
        assert with_it is without is None or torch.equal(with_it, without), known
    assert plain.bootstraps.any() == ("cut" in name or "critic" in name)


@pytest.mark.parametrize("forward", [plain_forward, packed_forward, padded_forward], ids=lambda f: f.name)
def test_chosen_tokens_are_scored_in_their_whole_context(forward: Forward) -> None:
    """Against every token of the same completions scored: float32 sums of chunks of other sizes."""
    model, (_, masked) = tiny_qwen2(), both(seed=1)
    every = [
        TrainGroup(g.prompt_ids, tuple(TrainSequence.to_score(r.completion.token_ids) for r in g.rollouts))
        for g in masked
    ]
    chosen = torch.tensor([x for g in masked for r in g.rollouts for x in r.completion.loss_mask])
    sliced = [
        TrainGroup(
            g.prompt_ids,
            tuple(
                replace(
                    TrainSequence.to_score([0] * r.completion.num_chosen),
                    token_ids=r.completion.token_ids,
                    loss_mask=r.completion.loss_mask,
                )
                for r in g.rollouts
            ),
        )
        for g in masked
    ]
    with torch.no_grad():
        ours, theirs = (forward.score(model, MicroBatch.of(groups), 0.7) for groups in (sliced, every))
    assert len(ours.logprobs) < len(theirs.logprobs)
    torch.testing.assert_close(ours.logprobs, theirs.logprobs[chosen], atol=2e-6, rtol=0)
    torch.testing.assert_close(ours.entropies, theirs.entropies[chosen], atol=2e-6, rtol=0)


def test_what_is_only_asked_for_its_value_is_in_no_mean_of_a_sequence() -> None:
    """The last token of a cut completion: its log-prob moves no ratio of GSPO's and no metric, and has gradient zero."""
    algorithm = CASES["gspo with a critic"]
    micro = micro_of(algorithm, both(seed=2)[1])
    outside = torch.ones(len(micro.targets)).index_fill(0, micro.loss_indices, 0.0)
    assert outside.sum() == micro.bootstraps.sum() > 0
    old, values = micro.sampler_logprobs.clone(), torch.linspace(0, 1, len(micro.targets))

    def loss_of(logprobs: Tensor) -> Tensor:
        targets = algorithm.value_targets(micro, values, old, None)
        return algorithm.loss(TokenScores(logprobs, values), old, None, micro, targets.advantages)

    logprobs = (old + 1e-4 * torch.randn(len(old), generator=torch.Generator().manual_seed(0))).requires_grad_()
    loss = loss_of(logprobs)
    (gradient,) = torch.autograd.grad(loss, logprobs)
    assert gradient[micro.loss_indices].any() and not gradient[outside > 0].any()
    assert torch.equal(loss_of(logprobs.detach() + 5 * outside), loss.detach())

    def means_of(logprobs: Tensor) -> dict[str, float | None]:
        means, seen = (
            TokenMeans(),
            FrozenTargets(old + 5 * outside, logprobs, algorithm.value_targets(micro, values, old, None)),
        )
        means.add(algorithm, TokenScores(logprobs, -logprobs), seen, replace(micro, sampler_logprobs=logprobs))
        return means.means()

    assert means_of(logprobs.detach() + 5 * outside) == means_of(logprobs.detach())


def test_metrics_are_of_what_the_policy_chose() -> None:
    algorithm, found = ALGORITHMS["grpo"], []
    for groups in both(seed=3):
        micro, means = micro_of(algorithm, groups), TokenMeans()
        logprobs = micro.sampler_logprobs + 0.1
        means.add(algorithm, TokenScores(logprobs, -logprobs), FrozenTargets(logprobs, logprobs - 0.2), micro)
        collected = Collected(
            groups=groups, sampled=groups, num_refills=0, num_sampled_tokens=1, sample_seconds=1.0, verify_seconds=0.0
        )
        found.append({**means.means(), **describe(collected, algorithm.assign_credit(collected.sampled, MAX_TOKENS))})
    assert found[0] == found[1] and found[0]["length/max"] == MAX_TOKENS


def test_a_cut_completion_of_one_token_is_not_in_the_means_of_a_step() -> None:
    """A critic stands for its only token: the metrics' means are over the others."""
    algorithm = replace(ALGORITHMS["ppo"], value_rule=CUT["ppo"])
    (group, *_), _ = both(seed=0)
    short = replace(
        group.rollouts[0], completion=replace(group.rollouts[0].completion, finish_reason=FinishReason.LENGTH)
    )
    assert short.completion.num_chosen == 1 and short.score.outcome is Outcome.CORRECT
    one = replace(group, rollouts=(short,))
    batch = pack(algorithm.assign_credit([one], MAX_TOKENS), algorithm, MAX_TOKENS)
    assert batch.groups == () and (batch.counts.num_tokens, batch.counts.num_sequences) == (0, 0)
