"""What tests/made_up_cuda/test_memory.py asks: an update on the made-up device with weights in 16 bits and parts in the host's memory."""

from __future__ import annotations

import json
from typing import Any, cast

from tests.made_up_cuda.device import CUDA, without_contents  # isort: skip  (before torch)

import torch
from transformers import AutoModelForCausalLM

import rl.policy.offload
from rl.command.dry_run import equal_batch
from rl.command.plan import load_config
from rl.policy.precision import round_frozen
from rl.processes.runtime import Runtime
from rl.run.build_learner import build_learner
from rl.settings.config import RunConfig
from rl.settings.resolve import resolve
from rl.update.step import update
from tests.made_up_cuda.count import Count

SETTINGS: dict[str, dict[str, Any]] = {
    "nothing away": {},
    "all, gradients in 16 bits": {"offload": "all", "gradient_dtype": "bfloat16"},
    "a critic": {"offload": "all", "algorithm": "ppo-separate"},
    "adapters": {"lora_rank": 4, "lora_alpha": 8.0, "offload": "optimizer"},
}


def updated(**options: Any) -> dict[str, Any]:
    """Where things are, and in what, after two updates of four micro-batches; copies of the second."""
    settings = {
        "dtype": "bfloat16",
        "token_budget": 300,
        "gradient_checkpointing": False,
        "attention": "dense",
        **options,
    }
    run = resolve(RunConfig(**settings), "cuda")
    runtime, none = Runtime.start(dtype="bfloat16", device="cpu"), cast(Any, None)
    one_layer = load_config("tiny")
    one_layer.num_hidden_layers, one_layer.layer_types = 1, ["full_attention"]
    with torch.device(CUDA):
        model = AutoModelForCausalLM.from_config(one_layer, dtype=torch.float32)
    if run.rounds_base("cuda"):
        round_frozen(model)
    learner = build_learner(run, model, none, runtime)
    batch = equal_batch(4, 4, 24, 33)
    update(learner, batch)
    moments = [x for state in learner.optimizer.state.values() for x in state.values() if x.numel() > 1024]  # pyright: ignore
    with Count() as count:
        update(learner, batch)
    reference = [] if learner.reference is None else list(learner.reference.model.parameters())
    weights = [p for n, p in learner.policy.model.named_parameters() if ".lora_" not in n and p.dim() > 1]
    return {
        "weights": kinds(weights),
        "trained": kinds(learner.parameters()),
        "moments": kinds(moments),
        "reference": kinds([p for p in reference if p.dim() > 1]),
        "number of moments": len(moments),
        "copies": dict(count.copies),
    }


def kinds(tensors: list[Any]) -> list[str]:
    return sorted({f"{str(t.dtype).removeprefix('torch.')} on {t.device.type}" for t in tensors})


def main() -> None:
    rl.policy.offload.pinned = lambda tensor: tensor  # nor memory to pin
    found = {}
    for name, options in SETTINGS.items():
        with without_contents():
            found[name] = updated(**options)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
