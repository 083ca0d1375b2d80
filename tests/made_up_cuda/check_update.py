"""Counts of an update at the shape of Qwen2.5-1.5B, by part: what tests/made_up_cuda/test_update.py asks of them."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

from tests.made_up_cuda.device import CUDA, without_contents  # isort: skip  (before torch)

import torch
from transformers import AutoModelForCausalLM

from rl.command.plan import load_config
from rl.forward.choose_forward import ForwardChoice, fuse
from rl.forward.forward import Forward, in_fused, varlen_forward
from rl.forward.layouts import packed_tokens
from rl.forward.micro_batch import MicroBatch, TrainGroup, TrainSequence
from rl.objective.algorithms import ALGORITHMS
from rl.objective.reductions import StepCounts
from rl.policy.families import CAUSAL
from rl.policy.lora import LoraPolicy, add_adapters
from rl.policy.policy import Policy
from rl.processes.runtime import Runtime, prepare_device
from rl.update.batch import Batch
from rl.update.learner import Learner
from rl.update.loss import reference_targets
from rl.update.update import update
from tests.made_up_cuda.count import Count

TOKEN_BUDGET = 8192


def batch(num_groups: int) -> Batch:
    """Prompts of 100 to 512 tokens, completions of 450 on average and at most 1,024, 8 of each: lengths as in training."""
    rng = random.Random(0)

    def group() -> TrainGroup:
        lengths = [min(1024, max(2, int(rng.expovariate(1 / 450)))) for _ in range(8)]
        return TrainGroup((0,) * rng.randint(100, 512), tuple(TrainSequence.to_score([0] * n) for n in lengths))

    return Batch(
        tuple(group() for _ in range(num_groups)), StepCounts(num_tokens=1, num_sequences=1, num_groups=1, max_tokens=1)
    )


def make_learner(layers: int, *, lora: bool, checkpointed: bool = False, forward: Forward = varlen_forward) -> Learner:
    config = load_config("qwen2.5-1.5b")
    config.num_hidden_layers, config.layer_types = layers, config.layer_types[:layers]
    runtime, algorithm = replace(Runtime.start(dtype="bfloat16", device="cpu"), device=CUDA), ALGORITHMS["grpo"]
    with torch.device(CUDA):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    options: dict[str, Any] = {
        "autocast": runtime.autocast,
        "gradient_checkpointing": checkpointed,
        "family": replace(CAUSAL, choose_forward=lambda *_: ForwardChoice(forward)),
    }
    if lora:
        adapted = add_adapters(model, rank=16, alpha=16.0, targets=("all-linear",), seed=0)
        policy: Policy = LoraPolicy.of(adapted, **options)
    else:
        policy = Policy.of(model, **options)
    return Learner(
        policy=policy,
        reference=policy.frozen_copy(),
        optimizer=torch.optim.AdamW(policy.trainable_parameters(), lr=1e-6, fused=True),
        runtime=runtime,
        algorithm=algorithm,
        temperature=1.0,
        token_budget=TOKEN_BUDGET,
        max_grad_norm=1.0,
    )


def counted(run: Callable[[], Any]) -> Count:
    with Count() as count:
        run()
    return count


def of_passes(layers: int, micro: MicroBatch, **options: Any) -> dict[str, Count]:
    """The trunk's forward and backward."""
    policy = make_learner(layers, **options).policy

    def forward() -> None:
        nonlocal states
        with policy.autocast():
            states = policy.hidden_states(micro)

    states = torch.empty(0)
    first = counted(forward)
    return {"forward": first, "backward": counted(lambda: states.backward(torch.empty_like(states)))}


def of_a_layer(micro: MicroBatch, **options: Any) -> dict[str, dict[str, float]]:
    """What two layers take more than one."""
    few, many = (of_passes(layers, micro, **options) for layers in (1, 2))
    return {
        part: {kind: (many[part].totals()[kind] - few[part].totals()[kind]) for kind in ("launches", "bytes", "flops")}
        for part in few
    }


def of_the_head(micro: MicroBatch, *, lora: bool) -> dict[str, float]:
    """Bytes a scored token that an output layer moves."""
    of = make_learner(1, lora=lora)
    states = torch.zeros(len(micro.targets), 1536, device=CUDA, requires_grad=True)
    assert of.reference is not None
    known = ForwardChoice(replace(varlen_forward, states=lambda model, row: states))
    of.policy, of.reference = (replace(policy, choice=known) for policy in (of.policy, of.reference))
    found = {
        "train": counted(lambda: update_part(of, micro)),
        "reference": counted(lambda: reference_targets(of, [micro])),
    }
    return {name: count.totals()["bytes"] / len(micro.targets) for name, count in found.items()}


def update_part(of: Learner, micro: MicroBatch) -> None:
    def loss_of(scores: Any, part: slice) -> torch.Tensor:
        return (micro.weights[part] * scores.logprobs).sum()

    states, head = of.policy.hidden_states(micro), of.policy.head
    with of.policy.autocast():
        loss, _ = head.loss(states, micro.targets, 1.0, loss_of, token_level=True)
    loss.backward()


def of_an_update(*, lora: bool, checkpointed: bool) -> dict[str, Any]:
    """Host reads and copies, by what asked for them, and casts of weights, of one layer."""
    of, whole = make_learner(1, lora=lora, checkpointed=checkpointed), batch(6)
    count = counted(lambda: update(of, whole))
    casts = {k: n for k, n in count.launches.items() if k.startswith("_to_copy")}
    return {
        "micro-batches": len(list(whole.micro_batches(TOKEN_BUDGET))),
        "reads": dict(count.reads),
        "copies": dict(count.copies),
        "casts": casts,
        **{k: count.totals()[k] for k in ("launches", "bytes", "flops")},
    }


def path() -> str:
    """How a policy says that it will score on a GPU."""
    policy = make_learner(1, lora=False).policy
    with policy.autocast():
        return str(fuse(ForwardChoice(varlen_forward), policy.model))


def main() -> None:
    prepare_device(CUDA, "bfloat16")
    with without_contents():
        micro = max(batch(6).micro_batches(TOKEN_BUDGET), key=lambda m: packed_tokens(m.groups)).to(CUDA)
        found: dict[str, Any] = {"tokens": packed_tokens(micro.groups), "scored": len(micro.targets)}
        for kind in ("full", "lora"):
            lora = kind == "lora"
            if find_spec("triton"):
                found[f"{kind}, fused"] = of_a_layer(micro, lora=lora, forward=in_fused(varlen_forward))
            found[kind] = {
                **of_a_layer(micro, lora=lora),
                "update": of_an_update(lora=lora, checkpointed=False),
                "checkpointed": of_an_update(lora=lora, checkpointed=True),
                "head": of_the_head(micro, lora=lora),
            }
        found["path"] = path()
        found["cudnn"] = torch.backends.cuda.cudnn_sdp_enabled()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
