"""What runs inside vLLM's workers, and what its two samplers share. Nothing of vllm is imported here."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor

from rollout.sampler import direction


class Extension:
    """Methods that a server's workers get (--worker-extension-cls)."""

    def images(self) -> dict[str, list[float]]:
        return {name: image.tolist() for name, image in images_of(self).items()}


@torch.no_grad()
def images_of(worker: Any) -> dict[str, Tensor]:
    """Through the engine's own products: on a CPU a linear layer keeps nothing but packed weights. Of what vLLM has joined
    (q, k and v, say) each part goes by its own name."""
    model, found = worker.model_runner.get_model(), {}
    joined: dict[str, list[str]] = getattr(model, "packed_modules_mapping", {})
    for name, module in model.named_modules(remove_duplicate=False):
        method = getattr(module, "quant_method", None)
        if method is None or not hasattr(module, "weight"):
            own = module.named_parameters(recurse=False)
            found |= {f"{name}.{kind}": p.detach().float().cpu() for kind, p in own if p.dim() == 1}
            continue
        width = module.input_size if hasattr(module, "input_size") else module.embedding_dim
        x = direction(width, module.weight.device)[None].to(module.weight.dtype)
        image = method.apply(module, x)[0].float().cpu()[: getattr(module, "org_vocab_size", None)]
        bias = getattr(module, "bias", None)
        above, _, last = name.rpartition(".")
        parts = joined.get(last, [last])
        sizes = module.output_partition_sizes if len(parts) > 1 else [len(image)]
        for kind, whole in (("weight", image), ("bias", bias)):
            if whole is not None:
                pieces = whole.detach().float().cpu().split(sizes)
                found |= {f"{above}.{part}.{kind}".lstrip("."): p for part, p in zip(parts, pieces, strict=True)}
    return found


def in_32_bits(seed: int) -> int:
    """vLLM seeds a generator of torch, which on a CPU takes no more of a seed: the rest would be thrown away."""
    return int.from_bytes(hashlib.blake2b(seed.to_bytes(8, "big"), digest_size=4).digest(), "big")
