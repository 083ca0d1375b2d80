"""What tests/made_up_cuda/test_sharding.py asks: an update of sharded weights on the made-up device, with and without CPU offload."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any, cast

from tests.made_up_cuda.device import CUDA, without_contents  # isort: skip  (before torch)

import torch
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers import AutoModelForCausalLM

from rl.command.dry_run import equal_batch
from rl.command.plan import load_config
from rl.processes.runtime import Runtime
from rl.processes.sharding import compute_device, full_tensor
from rl.run.build_learner import build_learner, build_optimizer
from rl.settings.config import RunConfig
from rl.settings.resolve import resolve
from rl.update.learner import Learner
from rl.update.update import own_micro_batches, update


def sharded_learner(mesh: DeviceMesh, *, offloads: bool) -> Learner:
    config = RunConfig(dtype="bfloat16", token_budget=300, gradient_checkpointing=False, attention="dense")
    settings = resolve(config, "cuda", shards=True)
    runtime = replace(Runtime.start(dtype="bfloat16", device="cpu"), device=CUDA, mesh=mesh, offloads=offloads)
    none: Any = None  # a tokenizer to compare with
    with torch.device(CUDA):
        model = AutoModelForCausalLM.from_config(load_config("tiny"), dtype=torch.float32)
    learner = build_learner(settings, model, none, runtime)
    learner.shard(lambda policy: build_optimizer(settings, policy, None))
    return learner


def kept(learner: Learner) -> dict[str, list[str]]:
    """The devices of what is there after a backward, which stands in for a whole update, and after two updates."""
    batch = equal_batch(4, 4, 24, 33)
    update(learner, batch)
    update(learner, batch)
    policy, reference = learner.policy.model, learner.reference
    assert reference is not None
    micro, *_ = own_micro_batches(learner, batch, 0)
    policy_loss = learner.policy.score(micro, 1.0).logprobs.sum()
    policy_loss.backward()
    parameters = list(policy.parameters())
    moments = [x for state in cast(Any, learner.optimizer).state.values() for x in state.values() if x.dim()]
    tensors = {
        "weights": parameters,
        "gradients": [p.grad for p in parameters],
        "moments": moments,
        "reference": list(reference.model.parameters()),
        "gathered": [full_tensor(p) for p in parameters],
        "micro-batch": [micro.targets],
    }
    return {name: sorted({x.device.type for x in some}) for name, some in tensors.items()} | {
        "computes on": [compute_device(policy).type]
    }


def main() -> None:
    made_up: Any = torch.cuda
    made_up.is_initialized = lambda: True
    for name in ("Stream", "stream", "current_stream", "Event"):  # of a CPU they do nothing
        setattr(made_up, name, getattr(torch.cpu, name))
    torch.distributed.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    mesh, found = init_device_mesh("cuda", (2,)), {}
    for offloads in (False, True):
        with without_contents():
            found["offloaded" if offloads else "sharded"] = kept(sharded_learner(mesh, offloads=offloads))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
