"""What a run must hand from one part to another: left out anywhere, every part's own tests would still pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import rl.update.step
import rollout.steps
from rewards.math_answer import MathVerifier
from rl.policy.load import load_pretrained
from rl.processes.runtime import Runtime
from rl.run.checkpoint import load_checkpoint, save_checkpoint
from rl.run.loop import train
from rl.run.tiny import tiny_tokenizer
from rl.update.delivery import Delivery
from rl.update.prefetch import Prefetcher
from rollout.problem_stream import ProblemStream
from rollout.records import Problem
from rollout.torch_sampler import TorchSampler
from tests.rl.families import of_family
from tests.rl.test_casts import make_learner
from tests.rl.test_loop import odd_lengths, options


@pytest.mark.parametrize(("algorithm", "scored"), [("grpo-process", True), ("grpo", False)])
def test_the_steps_of_completions_are_scored_where_the_algorithm_reads_them(
    algorithm: str, scored: bool, model: Path, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    score, calls = rollout.steps.score_steps, []

    def counted(*of_completion: Any, **options: Any) -> Any:
        calls.append(1)
        return score(*of_completion, **options)

    monkeypatch.setattr(rollout.steps, "score_steps", counted)
    train(options(model, digits, tmp_path / "run", algorithm=algorithm, num_steps=1))
    assert bool(calls) == scored


@pytest.mark.parametrize(("one_step_ahead", "expected"), [(False, ["sleep", "update"] * 2), (True, ["update"] * 2)])
def test_the_engine_gives_its_memory_back_before_an_update_unless_it_samples_meanwhile(
    one_step_ahead: bool,
    expected: list[str],
    model: Path,
    digits: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sleep, update, events = TorchSampler.sleep, rl.update.step.update, list[str]()

    def noted(name: str, call: Any) -> Any:
        return lambda *args, **options: (events.append(name), call(*args, **options))[1]

    monkeypatch.setattr(MathVerifier, "verify_batch", odd_lengths)  # an untaught model is never right
    monkeypatch.setattr(TorchSampler, "sleep", noted("sleep", sleep))
    monkeypatch.setattr(rl.update.step, "update", noted("update", update))
    train(options(model, digits, tmp_path / "run", one_step_ahead=one_step_ahead, num_steps=2))
    assert events == expected


def test_a_resumed_run_knows_how_many_updates_in_a_row_were_skipped(tmp_path: Path) -> None:
    """Else a run that diverges and is restarted again and again would never be stopped."""
    stream, runtime = (
        ProblemStream.of([Problem(id="a", prompt="1+1=", reference="2")], 0),
        Runtime.start(dtype="float32", device="cpu"),
    )
    saved, restored = make_learner(runtime, "grpo"), make_learner(runtime, "grpo")
    saved.skipped_in_a_row = 2
    folder = tmp_path / "checkpoints" / "step-000001"
    save_checkpoint(folder, step=1, learner=saved, stream=stream, tokenizer=tiny_tokenizer(), keep=1)
    load_checkpoint(folder, restored, stream)
    assert restored.skipped_in_a_row == 2


def test_gemma_2_is_loaded_with_its_cap_on_attention_scores(tmp_path: Path) -> None:
    """scaled_dot_product_attention, the default of transformers, leaves it out without a word."""
    expected = of_family("Gemma 2")
    expected.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    found, _ = load_pretrained(tmp_path, torch.device("cpu"))
    tokens = torch.arange(1, 12)[None]
    with torch.no_grad():
        ours, theirs = (m.eval()(tokens, use_cache=False).logits for m in (found, expected))
        expected.set_attn_implementation("sdpa")
        uncapped = expected(tokens, use_cache=False).logits
    assert torch.equal(ours, theirs)
    assert (uncapped - theirs).abs().max() > 0.1


def test_a_critic_is_warmed_up_for_as_many_steps_as_were_asked_for(
    model: Path, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    update, moved = rl.update.step.update, list[bool]()

    def noted(learner: Any, *batches: Any, **options: Any) -> Any:
        before = [p.detach().clone() for p in learner.policy.trainable_parameters()]
        metrics = update(learner, *batches, **options)
        after = learner.policy.trainable_parameters()
        moved.append(any(not torch.equal(a, b) for a, b in zip(after, before, strict=True)))
        return metrics

    monkeypatch.setattr(MathVerifier, "verify_batch", odd_lengths)
    monkeypatch.setattr(rl.update.step, "update", noted)
    train(options(model, digits, tmp_path / "run", algorithm="ppo-separate", critic_warmup_steps=2, num_steps=3))
    assert moved == [False, False, True]


def test_weights_are_delivered_when_nothing_is_sampled_meanwhile(
    model: Path, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One step ahead: half of a step's completions would be of the old weights and half of the new."""
    events = list[str]()

    def noted(name: str, call: Any) -> Any:
        return lambda *args, **options: (events.append(name), call(*args, **options))[1]

    monkeypatch.setattr(MathVerifier, "verify_batch", odd_lengths)
    monkeypatch.setattr(rl.update.step, "update", noted("update", rl.update.step.update))
    monkeypatch.setattr(Prefetcher, "wait", noted("wait", Prefetcher.wait))
    monkeypatch.setattr(Delivery, "deliver", noted("deliver", Delivery.deliver))
    train(options(model, digits, tmp_path / "run", one_step_ahead=True, num_steps=2))
    after = [events[i + 1 : i + 3] for i, event in enumerate(events) if event == "update"]
    assert after == [["wait", "deliver"]] * 2
