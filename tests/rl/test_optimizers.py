"""Moments in 8 bits, gradients in 16, and what waits in the host's memory: the same step, by other means."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import rl.update.streamed_optimizer
from rewards.errors import UserError
from rewards.math_answer import MathVerifier
from rl.policy.policy import Policy
from rl.processes.runtime import Runtime
from rl.run.build_learner import build_learner, build_optimizer
from rl.run.checkpoint import load_checkpoint, save_checkpoint
from rl.run.loop import train
from rl.run.setup import require_shardable
from rl.run.tiny import tiny_tokenizer
from rl.settings.config import RunConfig
from rl.settings.resolve import resolve
from rl.update.learner import Learner
from rl.update.streamed_optimizer import StreamedOptimizer, in_buckets
from rl.update.update import update
from rl.view.progress import Progress
from rollout.problem_stream import ProblemStream
from rollout.records import Problem
from tests.rl.models import make, random_batch
from tests.rl.test_loop import final_weights, odd_lengths, options

QUIET = Progress(0, quiet=True)
needs_8bit = pytest.mark.skipif(
    rl.run.build_learner.find_spec("bitsandbytes") is None, reason="pip install 'plumbline-rl[8bit]'"
)


@pytest.fixture(scope="module")
def runtime() -> Runtime:
    return Runtime.start(dtype="float32", device="cpu")


def learner(runtime: Runtime, family: str = "qwen2", **asked: Any) -> Learner:
    config = RunConfig(
        **{"learning_rate": 1e-2, "kl_weight": 0.1, "gradient_checkpointing": False, "token_budget": 40, **asked}
    )
    return build_learner(resolve(config, "cpu"), make(family), tiny_tokenizer(), runtime)


def trained(learner: Learner, steps: int = 3) -> dict[str, torch.Tensor]:
    for step in range(steps):
        update(learner, random_batch(step))
    return {name: p.detach().clone() for name, p in learner.policy.model.named_parameters()}


@pytest.mark.parametrize("offload", ["reference", "optimizer", "all"])
@pytest.mark.parametrize(
    "asked", [{}, {"algorithm": "ppo"}, {"algorithm": "ppo-separate"}], ids=lambda o: o.get("algorithm", "grpo")
)
def test_what_waits_elsewhere_changes_no_bit(
    asked: dict[str, Any], offload: str, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step by buckets is that of all at once: AdamW treats each number by itself."""
    monkeypatch.setattr(rl.update.streamed_optimizer, "BUCKET", 2000)
    monkeypatch.setattr(rl.update.streamed_optimizer, "MIN_OFFLOADED", 1)
    here, away = (trained(learner(runtime, offload=o, **asked)) for o in ("none", offload))
    assert all(torch.equal(here[name], away[name]) for name in here)


def test_a_bucket_holds_no_more_than_it_may_and_all_are_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rl.update.streamed_optimizer, "BUCKET", 5)
    parameters = [torch.nn.Parameter(torch.zeros(n)) for n in (3, 2, 1, 9, 4)]
    assert [[p.numel() for p in bucket] for bucket in in_buckets(parameters)] == [[3, 2], [1], [9], [4]]


def test_gradients_in_16_bits_are_rounded_as_they_are_added_up(runtime: Runtime) -> None:
    """Of one micro-batch, embeddings and head apart: the gradient of float32, rounded once; the step is taken in float32 by it."""
    exact, rounded = (learner(runtime, "llama", gradient_dtype=d, token_budget=10_000) for d in ("float32", "bfloat16"))
    found: list[list[torch.Tensor]] = []
    for one in (exact, rounded):
        one.step_if_finite = lambda loss: (True, [0.0])  # pyright: ignore
        update(one, random_batch())
        found.append([p.grad for p in one.parameters() if p.grad is not None])
    assert {g.dtype for g in found[1]} == {torch.bfloat16}
    assert all(torch.equal(a.bfloat16(), b) for a, b in zip(*found, strict=True))
    plain = build_optimizer(resolve(RunConfig(learning_rate=1e-2), "cpu"), Policy.of(exact.policy.model), None)
    for parameter, gradient in zip(exact.parameters(), found[1], strict=True):
        parameter.grad = gradient.float()
    plain.step()
    rounded.optimizer.step()
    rounded.optimizer.zero_grad()
    assert all(torch.equal(a, b) for a, b in zip(exact.parameters(), rounded.parameters(), strict=True))
    assert all(p.dtype == torch.float32 and p.grad is None for p in rounded.parameters())


def test_the_length_of_gradients_in_16_bits_is_taken_in_float32(runtime: Runtime) -> None:
    """3,000 ones and 1: sqrt(3001) has no neighbour within 0.2 in bfloat16."""
    parameters = [torch.nn.Parameter(torch.zeros(n)) for n in (3000, 1)]
    for parameter in parameters:
        parameter.grad_dtype = torch.bfloat16  # pyright: ignore
        parameter.grad = torch.ones_like(parameter, dtype=torch.bfloat16)
    assert runtime.clip_grad_norm(parameters, 1.0) == pytest.approx(3001**0.5, rel=1e-6)
    clipped = torch.cat([p.grad for p in parameters if p.grad is not None])
    assert clipped.float().norm().item() == pytest.approx(1.0, rel=2**-8)  # one rounding of each number


@needs_8bit
@pytest.mark.parametrize(
    "asked", [{}, {"algorithm": "ppo"}, {"algorithm": "ppo-separate"}, {"lora_rank": 4, "lora_alpha": 8.0}]
)
def test_moments_in_8_bits_take_nearly_the_same_step(asked: dict[str, Any], runtime: Runtime) -> None:
    """Within a tenth of its length, on the way to which all weights but the smallest are in 8 bits; groups and options as AdamW's."""
    start = trained(learner(runtime, **asked), 0)
    one, other = (
        learner(runtime, weight_decay=0.1, adam_beta2=0.95, optimizer=o, **asked) for o in ("adamw", "adamw-8bit")
    )
    for a, b in zip(one.optimizer.param_groups, other.optimizer.param_groups, strict=True):
        assert {k: b.get(k) for k in ("lr", "betas", "weight_decay", "relative_rate")} == {
            k: a.get(k) for k in ("lr", "betas", "weight_decay", "relative_rate")
        }
    exact, rounded = trained(one), trained(other)
    moved = sum((exact[n] - start[n]).square().sum() for n in start) ** 0.5
    off = sum((rounded[n] - exact[n]).square().sum() for n in start) ** 0.5
    assert off < 0.1 * moved


@needs_8bit
def test_large_tensors_have_8_bits(runtime: Runtime) -> None:
    """Two bytes and a scale for 256 numbers each; those of less than 4,096 numbers stay in float32, as published."""
    weight = torch.nn.Parameter(torch.ones(64, 64))
    policy = SimpleNamespace(trainable_parameters=lambda: [weight], value_head=None)
    optimizer = build_optimizer(resolve(RunConfig(optimizer="adamw-8bit"), "cpu"), policy, None)  # pyright: ignore
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    state = optimizer.state[weight]
    assert state["state1"].dtype == state["state2"].dtype == torch.uint8 and state["absmax1"].numel() == 64 * 64 / 256


@pytest.mark.parametrize(
    "asked",
    [
        pytest.param({"optimizer": "adamw-8bit"}, marks=needs_8bit),
        {"gradient_dtype": "bfloat16", "offload": "all"},
        pytest.param(
            {"optimizer": "adamw-8bit", "gradient_dtype": "bfloat16", "offload": "optimizer"}, marks=needs_8bit
        ),
    ],
    ids=["8 bits", "16 bits and away", "8 bits, 16 bits and away"],
)
def test_a_resumed_run_ends_where_the_whole_one_does(
    asked: dict[str, Any], model: Path, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MathVerifier, "verify_batch", odd_lengths)
    asked = {**asked, "save_every": 2, "algorithm": "ppo-separate"}
    whole = train(options(model, digits, tmp_path / "whole", **asked))
    parted = train(options(model, digits, tmp_path / "parted", num_steps=2, **asked))
    train(options(model, digits, parted, resume=True, **asked))
    ours, theirs = final_weights(parted, 3), final_weights(whole, 3)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("asked", [{}, {"gradient_dtype": "bfloat16", "offload": "optimizer"}], ids=["torch", "away"])
def test_a_resumed_run_has_its_moments_back_and_its_own_options(
    asked: dict[str, Any], runtime: Runtime, tmp_path: Path
) -> None:
    """Those of the optimizer that a resume may change."""
    changed: dict[str, Any] = {"value_learning_rate": 3e-2, "adam_beta2": 0.9, "weight_decay": 0.1}
    before = learner(runtime, algorithm="ppo-separate", **asked)
    after = learner(runtime, algorithm="ppo-separate", **asked, **changed)
    trained(before)
    stream, folder = ProblemStream.of([], 0), tmp_path / "checkpoints" / "step-000003"
    save_checkpoint(folder, step=3, learner=before, stream=stream, tokenizer=tiny_tokenizer(), keep=1)
    load_checkpoint(folder, after, stream)
    after.set_learning_rate(1e-2)
    ours, theirs = after.optimizer.param_groups, before.optimizer.param_groups
    assert [group["lr"] for group in ours] == pytest.approx([1e-2, 3e-2])
    assert [(group["betas"], group["weight_decay"]) for group in ours] == [((0.9, 0.9), 0.1)] * 2
    moments = [of.optimizer.state_dict()["state"] for of in (after, before)]
    assert len(moments[0]) == sum(len(group["params"]) for group in theirs)
    assert all(torch.equal(moments[0][i][name], x) for i, state in moments[1].items() for name, x in state.items())


def test_a_refreshed_reference_that_waits_elsewhere_is_saved_and_loaded(runtime: Runtime, tmp_path: Path) -> None:
    stream = ProblemStream.of([Problem(id="a", prompt="1+1=", reference="2")], 0)
    folder = tmp_path / "checkpoints" / "step-000020"
    saved, restored = (learner(runtime, algorithm="grpo-iterative", offload="all") for _ in range(2))
    trained(saved, 1)
    saved.refresh_reference(20)
    trained(saved, 1)
    save_checkpoint(folder, step=20, learner=saved, stream=stream, tokenizer=tiny_tokenizer(), keep=1)
    load_checkpoint(folder, restored, stream)
    assert saved.reference is not None and restored.reference is not None
    for a, b in ((saved.policy, restored.policy), (saved.reference, restored.reference)):
        assert all(torch.equal(x, y) for x, y in zip(a.model.parameters(), b.model.parameters(), strict=True))
    assert isinstance(restored.optimizer, StreamedOptimizer)
    ours, theirs = trained(saved, 1), trained(restored, 1)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"optimizer": "adamw-8bit"}, "optimizer is 'adamw-8bit': .* FSDP2 shards over the processes"),
        ({"gradient_dtype": "bfloat16"}, "gradient_dtype is 'bfloat16': .* FSDP2 shards"),
        ({"offload": "optimizer"}, "offload is 'optimizer': .* FSDP2 shards .* --fsdp_offload_params true"),
    ],
)
def test_with_sharded_weights_they_are_refused(asked: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        require_shardable(resolve(RunConfig(**asked), "cpu"))


def test_what_is_missing_is_named(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rl.run.build_learner.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"optimizer is 'adamw-8bit': it needs bitsandbytes, .*plumbline-rl\[8bit\]"):
        learner(runtime, optimizer="adamw-8bit")
    with pytest.raises(UserError, match="offload is 'all': with lora_rank there is no reference beside"):
        RunConfig(lora_rank=4, offload="all")
