"""PPO's update: against the same written out with the model's own padded forward, plain Python GAE and autograd."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from rewards.errors import UserError
from rl.forward.choose_forward import ForwardChoice
from rl.forward.forward import plain_forward
from rl.forward.micro_batch import TrainGroup
from rl.forward.output_head import ValueHead
from rl.objective.algorithms import ALGORITHMS, PPO, PPO_SEPARATE, Algorithm
from rl.objective.values import ValueRule
from rl.policy.critic import Critic
from rl.policy.lora import CRITIC_ADAPTERS, LoraPolicy, adapter_parameters, add_adapters, lora_critic
from rl.policy.policy import Policy
from rl.processes.runtime import Runtime
from rl.run.checkpoint import CHECKSUMS, load_checkpoint, save_checkpoint
from rl.settings.config import RunConfig
from rl.settings.resolve import resolve
from rl.update.batch import Batch
from rl.update.learner import Learner
from rl.update.update import update
from rollout.problem_stream import ProblemStream
from tests.rl.models import cut, make, random_batch
from tests.rl.test_casts import batches, make_learner
from tests.rl.test_step import NoTokenizer
from tests.rl.test_values import restated

# Two float32 forwards that sum in another order, through one step of plain gradient descent with a rate of 0.1; weights near 0.3.
SAME = 2e-6


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Runtime:
    return Runtime.start(dtype="float32", device="cpu")


def ppo(source: str = "shared", **options: object) -> Algorithm:
    rule = {k: v for k, v in options.items() if hasattr(ValueRule, k)}
    rest = {k: v for k, v in options.items() if k not in rule}
    return replace(
        PPO, value_rule=ValueRule(source=source, **rule), **{"importance_cap": None, "kl_weight": 0.0, **rest}
    )  # pyright: ignore


def rewarded(batch: Batch, *, goes_on: bool = False) -> Batch:
    """Every sequence with a reward of its own; every third, if so asked, goes on."""
    count = 0

    def group(of: TrainGroup) -> TrainGroup:
        nonlocal count
        sequences = []
        for sequence in of.sequences:
            count += 1
            on = goes_on and count % 3 == 0
            sequences.append(cut(sequence) if on else replace(sequence, reward=math.sin(count)))
        return TrainGroup(of.prompt_ids, tuple(sequences))

    return Batch(tuple(group(g) for g in batch.groups), batch.counts)


def learner(runtime: Runtime, algorithm: Algorithm, *, trunk_scale: float = 1.0, **options: object) -> Learner:
    """The heads are not at zero, so that their gradients reach the trunk."""
    policy, critic = Policy.of(make("qwen2")), None
    assert algorithm.value_rule is not None
    if algorithm.value_rule.source == "shared":
        policy = policy.with_value_head(trunk_scale)
        head = policy.value_head
    else:
        critic = Critic.of(Policy.of(make("qwen2", seed=5)))
        head = critic.head
    assert head is not None
    with torch.no_grad():
        head.weight.copy_(torch.linspace(-0.3, 0.3, len(head.weight)))
        head.bias.fill_(0.2)
    parameters = critic.parameters() if critic else head.parameters()
    groups = [{"params": policy.trainable_parameters()}, {"params": parameters}]
    settings = {"temperature": 1.0, "token_budget": 10_000, "max_grad_norm": 1e9, **options}
    return Learner(
        policy=policy,
        reference=Policy.of(make("qwen2", seed=9)) if algorithm.kl_weight else None,
        critic=critic,
        optimizer=torch.optim.SGD(groups, lr=0.1),
        runtime=runtime,
        algorithm=algorithm,
        **settings,  # pyright: ignore
    )


def state(of: Learner) -> Tensor:
    return torch.cat([p.detach().flatten() for group in of.optimizer.param_groups for p in group["params"]])


def plain_states(model: PreTrainedModel, group: TrainGroup, n: int) -> tuple[Tensor, Tensor]:
    """(log-probs [T, V], last hidden states [T, H]) before each token of completion n, run alone."""
    tokens = torch.tensor([[*group.prompt_ids, *group.sequences[n].token_ids]])
    out = model(tokens, output_hidden_states=True, use_cache=False)
    at = slice(len(group.prompt_ids) - 1, -1)
    return out.logits[0, at].log_softmax(-1), out.hidden_states[-1][0, at]


def restated_update(of: Learner, batch: Batch) -> Tensor:
    """One gradient step on the batch, each sequence run alone. -> the weights after it."""
    policy, algorithm = of.policy, of.algorithm
    rule, head = algorithm.value_rule, of.critic.head if of.critic else of.policy.value_head
    assert rule is not None and head is not None
    loss = torch.zeros(())
    for group in batch.groups:
        for n, sequence in enumerate(group.sequences):
            logprobs, states = plain_states(policy.model, group, n)
            chosen = logprobs[range(len(sequence.token_ids)), list(sequence.token_ids)]
            if of.critic:
                tokens = torch.tensor([[*group.prompt_ids, *sequence.token_ids]])
                states = of.critic.trunk.model.get_decoder()(tokens, use_cache=False).last_hidden_state[0]  # pyright: ignore
                states = states[len(group.prompt_ids) - 1 : -1]
            elif head.trunk_scale != 1:
                states = head.trunk_scale * states + (1 - head.trunk_scale) * states.detach()
            values = states @ head.weight + head.bias
            reference = None
            if of.reference:
                with torch.no_grad():
                    reference = plain_states(of.reference.model, group, n)[0]
                reference = reference[range(len(sequence.token_ids)), list(sequence.token_ids)]
            trained = sum(sequence.loss_mask)
            if not trained:
                continue
            rewards = [0.0] * trained
            if rule.kl_in_reward and reference is not None:
                rewards = [-algorithm.kl_weight * x for x in (chosen - reference).tolist()[:trained]]
            v = values.tolist()
            rewards[-1] += rule.gamma * v[-1] if sequence.reward is None else sequence.reward
            lam = rule.lam if rule.lam_length is None else rule.lam_length ** (1 / trained)
            advantages = torch.tensor(restated(rewards, v[:trained], rule.gamma, lam))
            returns = torch.tensor(restated(rewards, v[:trained], rule.gamma, rule.lam_critic)) + torch.tensor(
                v[:trained]
            )
            terms = -(chosen[:trained] - chosen[:trained].detach()).exp() * advantages
            if reference is not None and not rule.kl_in_reward:
                d = reference[:trained] - chosen[:trained]
                terms = terms + algorithm.kl_weight * (d.exp() - d - 1)
            share = 1.0 if of.critic else rule.value_weight
            loss = loss + sequence.weight * (terms + share * (values[:trained] - returns).square() / 2).sum()
    loss.backward()
    of.optimizer.step()
    of.optimizer.zero_grad()
    return state(of)


CASES = {
    "shared": (ppo(), {}),
    "shared, lam": (ppo(gamma=0.95, lam=0.7, lam_critic=0.9, value_weight=0.3), {}),
    "shared, half of the gradient": (ppo(lam=0.5), {"trunk_scale": 0.5}),
    "shared, KL in the loss": (ppo(kl_weight=0.1), {}),
    "shared, KL in the reward": (ppo(kl_weight=0.1, kl_in_reward=True), {}),
    "shared, cut completions go on": (ppo(gamma=0.9, bootstrap_cut=True), {}),
    "shared, lambda by length, cut completions go on": (ppo(lam_length=0.5, bootstrap_cut=True), {}),
    "separate": (ppo("separate", lam=0.7), {}),
    "separate, lambda by length": (ppo("separate", lam_length=0.5, kl_weight=0.1, kl_in_reward=True), {}),
    "separate, KL in the reward": (ppo("separate", kl_weight=0.1, kl_in_reward=True), {}),
}


@pytest.mark.parametrize("case", CASES)
def test_one_update_is_that_of_the_formulas(case: str, runtime: Runtime) -> None:
    """Also with small micro-batches, and where every micro-batch is looked at beforehand."""
    algorithm, options = CASES[case]
    batch = rewarded(random_batch(), goes_on="go on" in case)
    expected = restated_update(learner(runtime, algorithm, **options), batch)
    before = state(learner(runtime, algorithm, **options))
    assert (expected - before).abs().max() > 1e-3
    for budget in (10_000, 25):
        ours = learner(runtime, algorithm, token_budget=budget, **options)
        update(ours, batch)
        assert (state(ours) - expected).abs().max() < SAME, budget


@pytest.mark.parametrize("source", ["shared", "separate"])
def test_whitened_advantages_do_not_depend_on_the_micro_batches(source: str, runtime: Runtime) -> None:
    batch, found = rewarded(random_batch()), []
    for budget in (10_000, 25):
        ours = learner(runtime, ppo(source, whiten=True, lam=0.8), token_budget=budget)
        update(ours, batch)
        found.append(state(ours))
    assert (found[0] - found[1]).abs().max() < SAME
    plain = learner(runtime, ppo(source, lam=0.8))
    update(plain, batch)
    assert (found[0] - state(plain)).abs().max() > 1e-3


def test_the_policys_scores_do_not_know_of_the_head() -> None:
    (micro,) = random_batch().micro_batches(10_000)
    without, with_head = Policy.of(make("qwen2")), Policy.of(make("qwen2"))
    with_head = with_head.with_value_head(1.0)
    a, b = without.score(micro, 0.7), with_head.score(micro, 0.7)
    assert torch.equal(a.logprobs, b.logprobs) and torch.equal(a.entropies, b.entropies)
    _, values = with_head.logprobs_and_values(micro, 0.7)
    assert values is not None and not values.any()  # it starts at 0
    assert not any("value" in name for name, _ in with_head.named_tensors())


def test_the_trunk_gets_its_share_of_the_values_gradient(runtime: Runtime) -> None:
    """In a line from none to all of it, while the head learns the same."""
    batch, moved = rewarded(random_batch()), {}
    for scale in (0.0, 0.25, 1.0):
        ours = learner(runtime, ppo(value_clip=None), trunk_scale=scale)
        before = state(ours)
        update(ours, batch)
        moved[scale] = state(ours) - before
    between = 0.75 * moved[0.0] + 0.25 * moved[1.0]
    assert (moved[0.25] - between).abs().max() < SAME
    size = len(make("qwen2").lm_head.weight[0]) + 1  # pyright: ignore
    assert (moved[0.0] - moved[1.0])[:-size].abs().max() > 1e-3
    assert (moved[0.0] - moved[1.0])[-size:].abs().max() < SAME


@pytest.mark.parametrize("source", ["shared", "separate"])
def test_later_epochs_and_minibatches_hold_on_to_what_was_sampled(source: str, runtime: Runtime) -> None:
    """Advantages, returns, old values and log-probs are those of before the first update, whoever looks when."""
    batch = rewarded(random_batch(longest=6))
    first, second = (Batch(batch.groups[i::2], batch.counts) for i in range(2))
    inline = learner(runtime, ppo(source), num_epochs=3)
    assert update(inline, batch)["ratio/max"] > 1  # pyright: ignore
    once = learner(runtime, ppo(source))
    assert update(once, batch)["ratio/max"] == 1
    halves = learner(runtime, ppo(source))
    measured = update(halves, first, second)
    assert measured["ratio/max"] > 1  # pyright: ignore  the second half was sampled before the first was trained on
    again = learner(runtime, ppo(source))
    update(again, first)
    stale = state(again)
    assert (state(halves) - stale).abs().max() > 1e-3


def test_the_second_epochs_gradient_is_of_the_ratio_to_what_was_sampled(runtime: Runtime) -> None:
    """sum w rho A grad l: by autograd on log-probs and advantages that were kept from before the first update."""
    batch = rewarded(random_batch())
    algorithm = ppo(clip_low=math.inf, clip_high=math.inf, value_weight=0.0)
    ours, twice = learner(runtime, algorithm), learner(runtime, algorithm, num_epochs=2)
    (micro,) = batch.micro_batches(10_000)
    sampled, values = ours.policy.logprobs_and_values(micro, 1.0)
    assert values is not None
    known = algorithm.value_targets(micro, values, None, None)
    update(ours, batch)
    scores = ours.policy.score(micro, 1.0)
    ratio = (scores.logprobs - sampled).exp()
    (-micro.weights * ratio * known.advantages).sum().backward()
    ours.optimizer.step()
    update(twice, batch)
    assert (state(ours) - state(twice)).abs().max() < SAME


def test_the_head_lets_its_share_into_the_trunk_by_autograd_too() -> None:
    """Output layers that are no plain one are differentiated by autograd."""
    hidden = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    head = ValueHead(torch.tensor([1.0, -2.0, 0.5]), torch.tensor(0.3), trunk_scale=0.25)
    head(hidden).sum().backward()
    assert hidden.grad is not None and torch.equal(hidden.grad, 0.25 * head.weight.expand(4, 3))
    assert torch.equal(head(hidden), hidden @ head.weight + 0.3)


@pytest.mark.parametrize("source", ["shared", "separate"])
def test_while_the_critic_is_warmed_up_the_policy_stays(source: str, runtime: Runtime) -> None:
    ours = learner(runtime, ppo(source))
    before = copy.deepcopy(ours.policy.model.state_dict())
    head = ours.critic.head if ours.critic else ours.policy.value_head
    assert head is not None
    bias = head.bias.item()
    update(ours, rewarded(random_batch()), trains_policy=False)
    assert all(torch.equal(x, before[name]) for name, x in ours.policy.model.state_dict().items())
    assert head.bias.item() != bias


@pytest.mark.parametrize("source", ["shared", "separate"])
@pytest.mark.parametrize("trains_policy", [True, False])
def test_the_kl_in_the_reward_is_that_of_the_tempered_distributions(
    source: str, trains_policy: bool, runtime: Runtime
) -> None:
    """Without any reward a return is what the KL takes: nothing, where the reference is the policy."""
    ours = learner(runtime, ppo(source, kl_weight=1.0, kl_in_reward=True), temperature=0.5)
    ours.reference = ours.policy.frozen_copy()
    found = update(ours, random_batch(), trains_policy=trains_policy)
    assert found["value/return"] == pytest.approx(0.0, abs=SAME)


@pytest.mark.parametrize("source", ["shared", "separate"])
def test_each_of_the_two_gradients_is_scaled_down_to_its_bound(source: str, runtime: Runtime) -> None:
    """Gradient descent with a rate of 0.1 then goes 0.1 times the bound; told are the lengths before."""
    ours = learner(runtime, ppo(source), max_grad_norm=0.01)
    groups = [group["params"] for group in ours.optimizer.param_groups]
    before = [[p.detach().clone() for p in group] for group in groups]
    found = update(ours, rewarded(random_batch()))
    assert min(found["grad_norm"] or 0.0, found["value/grad_norm"] or 0.0) > 0.1
    for group, was in zip(groups, before, strict=True):
        moved = torch.cat([(p.detach() - w).flatten() for p, w in zip(group, was, strict=True)])
        assert moved.norm().item() == pytest.approx(
            0.1 * 0.01, rel=0.01
        )  # float32 weights near 0.3 take such steps to a percent


@pytest.mark.parametrize("source", ["shared", "separate"])
def test_checkpoints_hold_the_critic(source: str, runtime: Runtime, tmp_path: Path) -> None:
    ours, fresh = learner(runtime, ppo(source)), learner(runtime, ppo(source))
    update(ours, rewarded(random_batch()))
    stream = ProblemStream.of([], 0)
    folder = tmp_path / "checkpoints" / "step-000001"
    save_checkpoint(folder, step=1, learner=ours, stream=stream, tokenizer=SavedTokenizer(), keep=1)  # pyright: ignore
    listed = {line.partition("  ")[2] for line in (folder / CHECKSUMS).read_text().splitlines()}
    assert listed == {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} - {
        CHECKSUMS
    }  # one left out could be damaged unseen
    assert not torch.equal(state(ours), state(fresh))
    load_checkpoint(folder, fresh, stream)
    assert torch.equal(state(ours), state(fresh))


class SavedTokenizer(NoTokenizer):
    def save_pretrained(self, folder: Path) -> None: ...


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"algorithm": "grpo", "value": "shared"}, "value is 'shared': grpo has no critic"),
        ({"algorithm": "grpo", "whiten": True}, "whiten is True: grpo has no critic"),
        ({"algorithm": "ppo", "value": "none"}, "value is 'none': ppo needs a critic"),
        ({"algorithm": "ppo", "lam": 1.5}, r"lam is 1.5: it must be in \[0, 1\]"),
        ({"algorithm": "ppo", "value_trunk_scale": -0.1}, "value_trunk_scale is -0.1"),
        ({"algorithm": "ppo", "lam_length": 0.0}, "lam_length is 0.0: it must be more than 0 and at most 1"),
        (
            {"algorithm": "ppo", "lam_length": 0.5, "lam": 0.9},
            r"lam_length is 0.5 and lam 0.9: .* leave one of them out",
        ),
        ({"algorithm": "grpo", "lam_length": 0.5}, "lam_length is 0.5: grpo has no critic"),
        (
            {"algorithm": "ppo", "critic_updates": 2},
            "critic_updates is 2: the critic shares .* or use --value separate",
        ),
        ({"algorithm": "grpo", "critic_updates": 2}, "critic_updates is 2: grpo has no critic"),
        ({"algorithm": "grpo", "group_size": 1}, "group_size is 1: it must be at least 2 for grpo"),
        (
            {"algorithm": "ppo", "critic_warmup_steps": 72},
            "critic_warmup_steps is 72: it must be less than num_steps, 72",
        ),
    ],
)
def test_options_that_cannot_be(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        resolve(RunConfig(**options), "cpu")  # pyright: ignore


def test_ppo_may_sample_one_completion_of_each_problem() -> None:
    assert resolve(RunConfig(algorithm="ppo", group_size=1), "cpu").group_size == 1
    assert {a.name for a in ALGORITHMS.values() if a.value_rule} == {"ppo", "ppo-separate"}
    assert PPO_SEPARATE.value_rule == ValueRule(source="separate")


def test_a_model_without_hidden_states_shares_no_trunk() -> None:
    policy = Policy.of(make("qwen2"))
    policy = replace(policy, choice=ForwardChoice(plain_forward))
    with pytest.raises(UserError, match="value is 'shared'"):
        policy.with_value_head(1.0)


def test_checkpointed_layers_learn_the_same(runtime: Runtime) -> None:
    batch = rewarded(random_batch())
    plain, checkpointed = learner(runtime, ppo()), learner(runtime, ppo())
    head = checkpointed.policy.value_head
    checkpointed.policy = Policy.of(checkpointed.policy.model, gradient_checkpointing=True, value_head=head)
    update(plain, batch)
    update(checkpointed, batch)
    assert (state(plain) - state(checkpointed)).abs().max() < SAME


@pytest.mark.parametrize("num_minibatches", [1, 2])
def test_layers_are_run_again_with_the_adapters_of_whoever_is_trained(num_minibatches: int, runtime: Runtime) -> None:
    """Policy and critic are one model: in the critic's backward, and when its values are looked at, its own adapters must be there."""
    after = []
    for checkpointed in (False, True):
        trained = make_learner(
            runtime, "ppo-separate", lora=True, checkpointed=checkpointed, num_minibatches=num_minibatches
        )
        update(trained, *batches(num_minibatches))
        update(trained, *batches(num_minibatches))  # both sets of adapters add something by now
        after.append(state(trained))
        assert all(p.any() for p in adapter_parameters(trained.policy.model, CRITIC_ADAPTERS).values())
    assert torch.equal(*after)


def test_adapters_of_the_policy_and_of_its_critic_are_apart(runtime: Runtime) -> None:
    """One frozen base. Neither's loss reaches the other's adapters, and the policy scores as if there were no critic."""
    adapted = add_adapters(make("qwen2"), rank=4, alpha=8.0, targets=("q_proj", "down_proj"), seed=0)
    policy = LoraPolicy.of(adapted)
    (micro,) = rewarded(random_batch()).micro_batches(10_000)
    before = policy.score(micro, 1.0).logprobs.detach()
    critic = lora_critic(policy, seed=1)
    with torch.no_grad():
        critic.head.weight.fill_(0.1)
    assert torch.equal(policy.score(micro, 1.0).logprobs, before)
    moved = {}
    for trains_policy in (False, True):
        policies, critics = policy.trainable_parameters(), critic.parameters()
        was = [p.detach().clone() for p in (*policies, *critics)]
        ours = learner(runtime, ppo("separate"))
        ours.policy, ours.critic = policy, critic
        ours.optimizer = torch.optim.SGD([{"params": policies}, {"params": critics}], lr=0.1)
        update(ours, rewarded(random_batch()), trains_policy=trains_policy)
        changed = [not torch.equal(a, b) for a, b in zip(was, (*policies, *critics), strict=True)]
        moved[trains_policy] = any(changed[: len(policies)]), any(changed[len(policies) : -2])
    assert moved == {False: (False, True), True: (True, True)}
    frozen = {n: p for n, p in policy.model.named_parameters() if "lora" not in n}
    plain = dict(make("qwen2").named_parameters())
    assert all(torch.equal(p, plain[n.replace(".base_layer", "")]) for n, p in frozen.items())
