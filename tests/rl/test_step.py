"""The update: what it sums, what it refuses, what it measures."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import rl.update.step
from rewards.errors import UserError
from rewards.score import Outcome, Score
from rl.forward.layouts import packed_tokens
from rl.forward.micro_batch import MicroBatch, TrainGroup, TrainSequence
from rl.objective.algorithms import ALGORITHMS, GRPO, PPO, RFT, Algorithm
from rl.objective.reductions import StepCounts
from rl.objective.values import ValueRule
from rl.policy.policy import Policy
from rl.processes.runtime import Runtime
from rl.update.batch import Batch, pack
from rl.update.delivery import Delivery, DeliveryError
from rl.update.learner import Learner
from rl.update.step import train_step
from rl.update.step_metrics import describe
from rl.update.update import update
from rollout.collect import Collected
from rollout.problem_stream import ProblemStream
from rollout.records import Completion, FinishReason, Problem, Rollout, RolloutGroup
from rollout.sampler import SamplingParams
from rollout.torch_sampler import TorchSampler
from tests.parity.cases import WITHOUT_CRITIC
from tests.rl.models import make, random_batch


class NoTokenizer:
    """The sampler only needs to know how a turn ends, and to write texts that nobody reads."""

    eos_token_id = 1
    pad_token_id = chat_template = None
    all_special_ids = (1,)

    def get_added_vocab(self) -> dict[str, int]:
        return {}

    def batch_decode(self, rows: list[list[int]], **_: object) -> list[str]:
        return ["" for _ in rows]


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Runtime:
    return Runtime.start(dtype="float32", device="cpu")


def learner(runtime: Runtime, algorithm: Algorithm = GRPO, **options: object) -> Learner:
    policy = Policy.of(make("qwen2"))
    settings = {"temperature": 1.0, "token_budget": 10_000, "max_grad_norm": 1e9, **options}
    return Learner(
        policy=policy,
        reference=policy.frozen_copy() if algorithm.kl_weight else None,
        optimizer=torch.optim.SGD(policy.model.parameters(), lr=0.1),
        runtime=runtime,
        algorithm=algorithm,
        **settings,  # pyright: ignore
    )


def weights(of: Learner) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in of.policy.model.parameters()])


@pytest.mark.parametrize("name", WITHOUT_CRITIC)
def test_an_update_does_not_depend_on_the_token_budget(name: str, runtime: Runtime) -> None:
    """Denominators are of the whole step; groups are split and sequences reordered by the smaller budgets."""
    batch = random_batch()
    before = weights(learner(runtime))
    moved = []
    for budget in (10_000, 30, 16):
        trained = learner(runtime, ALGORITHMS[name], token_budget=budget)
        update(trained, batch)
        moved.append(weights(trained) - before)
    assert moved[0].abs().max() > 1e-4
    for other in moved[1:]:  # float32 sums of about 100 terms in another order
        assert (other - moved[0]).abs().max() < 1e-5 * moved[0].abs().max() + 1e-7


def test_the_second_epoch_is_measured_against_the_first_ones_policy(runtime: Runtime) -> None:
    """Behaviour log-probs are kept from the first epoch: ratio 1 there, and something else once the policy has moved."""
    batch = random_batch()
    assert update(learner(runtime), batch)["ratio/max"] == 1.0
    twice = learner(runtime, replace(GRPO, clip_low=0.001, clip_high=0.001), num_epochs=2)
    measured = update(twice, batch)
    assert measured["ratio/max"] is not None
    assert measured["ratio/max"] > 1.001
    assert measured["ratio/clipped"] is not None
    assert measured["ratio/clipped"] > 0


@pytest.mark.parametrize("num_minibatches", [1, 2])
def test_policy_and_reference_are_scored_at_the_temperature_of_sampling(num_minibatches: int, runtime: Runtime) -> None:
    """An engine that draws from the policy's own distribution at 0.5 differs from it by rounding, as does a reference that is
    the policy: whether the update's own forward looks, or one before it."""
    of, batch = learner(runtime, temperature=0.5), random_batch()
    of.set_learning_rate(0.0)
    groups = []
    for g in batch.groups:
        micro = MicroBatch.of([g])
        with torch.no_grad():
            rows = of.policy.score(micro, 0.5).logprobs.split(micro.lengths)
        sequences = zip(g.sequences, rows, strict=True)
        drawn = tuple(replace(s, sampler_logprobs=tuple(row.tolist())) for s, row in sequences)
        groups.append(replace(g, sequences=drawn))
    found = update(of, *(Batch(tuple(groups[i::num_minibatches]), batch.counts) for i in range(num_minibatches)))
    for key in ("mismatch/max", "kl/reference"):
        assert found[key] == pytest.approx(0.0, abs=1e-5), key
    assert found["ratio/max"] == pytest.approx(1.0, abs=1e-5)


def test_the_loss_is_the_mean_of_the_epochs_and_their_tokens_are_counted_in_each(runtime: Runtime) -> None:
    """Imitation looks at no older policy, so two epochs are two updates."""
    batch = random_batch()
    once, twice = learner(runtime, RFT), learner(runtime, RFT, num_epochs=2)
    apart, together = [update(once, batch) for _ in range(2)], update(twice, batch)
    losses = [found["loss"] or 0.0 for found in apart]
    assert abs(losses[0] - losses[1]) > 1e-3
    assert together["loss"] == pytest.approx(sum(losses) / 2, abs=1e-6)
    assert together["tokens/trained"] == 2 * batch.num_tokens


def test_the_reference_pulls_the_policy_back(runtime: Runtime) -> None:
    """With advantages of zero only the KL moves the policy, towards the reference and not away from it."""
    batch = random_batch()
    silent = Batch(
        tuple(
            replace(g, sequences=tuple(replace(s, advantages=torch.zeros_like(s.advantages)) for s in g.sequences))
            for g in batch.groups
        ),
        batch.counts,
    )
    trained = learner(runtime, replace(GRPO, kl_weight=1.0))
    with torch.no_grad():
        for p in trained.policy.model.parameters():
            p.add_(0.02 * torch.randn_like(p))
    first = update(trained, silent)["kl/reference"]
    for _ in range(10):
        last = update(trained, silent)["kl/reference"]
    assert first is not None
    assert last is not None
    assert 0 < last < 0.7 * first


def test_iterative_grpo_takes_the_policy_as_reference_at_the_end_of_an_iteration(runtime: Runtime) -> None:
    trained = learner(runtime, replace(GRPO, refresh_reference_every=2))
    update(trained, random_batch())
    trained.refresh_reference(1)
    before = update(trained, random_batch())["kl/reference"]
    assert before and before > 0
    policy = weights(trained)
    trained.refresh_reference(2)
    assert torch.equal(weights(trained), policy)
    assert update(trained, random_batch())["kl/reference"] == 0.0


def test_a_step_without_signal_moves_nothing(runtime: Runtime) -> None:
    trained = learner(runtime)
    before = weights(trained)
    measured = update(trained, Batch((), random_batch().counts))
    assert torch.equal(weights(trained), before)
    assert (measured["loss"], measured["groups/trained"]) == (None, 0)


def test_delivery_notices_a_sampler_with_one_other_tensor() -> None:
    """The sampler has a copy of the model; an engine that drops a tensor, or a head tied only in the trainer, is caught."""
    policy = Policy.of(make("qwen2"))
    sampler = TorchSampler(copy.deepcopy(policy.model), NoTokenizer())  # pyright: ignore[reportArgumentType]
    with torch.no_grad():
        for p in policy.model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    delivery = Delivery(policy, sampler, tolerance=1e-3)
    assert delivery.deliver(1) < 1e-4
    assert sampler.policy_version == 1
    with torch.no_grad():
        policy.model.model.layers[1].mlp.up_proj.weight.mul_(1.5)
    sampler.update_weights = lambda named, version: TorchSampler.update_weights(  # drops one tensor
        sampler, ((n, t) for n, t in named if "layers.1.mlp.up_proj" not in n), version
    )
    with pytest.raises(DeliveryError, match=r"Tensors that differ: model\.layers.1.mlp.up_proj.weight"):
        delivery.deliver(2)


def rollout(problem: Problem, value: float | None, length: int = 2) -> Rollout:
    outcome = Outcome.CRASHED if value is None else Outcome.CORRECT if value == 1 else Outcome.WRONG
    return Rollout(
        problem=problem,
        completion=Completion(
            token_ids=(3,) * length,
            sampler_logprobs=(-1.0,) * length,
            finish_reason=FinishReason.STOP,
            policy_version=0,
            seed=0,
            text="",
        ),
        score=Score(value, outcome),
    )


def group(name: str, *values: float | None) -> RolloutGroup:
    problem = Problem(id=name, prompt=name, reference="1")
    return RolloutGroup(problem=problem, prompt_ids=(5,), rollouts=tuple(rollout(problem, v) for v in values))


def test_what_could_not_be_graded_is_in_no_mean_and_no_denominator() -> None:
    """Four completions, one crashed: the mean reward is 2/3 and not 1/2; the batch counts three sequences and six tokens."""
    groups = [group("a", 1.0, 0.0, None, 1.0)]
    collected = Collected(
        groups=groups, sampled=groups, num_refills=0, num_sampled_tokens=8, sample_seconds=1.0, verify_seconds=0.0
    )
    metrics = describe(collected, GRPO.assign_credit(collected.sampled, 10))
    assert metrics["reward/mean"] == pytest.approx(2 / 3)
    assert metrics["accuracy/sampled"] == pytest.approx(2 / 3)
    assert metrics["outcome/crashed"] == 0.25
    batch = pack(GRPO.assign_credit(groups, 10), GRPO, 10)
    assert (batch.counts.num_sequences, batch.counts.num_tokens) == (3, 6)
    assert len(batch.groups[0].sequences) == 3


def test_a_group_without_signal_is_skipped_and_still_counted() -> None:
    """Without a KL its terms are zero, and its tokens stay in the denominator: the gradient is exactly what it was."""
    groups = [group("a", 1.0, 0.0), group("b", 1.0, 1.0)]
    silent = replace(GRPO, kl_weight=0.0)
    batch = pack(silent.assign_credit(groups, 10), silent, 10)
    assert [len(g.sequences) for g in batch.groups] == [2]
    assert batch.counts.num_sequences == 4
    assert batch.groups[0].sequences[0].weight == 1 / (4 * 2)  # N |o|
    for other in (GRPO, replace(silent, entropy_weight=0.01)):  # with a KL or an entropy bonus it carries gradient
        assert len(pack(other.assign_credit(groups, 10), other, 10).groups) == 2


def test_the_last_fifth_of_the_limit_is_rounded_to_whole_tokens() -> None:
    """A fifth of 8 tokens is 1.6, so 2: of 7 tokens one is in it, which costs 1/2. A fifth of 2 is 0.4, but one it is at least."""
    problem = Problem(id="a", prompt="a", reference="1")
    assert ALGORITHMS["dapo"].reward(rollout(problem, 1.0, 7), 8) == 0.5
    assert ALGORITHMS["dapo"].reward(rollout(problem, 1.0, 2), 2) == 0.0


def test_micro_batches_fill_the_token_budget_and_no_more() -> None:
    """Prompts of up to 7 tokens, completions of up to 9 of which the last is no input: 15 is the least that takes each."""
    for budget in range(15, 60):
        assert all(packed_tokens(micro.groups) <= budget for micro in random_batch().micro_batches(budget))
    alone = TrainGroup((1, 2, 3), (TrainSequence.to_score((4, 5, 6)),))
    batch = Batch((alone, alone), StepCounts(num_tokens=6, num_sequences=2, num_groups=2, max_tokens=3))
    assert [len(list(batch.micro_batches(budget))) for budget in (5, 9, 10)] == [2, 2, 1]
    with pytest.raises(UserError, match="token_budget is 4, smaller than one sequence of 5 tokens"):
        list(batch.micro_batches(4))


def test_every_group_is_the_share_of_one_process() -> None:
    batch = random_batch()
    for count in (1, 2, 3, 7):
        shares = [batch.shard(rank, count) for rank in range(count)]
        assert sorted(id(g) for share in shares for g in share.groups) == sorted(map(id, batch.groups))
        assert all(share.counts == batch.counts for share in shares)


@pytest.mark.parametrize(("bootstraps", "num_tokens"), [(True, 4), (False, 6)])
def test_a_cut_completion_goes_on_only_if_the_critic_is_to_say_how(bootstraps: bool, num_tokens: int) -> None:
    """Of 3, 2 and 1 tokens the first and the last are cut: their last tokens are not trained on, and what has no other token is in
    neither sum nor count. Rewards are with the penalty of the last two of three tokens: 1 - 1, 0 - 1/2, 1."""
    algorithm = replace(PPO, value_rule=ValueRule(bootstrap_cut=bootstraps), overlong_fraction=0.5)
    problem = Problem(id="a", prompt="a", reference="1")
    rollouts = []
    for value, length, reason in (
        (1.0, 3, FinishReason.LENGTH),
        (0.0, 2, FinishReason.STOP),
        (1.0, 1, FinishReason.LENGTH),
    ):
        one = rollout(problem, value, length)
        rollouts.append(replace(one, completion=replace(one.completion, finish_reason=reason)))
    groups = [RolloutGroup(problem=problem, prompt_ids=(5,), rollouts=tuple(rollouts))]
    batch = pack(algorithm.assign_credit(groups, 3), algorithm, 3)
    sequences = batch.groups[0].sequences
    assert batch.counts.num_tokens == num_tokens and {s.weight for s in sequences} == {1 / num_tokens}
    assert batch.counts.num_sequences == len(sequences)
    assert [s.reward for s in sequences] == ([None, -0.5] if bootstraps else [0.0, -0.5, 1.0])
    assert [sum(s.loss_mask) for s in sequences] == ([2, 2] if bootstraps else [3, 2, 1])


def test_offline_rft_samples_from_where_it_began_and_is_evaluated_where_it_is(runtime: Runtime) -> None:
    """The sampler has the start policy's weights while it samples, the live ones afterwards; the policy's are its own."""
    trained = learner(runtime, RFT)
    trained.initial_policy = trained.policy.frozen_copy()
    sampler = TorchSampler(copy.deepcopy(trained.policy.model), NoTokenizer())  # pyright: ignore[reportArgumentType]
    delivery = Delivery(trained.policy, sampler, tolerance=1e-3)
    held: list[torch.Tensor] = []

    held_by = sampler

    class Collects:
        sampler = held_by
        params = SamplingParams(max_tokens=10)

        def collect_from(self, stream: ProblemStream, count: int, *, step: int) -> Collected:
            held.append(sampler.model.get_input_embeddings().weight.detach().clone())  # pyright: ignore
            groups = [group("a", 1.0, 0.0), group("b", 1.0, 1.0)]
            return Collected(
                groups=groups,
                sampled=groups,
                num_refills=0,
                num_sampled_tokens=8,
                sample_seconds=1.0,
                verify_seconds=0.0,
            )

    stream = ProblemStream.of([Problem(id="a", prompt="a", reference="1")], 0)
    start = weights(trained)
    for step in (1, 2):
        train_step(trained, Collects(), stream, delivery, step=step, num_problems=1)  # pyright: ignore
    assert torch.equal(held[0], held[1])
    assert not torch.equal(weights(trained), start)
    live = trained.policy.model.get_input_embeddings().weight  # pyright: ignore
    assert torch.equal(sampler.model.get_input_embeddings().weight, live) and not torch.equal(held[1], live)  # pyright: ignore


def test_every_group_is_in_one_minibatch_with_its_own_advantages(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three groups in two parts: the first and the third, and the second, in which the other answer is right."""
    rewards = [(1.0, 0.0), (0.0, 1.0), (1.0, 0.0)]
    groups = [replace(group(str(n), *values), prompt_ids=(n,)) for n, values in enumerate(rewards)]
    collected = Collected(
        groups=groups, sampled=groups, num_refills=0, num_sampled_tokens=12, sample_seconds=1.0, verify_seconds=0.0
    )
    sampler = SimpleNamespace(sleep=lambda: None)
    collector = SimpleNamespace(
        sampler=sampler, params=SamplingParams(max_tokens=10), collect_from=lambda stream, count, *, step: collected
    )
    seen: list[Batch] = []
    monkeypatch.setattr(rl.update.step, "update", lambda learner, *batches, trains_policy: seen.extend(batches) or {})
    stream = ProblemStream.of([groups[0].problem], 0)
    delivery = SimpleNamespace(deliver=lambda version: 0.0)
    train_step(learner(runtime, num_minibatches=2), collector, stream, delivery, step=1, num_problems=3)  # pyright: ignore
    assert [[g.prompt_ids for g in batch.groups] for batch in seen] == [[(0,), (2,)], [(1,)]]
    for batch in seen:
        for of in batch.groups:
            first_is_right = rewards[of.prompt_ids[0]][0] == 1
            assert (of.sequences[0].advantages > 0).all() == first_is_right
            assert [s.reward for s in of.sequences] == list(rewards[of.prompt_ids[0]])


def test_an_update_that_is_not_finite_is_left_out_and_counted(runtime: Runtime) -> None:
    """Optimiser and weights stay as they are; a good update in between forgives, one too many in a row ends the run."""
    of, good = learner(runtime, max_skipped=2), random_batch()
    first = good.groups[0].sequences[0]
    broken = replace(first, advantages=torch.full_like(first.advantages, torch.nan))
    bad = Batch((replace(good.groups[0], sequences=(broken,)), *good.groups[1:]), good.counts)
    before = weights(of)
    for _ in range(2):
        metrics = update(of, bad)
        assert metrics["updates/skipped"] == 1 and torch.equal(weights(of), before)
    assert update(of, good)["updates/skipped"] == 0 and not torch.equal(weights(of), before)
    assert weights(of).isfinite().all()
    update(of, bad)
    update(of, bad)
    with pytest.raises(UserError, match=r"max_skipped is 2: loss is nan .* 3 updates in a row: training has diverged"):
        update(of, bad)


def test_a_gradient_that_is_not_finite_is_left_out_though_the_loss_is(runtime: Runtime) -> None:
    of, before = learner(runtime), weights(learner(runtime))
    parameter = next(of.policy.model.parameters())
    parameter.register_hook(lambda gradient: torch.full_like(gradient, torch.inf))
    metrics = update(of, random_batch())
    assert metrics["updates/skipped"] == 1 and math.isfinite(metrics["loss"] or 0.0)
    assert torch.equal(weights(of), before)
