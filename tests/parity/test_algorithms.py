"""Every named algorithm, rewards to loss, against its papers restated a scalar at a time (tests/parity/restated.py).

Here log-probs are numbers that were drawn; test_gradient_independence.py does the same through a model.
"""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from rl.forward.micro_batch import MicroBatch
from rl.objective.algorithms import ALGORITHMS, CISPO, DISTILL, GRPO, PLAIN, RLOO, SCALERL, SFT, Algorithm
from rl.objective.tokens import TokenScores
from rl.update.batch import Batch, pack
from rollout.records import RolloutGroup
from tests.parity.cases import MAX_TOKENS, WITHOUT_CRITIC, advantages_of, group_of, random_groups
from tests.parity.restated import RESTATED, Scores, normalised, step_loss, token_advantages

FLOAT32 = 2e-6  # float32 sums of about 100 terms whose sizes add up to less than 10


def test_every_algorithm_is_restated() -> None:
    """A new one wants a restatement of its own; without it the tests below would compare it with GRPO.

    Those whose advantages are made during the update have theirs in tests/rl/test_ppo.py, test_dpo.py and below.
    """
    assert set(WITHOUT_CRITIC) == RESTATED
    assert set(ALGORITHMS) - RESTATED == {"ppo", "ppo-separate"} | {"dpo", "online-dpo"} | {"distill"}


def whole(algorithm: Algorithm, groups: list[RolloutGroup]) -> MicroBatch:
    """The step as one micro-batch."""
    (micro,) = packed(algorithm, groups).micro_batches(10_000)
    return micro


def packed(algorithm: Algorithm, groups: list[RolloutGroup]) -> Batch:
    return pack(algorithm.assign_credit(groups, MAX_TOKENS), algorithm, MAX_TOKENS)


def drawn(groups: list[RolloutGroup], seed: int, center: Scores | None = None, scale: float = 1.0) -> Scores:
    """A log-prob for every token: around -2.5, or around those given."""
    rng = random.Random(seed)
    return [
        [
            torch.tensor([rng.gauss(-2.5 if center is None else float(center[g][i][t]), scale) for t in range(n)])
            for i, n in enumerate(len(r.completion.token_ids) for r in group.rollouts)
        ]
        for g, group in enumerate(groups)
    ]


def in_order(micro: MicroBatch, groups: list[RolloutGroup], scores: Scores) -> Tensor:
    """The scores of the micro-batch's tokens: sequences are known by their sampler log-probs, which all differ."""
    of_sampler = {
        r.completion.sampler_logprobs: row
        for group, rows in zip(groups, scores, strict=True)
        for r, row in zip(group.rollouts, rows, strict=True)
    }
    rows = [micro.sampler_logprobs[micro.sequence_of == i] for i in range(micro.num_sequences)]
    known = {tuple(torch.tensor(k).tolist()): v for k, v in of_sampler.items()}
    return torch.cat([known[tuple(row.tolist())] for row in rows])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", WITHOUT_CRITIC)
def test_the_loss_is_the_restated_one(name: str, seed: int) -> None:
    """Ratios far from 1, a reference, samplers that differ, an ungraded completion: the value and every token's gradient."""
    algorithm, groups = ALGORITHMS[name], random_groups(seed)[:4]
    policy = drawn(groups, 10 + seed)
    behaviour, reference = drawn(groups, 20 + seed, policy, 0.3), drawn(groups, 30 + seed, policy, 0.5)
    leaves = [[row.requires_grad_() for row in rows] for rows in policy]
    micro = whole(algorithm, groups)
    ours = algorithm.loss(
        TokenScores(in_order(micro, groups, leaves), torch.zeros(len(micro.targets))),
        in_order(micro, groups, behaviour),
        in_order(micro, groups, reference) if algorithm.kl_weight else None,
        micro,
    )
    theirs = step_loss(name, groups, leaves, behaviour, reference, MAX_TOKENS)
    assert ours.item() == pytest.approx(theirs.item(), abs=FLOAT32)
    flat = [row for rows in leaves for row in rows]
    pairs = [torch.autograd.grad(loss, flat, allow_unused=True, materialize_grads=True) for loss in (ours, theirs)]
    for a, b in zip(*pairs, strict=True):
        assert a.tolist() == pytest.approx(b.tolist(), abs=FLOAT32)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", WITHOUT_CRITIC)
def test_the_advantages_are_the_restated_ones(name: str, seed: int) -> None:
    """Of graded completions; float32 keeps seven digits of sums near 1."""
    groups = random_groups(seed)
    for group, ours in zip(groups, advantages_of(ALGORITHMS[name], groups, MAX_TOKENS), strict=True):
        kept = [a.tolist() for a, r in zip(ours, group.rollouts, strict=True) if r.score.value is not None]
        assert kept == [pytest.approx(a, abs=2e-5) for a in token_advantages(name, group, MAX_TOKENS, groups)]


def one_token(
    algorithm: Algorithm, policy: float, behaviour: float, reference: float | None, entropy: float = 0.0
) -> float:
    """The loss of a group of two one-token answers, right and wrong, with these log-probs; the sampler said -1 of both."""
    micro = whole(algorithm, [group_of([1, 1], [1.0, 0.0])])
    of_both = [torch.tensor([float(x)] * 2) for x in (policy, behaviour, reference or 0.0, entropy)]
    fields = TokenScores(of_both[0], of_both[3])
    return algorithm.loss(fields, of_both[1], None if reference is None else of_both[2], micro).item()


def alone(algorithm: Algorithm, advantage: float) -> Algorithm:
    """Both answers have this advantage, whatever they were worth."""
    return replace(
        algorithm, advantage_rule=lambda groups, rewards, graded: [[torch.tensor([advantage])] * 2 for _ in groups]
    )


def test_the_importance_weight_multiplies_the_policy_term_and_not_the_kl() -> None:
    """b - s = ln 1.5: weight 1.5. rho = 1, A = 1: policy term -1 * 1.5. d = ln 2: k3 = 1/2 + ln 2 - 1 = 0.193147; beta 0.04.
    -1.5 + 0.04 * 0.193147 = -1.492274. At b - s = ln 3 the weight is cut to 2: -1.992274; without a cap it is none: -0.992274."""
    grpo, penalty = alone(GRPO, 1.0), 0.04 * 0.193147
    for factor, weight in ((1.5, 1.5), (3.0, 2.0)):
        at = -1 + math.log(factor)
        assert one_token(grpo, at, at, at - math.log(2)) == pytest.approx(-weight + penalty, abs=FLOAT32)
    uncorrected = replace(grpo, importance_cap=None)
    at = -1 + math.log(3)
    assert one_token(uncorrected, at, at, at - math.log(2)) == pytest.approx(-1 + penalty, abs=FLOAT32)


def test_entropy_is_rewarded() -> None:
    """rho = 1, A = 1, H = 2 nats, weight 0.1: -1 - 0.2."""
    assert one_token(replace(alone(GRPO, 1.0), entropy_weight=0.1), -1, -1, None, 2.0) == pytest.approx(
        -1.2, abs=FLOAT32
    )


def test_rloo_and_cispo_by_hand() -> None:
    """RLOO, A = 1, rho = 1, d = ln 2: -1 + 0.03 * 0.240227. CISPO, rho = 8 is cut to 5, l = -1 + ln 8, b = s:
    -5 * (-1 + ln 8) = -5.397208; rho = 4 is not: -4 * (-1 + ln 4) = -1.545177."""
    assert one_token(alone(RLOO, 1.0), -1, -1, -1 - math.log(2)) == pytest.approx(-1 + 0.03 * 0.240227, abs=FLOAT32)
    assert one_token(alone(CISPO, 1.0), -1 + math.log(8), -1, None) == pytest.approx(-5.397208, abs=FLOAT32)
    assert one_token(alone(CISPO, 1.0), -1 + math.log(4), -1, None) == pytest.approx(-1.545177, abs=FLOAT32)


def test_scalerl_by_hand() -> None:
    """rho = exp(l - s), not exp(l - b). Group 1: rewards 1, 0, tokens 1 and 3; group 2: 1, 0, one token each; group 3 is silent.
    Advantages +-0.5 / std, std = 0.5 (eps 1e-4): +-0.9998. Weights 1 / (2 * 4) in group 1, 1 / (2 * 2) in group 2. With l = s + ln 2 everywhere, s = -1:
    each token's term is -2 a (-1 + ln 2); group 1 has 1 - 3 = -2 of them, group 2 none: -2 * 0.125 * 0.9998 * -2 * (-1 + ln 2) =
    -0.153395. The old log-prob, -3, has no part in it."""
    groups = [group_of([1, 3], [1.0, 0.0]), group_of([1, 1], [1.0, 0.0]), group_of([2, 9], [1.0, 1.0])]
    micro = whole(SCALERL, groups)
    assert sorted(micro.weights.tolist()) == [0.125] * 4 + [0.25] * 2
    logprobs = micro.sampler_logprobs + math.log(2)
    assert logprobs.tolist() == pytest.approx([-1 + math.log(2)] * 6)
    loss = SCALERL.loss(TokenScores(logprobs, torch.zeros(6)), torch.full((6,), -3.0), None, micro)
    assert loss.item() == pytest.approx(-0.153395, abs=FLOAT32)


@pytest.mark.parametrize("name", [name for name in ALGORITHMS if name not in ("sft", "rft", "online-rft", "distill")])
def test_silent_groups_are_counted_or_not_as_asked(name: str) -> None:
    """Beside a group of 2 + 3 tokens one of 4 + 7 that is all right. Weights of the five tokens, counted and not, by hand."""
    by_hand = {
        "token": ([1 / 16] * 5, [1 / 5] * 5),
        "prompt": ([1 / 10] * 5, [1 / 5] * 5),
        "completion": ([1 / 8] * 2 + [1 / 12] * 3, [1 / 4] * 2 + [1 / 6] * 3),
        "constant": ([1 / 40] * 5, [1 / 20] * 5),
        "sequence": ([1 / 4] * 5, [1 / 2] * 5),
        "pairs": ([1 / 4] * 2 + [1 / 6] * 3, [1 / 2] * 2 + [1 / 3] * 3),
    }
    kinds = {"token": ("dapo", "cispo", "plain", "ppo", "ppo-separate"), "prompt": ("scalerl",)}
    kinds |= {"constant": ("dr-grpo",), "sequence": ("rloo",), "pairs": ("dpo", "online-dpo")}
    kind = next((kind for kind, names in kinds.items() if name in names), "completion")
    groups = [group_of([2, 3], [1.0, 0.0]), group_of([4, 7], [1.0, 1.0])]
    for counts, expected in zip((True, False), by_hand[kind], strict=True):
        batch = packed(replace(ALGORITHMS[name], count_silent=counts), groups)
        weights = [s.weight for s in batch.groups[0].sequences for _ in s.token_ids]
        assert weights == pytest.approx(expected)
        assert batch.counts.num_tokens == (16 if counts else 5)
        assert counts or len(batch.groups) == 1


@pytest.mark.parametrize("name", ["plain", "ppo", "scalerl"])
def test_a_step_of_silent_groups_alone_has_no_update(name: str) -> None:
    batch = packed(replace(ALGORITHMS[name], count_silent=False), [group_of([2, 3], [0.0, 0.0])] * 2)
    assert batch.groups == ()


def test_a_teacher_adds_to_every_tokens_advantage() -> None:
    """Rewards 1 and 0 (A = +-0.7070, std 0.7071), teacher weight 0.5; old log-probs -1, teacher's -1 + 0.4 and -1 - 2: the two tokens'
    advantages are 0.7070 + 0.2 and -0.7070 - 1; at rho = 1 the loss is -(0.9070 - 1.7070) / 2 = 0.4 and each gradient -A / 2."""
    algorithm = replace(PLAIN, teacher_weight=0.5)
    micro = whole(algorithm, [group_of([1, 1], [1.0, 0.0])])
    assert micro.advantages is not None
    taught = torch.where(micro.advantages > 0, 0.4, -2.0) - 1
    logprobs = torch.full((2,), -1.0, requires_grad=True)
    old = logprobs.detach()
    loss = algorithm.loss(TokenScores(logprobs, torch.zeros(2)), old, None, micro, teacher_logprobs=taught)
    assert loss.item() == pytest.approx(0.4, abs=FLOAT32)
    (gradient,) = torch.autograd.grad(loss, logprobs)
    assert sorted(gradient.tolist()) == pytest.approx([-0.907007 / 2, 1.707007 / 2], abs=FLOAT32)


def test_distillation_descends_the_reverse_kl() -> None:
    """Over all one-token answers of a vocabulary of five, weighed by their probabilities, the gradient is that of KL(policy || teacher)."""
    torch.manual_seed(0)
    logits, teacher = torch.randn(5, requires_grad=True), torch.randn(5).log_softmax(0)
    policy = logits.log_softmax(0)
    (expected,) = torch.autograd.grad((policy.exp() * (policy - teacher)).sum(), logits, retain_graph=True)
    micro = whole(DISTILL, [group_of([1] * 5, [0.0] * 5)])
    micro = replace(micro, weights=policy.detach().exp(), sampler_logprobs=policy.detach())
    scores = TokenScores(policy, torch.zeros(5))
    loss = DISTILL.loss(scores, policy.detach(), None, micro, teacher_logprobs=teacher)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient.tolist() == pytest.approx(expected.tolist(), abs=FLOAT32)


def test_a_teacher_reads_silent_groups_too() -> None:
    """distill has no rewards, and plain with a teacher counts all groups."""
    silent = [group_of([2, 3], [1.0, 1.0])]
    assert packed(PLAIN, silent).groups == ()
    for algorithm in (DISTILL, replace(PLAIN, teacher_weight=1.0)):
        assert packed(algorithm, silent).counts.num_tokens == 5 and len(packed(algorithm, silent).groups) == 1


def test_supervised_learning_is_the_same_step_with_every_demonstration_worth_one() -> None:
    """DeepSeekMath, section 5.2: the gradient coefficient of SFT is 1: -1 / (all tokens) on each token's log-prob."""
    groups = [group_of([3], [1.0]), group_of([5], [1.0])]
    micro = whole(SFT, groups)
    logprobs = torch.linspace(-4, -1, 8).requires_grad_()
    loss = SFT.loss(TokenScores(logprobs, torch.zeros(8)), logprobs.detach(), None, micro)
    (gradient,) = torch.autograd.grad(loss, logprobs)
    assert gradient.tolist() == pytest.approx([-1 / 8] * 8)


def test_the_iterative_variant_differs_in_its_reference_alone() -> None:
    """The paper's algorithm 1: the reference becomes the policy at each outer iteration; the loss is GRPO's."""
    iterative = ALGORITHMS["grpo-iterative"]
    assert iterative.refresh_reference_every > 0
    assert replace(iterative, name="grpo", refresh_reference_every=0) == GRPO


def test_float32_rewards_do_not_blur_the_restatement() -> None:
    """Rewards are given in float64 and held in float32: of tenths, the advantages still agree to five digits."""
    values = [0.1, 0.2, 0.4, 0.7]
    ours = advantages_of(GRPO, [group_of([1] * 4, list(values))], 10)[0]
    assert [float(a[0]) for a in ours] == pytest.approx(normalised(values), abs=1e-5)


def coefficients(name: str, group: RolloutGroup, index: int, policy: Tensor, reference: Tensor) -> list[float]:
    """What DeepSeekMath's section 5.2 multiplies each token's grad log p with, for one update per sampling."""
    rollout = group.rollouts[index]
    if name in (
        "sft",
        "rft",
        "online-rft",
    ):  # equations 10, 13 and 16: 1, and whether the output is right, here its reward
        return [1.0 if name == "sft" else rollout.score.value or 0.0] * len(policy)
    # Equations 21 and its kin: the advantage plus beta (f / l - 1).
    advantages = token_advantages(name, group, MAX_TOKENS)[index]
    return [
        a + 0.04 * (math.exp(f - p) - 1)
        for a, p, f in zip(advantages, policy.tolist(), reference.tolist(), strict=True)
    ]


@pytest.mark.parametrize("name", ["sft", "rft", "online-rft", "grpo", "grpo-process", "grpo-iterative"])
def test_the_gradient_is_deepseekmaths_coefficient_times_that_of_the_log_prob(name: str) -> None:
    """-grad = sum of weight x coefficient x grad log p, the weight 1 / (N |o|) (1 / all tokens for SFT)."""
    algorithm = replace(ALGORITHMS[name], importance_cap=None)
    groups = [group_of([3, 5], [1.0, 1.0])] if name == "sft" else random_groups(1, ungraded=False)
    scores, fixed = drawn(groups, 1), drawn(groups, 2)
    micro = whole(algorithm, groups)
    logprobs, reference = (in_order(micro, groups, x) for x in (scores, fixed))
    logprobs.requires_grad_()
    given = reference if algorithm.kl_weight else None
    loss = algorithm.loss(TokenScores(logprobs, torch.zeros_like(logprobs)), logprobs.detach(), given, micro)
    (gradient,) = torch.autograd.grad(loss, logprobs)
    of_each = [
        [torch.tensor(coefficients(name, g, i, scores[q][i], fixed[q][i])) for i in range(len(g.rollouts))]
        for q, g in enumerate(groups)
    ]
    lengths = torch.tensor(micro.lengths)[micro.sequence_of]
    count = sum(len(g.rollouts) for g in groups)
    weights = 1 / sum(map(len, (t for row in scores for t in row))) if name == "sft" else 1 / (count * lengths)
    assert torch.allclose(-gradient, weights * in_order(micro, groups, of_each), atol=FLOAT32, rtol=0)
