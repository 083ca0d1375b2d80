"""What the parity tests feed: ragged groups of scored completions, and a tiny random model that scores them."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from hypothesis import settings
from torch import Tensor
from transformers import PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from rewards.score import Outcome, Score
from rl.objective.algorithms import ALGORITHMS, Algorithm
from rollout.records import Completion, FinishReason, Problem, Rollout, RolloutGroup

WITHOUT_CRITIC = [
    name for name, a in ALGORITHMS.items() if a.value_rule is None and a.teacher_weight == 0 and not a.prefers
]
VOCAB = 61
MAX_TOKENS = 10
TEMPERATURE = 0.7
FEW = settings(max_examples=30, deadline=None, derandomize=True, database=None)


def tiny_qwen2(seed: int = 0, vocab_size: int = VOCAB) -> PreTrainedModel:
    """float32, eval; weights large enough that attention is far from uniform and a wrong mask or position shows."""
    config = Qwen2Config(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.2,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    torch.manual_seed(seed)
    return Qwen2ForCausalLM(config).eval()


def nearby(model: PreTrainedModel, make: PreTrainedModel, seed: int = 7) -> PreTrainedModel:
    """`make` becomes `model` moved a little: a reference that is close, as in a run."""
    make.load_state_dict(model.state_dict())
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in make.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return make.requires_grad_(False)


def rollout(
    problem: Problem,
    token_ids: Sequence[int],
    value: float | None,
    *,
    sampler_logprobs: Sequence[float] | None = None,
    step_rewards: Sequence[float] = (),
    step_ends: Sequence[int] = (),
) -> Rollout:
    return Rollout(
        problem=problem,
        completion=Completion(
            token_ids=tuple(token_ids),
            sampler_logprobs=tuple(sampler_logprobs or [-1.0] * len(token_ids)),
            finish_reason=FinishReason.STOP,
            policy_version=0,
            seed=0,
            text="",
        ),
        score=Score(value, Outcome.CRASHED if value is None else Outcome.CORRECT if value == 1 else Outcome.WRONG),
        step_rewards=tuple(step_rewards),
        step_ends=tuple(step_ends),
    )


def group_of(lengths: Sequence[int], values: Sequence[float | None], name: str = "p") -> RolloutGroup:
    """Completions of these lengths with these rewards; the tokens do not matter."""
    problem = Problem(id=name, prompt=name, reference="1")
    rollouts = tuple(rollout(problem, [3] * n, v) for n, v in zip(lengths, values, strict=True))
    return RolloutGroup(problem=problem, prompt_ids=(5, 6), rollouts=rollouts)


def random_rollout(rng: random.Random, problem: Problem, length: int, value: float | None) -> Rollout:
    ends = sorted(rng.sample(range(length - 1), k=min(2, length - 1)))
    return rollout(
        problem,
        [rng.randrange(VOCAB) for _ in range(length)],
        value,
        sampler_logprobs=[-4 + 1.5 * rng.uniform(-1, 1) for _ in range(length)],
        step_rewards=[rng.choice((0.0, 0.5, 1.0)) for _ in ends],
        step_ends=ends,
    )


def random_groups(seed: int, *, ungraded: bool = True) -> list[RolloutGroup]:
    """Five groups of four. The last has no signal: rewards, steps and lengths are all alike. The first has a completion
    of one token, one of full length, and one that could not be graded."""
    rng = random.Random(seed)
    groups = []
    for g in range(4):
        problem = Problem(id=f"{seed}/{g}", prompt="", reference="1")
        lengths = [1, MAX_TOKENS, 4, 9] if g == 0 else [rng.randint(2, MAX_TOKENS) for _ in range(4)]
        values: list[float | None] = [1.0, 0.0, rng.choice((0.0, 0.25, 1.0)), rng.choice((0.0, 1.0))]
        rollouts = [random_rollout(rng, problem, n, v) for n, v in zip(lengths, values, strict=True)]
        if ungraded and g == 0:
            rollouts[2] = random_rollout(rng, problem, 4, None)
        prompt = tuple(rng.randrange(VOCAB) for _ in range(rng.randint(1, 6)))
        groups.append(RolloutGroup(problem=problem, prompt_ids=prompt, rollouts=tuple(rollouts)))
    problem = Problem(id=f"{seed}/silent", prompt="", reference="1")
    silent = tuple(
        rollout(
            problem,
            [rng.randrange(VOCAB) for _ in range(5)],
            1.0,
            sampler_logprobs=[-4.0 - 0.1 * t - 0.01 * i for t in range(5)],
            step_rewards=[1.0],
            step_ends=[2],
        )
        for i in range(4)
    )
    return [*groups, RolloutGroup(problem=problem, prompt_ids=(9, 8, 7), rollouts=silent)]


def drift(logprobs: Tensor, sampler_logprobs: Tensor) -> Tensor:
    """Behaviour log-probs a little away from the policy's, some beyond the clip range. Each token's own number decides
    how far, so a token gets the same ones wherever it is packed."""
    return logprobs.detach() + 0.3 * (40 * sampler_logprobs).sin()


def gradient_of(model: PreTrainedModel, loss: Tensor) -> Tensor:
    parameters = [p for p in model.parameters() if p.requires_grad]
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])


def relative_difference(a: Tensor, b: Tensor) -> float:
    """The largest difference of two gradients, in units of the largest entry; infinite for gradients of nothing."""
    scale = float(b.abs().max())
    return float((a - b).abs().max()) / scale if scale > 0 else float("inf")


def advantages_of(algorithm: Algorithm, groups: Sequence[RolloutGroup], max_tokens: int) -> list[tuple[Tensor, ...]]:
    """Of each group, of each completion, of each token; the algorithm has no critic."""
    credited = algorithm.assign_credit(groups, max_tokens)
    return [c.advantages for c in credited if c.advantages is not None]
