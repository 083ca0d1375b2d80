"""Layers in bfloat16 are put together in 16 bits, the next one ahead of its use, and compute what they would from all 32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.utils._python_dispatch import TorchDispatchMode

from rl.processes.runtime import Runtime
from rl.processes.sharding import full_tensor, shard
from tests.rl.test_processes import be, run_two
from tests.rollout.families import model_of


class BytesPutTogether(TorchDispatchMode):
    num_bytes = num_calls = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ == "_allgather_base_":
            self.num_bytes += args[0].nbytes
            self.num_calls += 1
        return func(*args, **(kwargs or {}))


def forward_and_backward(rank: int, port: int, folder: Path) -> None:
    be(rank, port)
    runtime, found, text = Runtime.start(dtype="bfloat16", device="cpu"), {}, torch.arange(12)[None] + rank
    mesh = init_device_mesh("cpu", (2,))
    for in_16_bits in (False, True):
        model = model_of("qwen2", {"hidden_size": 64, "intermediate_size": 96}, 0)
        root = shard(model, mesh, trains=True, in_16_bits=in_16_bits)
        early: list[int] = []
        with BytesPutTogether() as count:
            of_first = model.model.layers[0].register_forward_hook(lambda *_, c=count, e=early: e.append(c.num_calls))
            with runtime.autocast():
                loss = root(lambda m=model: m(input_ids=text, labels=text).loss)
            of_first.remove()
            loss.backward()
        gradients = {name: full_tensor(p.grad) for name, p in model.named_parameters() if p.grad is not None}
        linear = sum(p.numel() for name, p in model.named_parameters() if "_proj." in name)
        found[in_16_bits] = (gradients, count.num_bytes, linear, early)
    torch.save(found, folder / f"{rank}")
    runtime.close()


def test_linear_layers_are_put_together_in_16_bits_and_give_the_same_gradients(tmp_path: Path) -> None:
    """Bit for bit: autocast rounds these weights anyway, norms and embeddings stay in float32. Two bytes less for each of their
    numbers, once for the forward and once for the backward."""
    run_two(forward_and_backward, tmp_path)
    found = torch.load(tmp_path / "0")
    (exact, in_32, linear, early_32), (rounded, in_16, _, early_16) = found[False], found[True]
    assert exact.keys() == rounded.keys() and all(torch.equal(exact[name], rounded[name]) for name in exact)
    assert in_32 - in_16 == 2 * 2 * linear
    # As the first layer ends, what is outside of the layers has come, the layer itself, and the next one: a part or two of each.
    assert (early_32, early_16) == ([1 + 1 + 1], [1 + 2 + 2])
