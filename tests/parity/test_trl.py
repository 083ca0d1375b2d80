"""TRL's own functions on our inputs: advantages, losses with their gradients, log-probs, entropies, the overlong penalty.

Its trainers are built on a tiny random model and their methods called as a training step would. TRL decides the expected
values, so a difference here is either a fault of ours or a convention to be named.
"""

from __future__ import annotations

import random
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

pytest.importorskip("trl", reason="TRL is not installed: nothing to compare with")

from datasets import Dataset
from transformers import PreTrainedModel
from trl.rewards import get_soft_overlong_punishment
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.rloo_config import RLOOConfig
from trl.trainer.rloo_trainer import RLOOTrainer

from rl.forward.forward import packed_forward
from rl.objective.algorithms import CISPO, DAPO, DR_GRPO, GRPO, GSPO, RLOO, Algorithm
from rl.objective.losses import clipped_surrogate, overlong_penalty
from rl.run.tiny import tiny_tokenizer
from rl.update.batch import pack
from rollout.records import RolloutGroup
from tests.parity.cases import (
    MAX_TOKENS,
    TEMPERATURE,
    advantages_of,
    drift,
    gradient_of,
    group_of,
    nearby,
    random_groups,
    relative_difference,
    tiny_qwen2,
)

SIZE = 4
# float32 throughout, on both sides, by different kernels and in different order; see test_gradient_independence.py
SAME = 2e-5
TOKENIZER = tiny_tokenizer()


def plain_policy() -> PreTrainedModel:
    """Always the same weights: TRL changes the forward of the model it is given, so each side has its own."""
    return tiny_qwen2(vocab_size=len(TOKENIZER))


class Rewards:
    """A reward function that says what it was told to."""

    __name__ = "told"

    def __init__(self) -> None:
        self.values: list[float | None] = []

    def __call__(self, **_: Any) -> list[float | None]:
        return self.values


def build(trainer: Any, config: Any, folder: Path) -> Any:
    arguments = config(
        output_dir=str(folder),
        per_device_train_batch_size=SIZE,
        num_generations=SIZE,
        max_completion_length=MAX_TOKENS,
        temperature=TEMPERATURE,
        beta=0.0,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
    )
    built = trainer(
        model=plain_policy(),
        reward_funcs=Rewards(),
        args=arguments,
        train_dataset=Dataset.from_list([{"prompt": "ab"}] * SIZE),
        processing_class=TOKENIZER,
    )
    built.model.eval()  # no accumulation: the loss of the batch as it stands
    return built


@pytest.fixture(scope="module")
def grpo(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return build(GRPOTrainer, GRPOConfig, tmp_path_factory.mktemp("grpo"))


@pytest.fixture(scope="module")
def rloo(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return build(RLOOTrainer, RLOOConfig, tmp_path_factory.mktemp("rloo"))


def their_advantages(trainer: Any, values: list[list[float | None]]) -> list[float]:
    """Four completions are sampled for each prompt, which nobody looks at, and rewarded as told."""
    trainer.reward_funcs[0].values = [v for row in values for v in row]
    prompts = [{"prompt": "abc"[: i + 1]} for i in range(len(values)) for _ in range(SIZE)]
    return trainer._generate_and_score_completions(prompts)["advantages"].tolist()


def our_advantages(algorithm: Algorithm, values: list[list[float | None]]) -> list[float]:
    groups = [group_of([1] * SIZE, row, str(i)) for i, row in enumerate(values)]
    return [float(a[0]) for rows in advantages_of(algorithm, groups, MAX_TOKENS) for a in rows]


def drawn_values(seed: int) -> list[list[float | None]]:
    """Real rewards, right or wrong, and a group that is all right; one completion could not be graded."""
    rng = random.Random(seed)
    return [[rng.gauss(0, 2) for _ in range(3)] + [None], [1.0, 0.0, 0.0, rng.choice((0.0, 1.0))], [1.0] * SIZE]


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(("algorithm", "scale"), [(GRPO, "group"), (GSPO, "group"), (DR_GRPO, "none")])
def test_group_advantages(algorithm: Algorithm, scale: str, seed: int, grpo: Any) -> None:
    """Bessel's std, eps 1e-4, ungraded completions out of the mean. 1e-5: float32, rewards of a few units."""
    grpo.scale_rewards = scale
    values = drawn_values(seed)
    assert our_advantages(algorithm, values) == pytest.approx(their_advantages(grpo, values), abs=1e-5)


@pytest.mark.parametrize("seed", range(2))
def test_leave_one_out_advantages(seed: int, rloo: Any) -> None:
    """With beta 0: TRL takes the KL off the reward, ours stands in the loss. 1e-5 as above."""
    values = drawn_values(seed)
    assert our_advantages(RLOO, values) == pytest.approx(their_advantages(rloo, values), abs=1e-5)


@pytest.mark.parametrize(("limit", "cache"), [(10, 2), (100, 20), (64, 64)])
def test_the_overlong_penalty(limit: int, cache: int) -> None:
    lengths = range(limit + 5)
    theirs = get_soft_overlong_punishment(limit, cache)(completion_ids=[[1] * n for n in lengths])
    assert [overlong_penalty(n, limit, cache) for n in lengths] == pytest.approx(theirs, abs=1e-12)  # two roundings


# Losses: TRL's padded batch of the same groups


def padded(groups: list[RolloutGroup]) -> dict[str, Tensor]:
    """Prompts padded on the left, completions on the right, as TRL makes them."""
    prompts = [torch.tensor(g.prompt_ids) for g in groups for _ in g.rollouts]
    completions = [torch.tensor(r.completion.token_ids) for g in groups for r in g.rollouts]
    columns = {}
    for name, rows, side in (("prompt", prompts, "left"), ("completion", completions, "right")):
        columns[f"{name}_ids"] = pad_sequence(rows, batch_first=True, padding_side=side)
        ones = [torch.ones_like(row) for row in rows]
        columns[f"{name}_mask"] = pad_sequence(ones, batch_first=True, padding_side=side)
    return columns


def scored(trainer: Any, model: Any, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """TRL's log-probs and entropies of the completions."""
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
    mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
    width = inputs["completion_ids"].shape[1]
    return trainer._get_per_token_logps_and_entropies(model, ids, mask, width, compute_entropy=True)[:2]


def samplers(groups: list[RolloutGroup]) -> Tensor:
    rows = [torch.tensor(r.completion.sampler_logprobs) for g in groups for r in g.rollouts]
    return pad_sequence(rows, batch_first=True)


def their_inputs(trainer: Any, reference: Any, algorithm: Algorithm, groups: list[RolloutGroup]) -> dict[str, Tensor]:
    """Our advantages, behaviour and importance weights; TRL's log-probs of policy and reference."""
    inputs = padded(groups)
    with torch.no_grad():
        logprobs, _ = scored(trainer, trainer.model, inputs)
        fixed, _ = scored(trainer, reference, inputs)
    advantages = advantages_of(algorithm, groups, MAX_TOKENS)
    behaviour = drift(logprobs, samplers(groups))
    return inputs | {
        "advantages": torch.stack([a[0] for rows in advantages for a in rows]),
        "old_per_token_logps": behaviour,
        "ref_per_token_logps": fixed,
        "importance_sampling_ratio": (behaviour - samplers(groups)).exp().clamp(max=2.0),
        "num_items_in_batch": inputs["completion_mask"].sum(),
    }


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A model that is close to the policy, made ready by TRL."""
    near = nearby(plain_policy(), plain_policy())
    model = build(GRPOTrainer, GRPOConfig, tmp_path_factory.mktemp("reference")).model
    model.load_state_dict(near.state_dict())
    return model.requires_grad_(False)


OF_ARGS = ("delta", "use_bias_correction_kl")  # what TRL reads there; the rest it copies to the trainer
# TRL's default multiplies the KL by the ratio (DeepSeek-V3.2); ours is DeepSeekMath's, which it calls without correction.
PAPERS_KL = {"loss_type": "grpo", "beta": 0.04, "use_bias_correction_kl": False}
TWO_SIDED = partial(clipped_surrogate, dual_clip=1.25)  # the ratios here go up to 1.35
CASES: dict[str, tuple[Algorithm, dict[str, Any]]] = {
    "grpo": (GRPO, PAPERS_KL),
    "grpo-corrected": (GRPO, PAPERS_KL | {"use_vllm": True}),
    "grpo-dual-clip": (replace(GRPO, surrogate=TWO_SIDED), PAPERS_KL | {"delta": 1.25}),
    "dr-grpo": (DR_GRPO, {"loss_type": "dr_grpo"}),
    "dapo": (DAPO, {"loss_type": "dapo", "epsilon_high": 0.28}),
    "dapo-entropy": (
        replace(DAPO, entropy_weight=0.05),
        {"loss_type": "dapo", "epsilon_high": 0.28, "entropy_coef": 0.05, "_entropy_bonus_enabled": True},
    ),
    "gspo": (
        GSPO,
        {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon_low": 3e-4, "epsilon_high": 4e-4},
    ),
    # an absolute cap of 5, of 1.28 and of 1.1: TRL's reading, by our bounds
    "cispo": (CISPO, {"loss_type": "cispo", "epsilon_high": 5.0}),
    "cispo-low-cap": (replace(CISPO, clip_high=0.28), {"loss_type": "cispo", "epsilon_high": 1.28}),
    "cispo-lower-cap": (replace(CISPO, clip_high=0.1), {"loss_type": "cispo", "epsilon_high": 1.1}),
}


def our_loss(algorithm: Algorithm, groups: list[RolloutGroup], model: Any, fixed: Any) -> tuple[float, Tensor]:
    batch = pack(algorithm.assign_credit(groups, MAX_TOKENS), algorithm, MAX_TOKENS)
    value, gradient = 0.0, torch.zeros(sum(p.numel() for p in model.parameters()))
    for micro in batch.micro_batches(40):
        scores = packed_forward.score(model, micro, TEMPERATURE)
        reference = packed_forward.score(fixed, micro, TEMPERATURE).logprobs if algorithm.kl_weight else None
        loss = algorithm.loss(scores, drift(scores.logprobs, micro.sampler_logprobs), reference, micro)
        value, gradient = value + loss.item(), gradient + gradient_of(model, loss)
    return value, gradient


@pytest.mark.parametrize("case", CASES)
def test_losses_and_gradients(case: str, grpo: Any, reference: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Policies and references with the same weights, ratios beyond the clip range, groups without signal skipped by us."""
    algorithm, options = CASES[case]
    algorithm = algorithm if "use_vllm" in options else replace(algorithm, importance_cap=None)
    for name, value in options.items():
        monkeypatch.setattr(grpo.args if name in OF_ARGS else grpo, name, value)
    groups = random_groups(8, ungraded=False)
    theirs = grpo._compute_loss(grpo.model, their_inputs(grpo, reference, algorithm, groups))
    plain = plain_policy()
    ours, gradient = our_loss(algorithm, groups, plain, nearby(plain, plain_policy()))
    assert ours == pytest.approx(theirs.item(), abs=2e-6)  # float32: terms near 1, summed with weights that sum to 1
    assert relative_difference(gradient, gradient_of(grpo.model, theirs)) < SAME


def test_the_first_update_of_rloo(rloo: Any) -> None:
    """TRL's ratio is of whole sequences, ours of tokens: at the first update, where both are 1, the gradient is one."""
    algorithm = replace(RLOO, kl_weight=0.0, importance_cap=None)
    groups = random_groups(9, ungraded=False)
    inputs = padded(groups)
    with torch.no_grad():
        logprobs, _ = scored(rloo, rloo.model, inputs)
    advantages = advantages_of(algorithm, groups, MAX_TOKENS)
    inputs["advantages"] = torch.stack([a[0] for rows in advantages for a in rows])
    inputs["old_logps"] = (logprobs * inputs["completion_mask"]).sum(1)
    theirs = gradient_of(rloo.model, rloo._compute_loss(rloo.model, inputs))
    model = plain_policy()
    (micro,) = pack(algorithm.assign_credit(groups, MAX_TOKENS), algorithm, MAX_TOKENS).micro_batches(10_000)
    scores = packed_forward.score(model, micro, TEMPERATURE)
    ours = gradient_of(model, algorithm.loss(scores, scores.logprobs.detach(), None, micro))
    assert relative_difference(ours, theirs) < SAME


def test_log_probs_and_entropies(grpo: Any) -> None:
    """Of every token at the sampling temperature, and in every micro-batch the same sums."""
    groups = random_groups(10, ungraded=False)
    inputs = padded(groups)
    logprobs, entropies = scored(grpo, grpo.model, inputs)
    of_sampler = dict(zip(_flat(samplers(groups), inputs), zip(_flat(logprobs, inputs), _flat(entropies, inputs))))
    model = plain_policy()
    kept = replace(GRPO, kl_weight=1.0)  # nothing is skipped
    (micro,) = pack(kept.assign_credit(groups, MAX_TOKENS), kept, MAX_TOKENS).micro_batches(10_000)
    ours = packed_forward.score(model, micro, TEMPERATURE)
    theirs = [of_sampler[x] for x in micro.sampler_logprobs.tolist()]
    # float32 log-softmax of logits near 10: 1e-6 each, by two attention kernels
    assert ours.logprobs.tolist() == pytest.approx([t[0] for t in theirs], abs=5e-5)
    assert ours.entropies.tolist() == pytest.approx([t[1] for t in theirs], abs=5e-5)


def _flat(table: Tensor, inputs: dict[str, Tensor]) -> list[float]:
    return table[inputs["completion_mask"].bool()].tolist()
