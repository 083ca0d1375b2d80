"""What is counted from shapes, against what the code really does."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from rl.capacity.cost import ModelCost, Workload, decode_seconds, forward_flops, optimizer_bytes, update_flops
from rl.command.dry_run import untrained_learner
from rl.forward.forward import packed_forward
from rl.processes.runtime import Runtime
from rl.run.setup import fitted_to_memory
from rl.settings.config import RunConfig
from rl.settings.resolve import resolve
from rl.update.step import update
from tests.rl.families import of_family
from tests.rl.models import make, random_batch


@pytest.mark.parametrize("family", ["Qwen2", "Llama", "GPT-2"])
def test_flops_of_a_forward_are_those_that_torch_counts(family: str) -> None:
    """Matrix products exactly. Attention runs on padded rectangles, twice the triangle that is needed: left out of both."""
    model, batch = of_family(family), random_batch()
    (micro,) = batch.micro_batches(10_000)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        packed_forward.score(model, micro, 1.0)
    counts = counter.get_flop_counts()["Global"]
    products = sum(
        n for operation, n in counts.items() if "attention" not in str(operation) and "bmm" not in str(operation)
    )
    cost, work = ModelCost.of(model), Workload.of(batch.groups)
    assert products == forward_flops(cost, work) - 4 * cost.attention * work.pairs


@pytest.mark.parametrize(
    ("algorithm", "options", "tolerance"),
    [
        ("grpo", {"kl_weight": 0.04}, 0),
        ("grpo", {"kl_weight": 0.0, "gradient_checkpointing": True, "num_epochs": 2}, 0.05),
        ("grpo", {"kl_weight": 0.0, "lora_rank": 4, "lora_alpha": 8.0}, 0.05),
        ("ppo", {"kl_weight": 0.0}, 0.01),
        ("ppo", {"kl_weight": 0.0, "whiten": True}, 0.01),
        ("ppo-separate", {"kl_weight": 0.0}, 0.01),
        ("ppo-separate", {"kl_weight": 0.0, "whiten": True, "num_epochs": 2}, 0.01),
        ("ppo-separate", {"kl_weight": 0.0, "num_epochs": 2, "critic_updates": 3}, 0.01),
        ("online-dpo", {"num_epochs": 2}, 0),
    ],
)
def test_the_flops_of_an_update_are_those_that_torch_counts(
    algorithm: str, options: dict[str, Any], tolerance: float
) -> None:
    """Matrix products, all of them. What the formula leaves out: a value head's are 1 %; a checkpointed layer's last is not run
    again, and adapters are trained where the formula has frozen weights: 5 % of models as small as this.

    torch does not count addmm_, by which the gradient of the output layer is added up.
    """
    runtime = Runtime.start(dtype="float32", device="cpu")
    config = RunConfig(algorithm=algorithm, **{"gradient_checkpointing": False, **options})
    learner, batch = untrained_learner(make("llama").config, resolve(config, "cpu"), runtime), random_batch()
    cost, work = ModelCost.of(learner.policy.model), Workload.of(batch.groups)
    with FlopCounterMode(display=False) as counter:
        metrics = update(learner, batch)
    counts = counter.get_flop_counts()["Global"]
    products = sum(n for what, n in counts.items() if "attention" not in str(what) and "bmm" not in str(what))
    if config.lora_rank == 0:
        products += config.num_epochs * 2 * cost.head * work.scored
    passes = {"forward": 4 * cost.attention * work.pairs, "both": 12 * cost.attention * work.pairs}
    run = ["forward"] * (learner.reference is not None) + ["forward"] * learner.algorithm.whitens
    run += ["both"] * config.num_epochs + ["forward"] * config.num_epochs * bool(config.gradient_checkpointing)
    run += ["forward"] * config.num_epochs * learner.algorithm.prefers
    if algorithm == "ppo-separate":
        run += ["forward"] * learner.algorithm.whitens + ["both"] * config.num_epochs * config.critic_updates
    attention = sum(passes[what] for what in run)
    assert (metrics["flops/update"] or 0) - attention == pytest.approx(products, rel=tolerance)


def test_shared_prompts_count_once_and_frozen_weights_have_no_gradient() -> None:
    """By hand: one group, p = 10, completions of 3 and 5 tokens."""
    (group,) = random_batch(groups=1, size=2).groups
    group = type(group)(tuple(range(10)), group.sequences)
    lengths = [len(s.token_ids) for s in group.sequences]
    shared, apart = Workload.of([group]), Workload.of([group], shared=False)
    assert shared.tokens == 10 + sum(lengths) - 2 and apart.tokens == 20 + sum(lengths) - 2
    assert apart.pairs - shared.pairs == 50 and shared.scored == apart.scored == sum(lengths)
    cost = ModelCost(block=100, head=10, attention=0, key_value=1, all_parameters=110)
    assert update_flops(cost, shared) == 3 * forward_flops(cost, shared)
    assert update_flops(cost, shared, frozen=True) == 2 * forward_flops(cost, shared)


def test_decoding_is_bounded_by_the_slower_of_memory_and_arithmetic() -> None:
    """One group of two rows, p = 4, completions of 1 and 2 tokens; N_b + V H = 110, no attention, 3 numbers a token kept."""
    cost = ModelCost(block=100, head=10, attention=0, key_value=3, all_parameters=110)
    prefill = 2 * 100 * 4
    by_arithmetic = decode_seconds(cost, [4], [[1, 2]], flops_per_second=1.0, bytes_per_second=1e9)
    assert by_arithmetic == prefill + 2 * 110 * (2 + 1)
    by_memory = decode_seconds(cost, [4], [[1, 2]], flops_per_second=1e9, bytes_per_second=1.0)
    assert by_memory == pytest.approx(4 * (110 + 3 * (4 + 2 * 1)) + 4 * (110 + 3 * (4 + 1 * 2)))
    # With 5 numbers of queries, 20 a pair: 4^2 / 2 of the prompt, two rows that see 5 keys, one that sees 6.
    cost = replace(cost, attention=5)
    attending = decode_seconds(cost, [4], [[1, 2]], flops_per_second=1.0, bytes_per_second=1e9)
    assert attending - by_arithmetic == 20 * (8 + 2 * 5 + 6)


def test_an_optimizers_step_reads_four_numbers_and_writes_three() -> None:
    """Weight, gradient and two moments of each of 110 parameters, 4 bytes each; the gradient is not written."""
    cost = ModelCost(block=100, head=10, attention=0, key_value=3, all_parameters=110)
    assert optimizer_bytes(cost) == 110 * 4 * (4 + 3)


@pytest.mark.parametrize(("free", "expected"), [(1 << 40, False), (1 << 16, True)])
def test_checkpointing_is_on_where_a_forward_would_not_fit_and_only_there(free: int, expected: bool) -> None:
    said: list[str] = []
    progress, model = SimpleNamespace(message=said.append), of_family("Llama")
    runtime = SimpleNamespace(
        device=torch.device("cpu"),
        dtype="float32",
        count=1,
        shards=False,
        offloads=False,
        room=lambda _: (free, free),
        gather=list,
    )

    def checkpoints(config: RunConfig) -> bool:
        settings, _ = fitted_to_memory(config, model, runtime, progress, 1)  # pyright: ignore
        return settings.gradient_checkpointing

    assert checkpoints(RunConfig()) is expected
    assert len(said) == expected and all("token_budget" in message for message in said)
    for chosen in (True, False):
        assert checkpoints(RunConfig(gradient_checkpointing=chosen)) is chosen
