"""`plumbline doctor`: hardware, engines and sandbox of this machine, reasons for what is missing, and a self-test of sampler and trainer."""

from __future__ import annotations

import platform
import shutil
import time
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil
import torch

from rewards.proof import available_provers
from rewards.sandbox.client import SandboxError
from rewards.sandbox.isolation import MIN_LEVEL, measure
from rl.forward import cpu_kernels
from rl.forward.micro_batch import MicroBatch, TrainGroup, TrainSequence
from rl.policy.families import family_of
from rl.policy.policy import Policy
from rl.processes.runtime import Runtime, cpu_cores
from rl.run.tiny import tiny_model, tiny_tokenizer
from rl.settings.defaults import resolved_dtype
from rl.settings.options import AnyDType
from rl.update.delivery import FLOAT32_TOLERANCE, arbitrary_texts
from rollout.engine import kernels
from rollout.sampler import SampleRequest, SamplingParams
from rollout.torch_sampler import TorchSampler

_NEEDED = ("torch", "transformers", "accelerate", "peft", "math-verify", "safetensors")
_OPTIONAL = {
    "vllm": "the embedded engine samples instead",
    "bitsandbytes": 'no --lora-base nf4 and no --optimizer adamw-8bit; pip install "plumbline-rl[qlora]"',
    "reasoning-gym": 'no --dataset reasoning-gym:...; pip install "plumbline-rl[reasoning-gym]"',
    "tensorboard": "no --trackers tensorboard",
    "wandb": "no --trackers wandb",
    "trackio": "no --trackers trackio",
    "swanlab": "no --trackers swanlab",
    "mlflow": "no --trackers mlflow",
}
_GIB = 1 << 30


def examine(model: str | None = None, dtype: AnyDType = "auto") -> str:
    """The report as text, one line per item. It takes some seconds, since it tries the sandbox and runs the self-test.

    model: also report how this machine runs this model in `dtype`, and why it does not use faster implementations.
    """
    lines = [
        (
            "machine",
            f"{platform.system()} {platform.machine()}, {cpu_cores()} cores, Python {platform.python_version()}",
        ),
        (
            "memory",
            f"{psutil.virtual_memory().available / _GIB:.1f} GiB free of {psutil.virtual_memory().total / _GIB:.1f}",
        ),
        ("disk, here", _disk(Path.cwd())),
        ("gpu", _gpus()),
        *((package, version(package)) for package in _NEEDED),
        *((package, _installed(package, without)) for package, without in _OPTIONAL.items()),
        ("compiled parts", _compiled()),
        ("programs", _isolation()),
        *((f"proofs, {system}", found) for system, found in available_provers().items()),
        ("self-test", self_test()),
        *(_paths(model, dtype).items() if model else ()),
    ]
    return "\n".join(f"{name:<17} {found}" for name, found in lines)


def self_test() -> str:
    """Compares the embedded engine's log-probs of its own samples with the trainer's, on the device that a run would use."""
    started = time.perf_counter()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = tiny_tokenizer()
    model = tiny_model(tokenizer, seed=0, device=device)
    requests = [SampleRequest(tuple(range(5, 9 + i)), tuple(range(8 * i, 8 * i + 8))) for i in range(16)]
    sampled = TorchSampler(model, tokenizer).sample(requests, SamplingParams(max_tokens=48, temperature=0.7))
    groups = [
        TrainGroup(
            request.prompt_ids, tuple(TrainSequence.to_score(c.token_ids, c.sampler_logprobs) for c in completions)
        )
        for request, completions in zip(requests, sampled, strict=True)
    ]
    micro = MicroBatch.of(groups).to(device)
    with torch.no_grad():
        trainer_logprobs = Policy.of(model).score(micro, temperature=0.7).logprobs
    difference = (trainer_logprobs - micro.sampler_logprobs).abs().max().item()
    text = f"sampler and trainer differ by {difference:.1e} nats at most, over {len(micro.targets):,} tokens"
    agrees, bound = difference < FLOAT32_TOLERANCE, f"{FLOAT32_TOLERANCE:g}"
    verdict = "agree" if agrees else f"DISAGREE (bound {bound}): no run on this machine can be trusted"
    return f"{verdict}: {text}, {time.perf_counter() - started:.1f} s"


def _paths(name: str, dtype: AnyDType) -> dict[str, str]:
    """How the update and the sampler run a model, and how much bfloat16 rounds its log-probs."""
    runtime = Runtime.start(dtype=resolved_dtype(dtype, name))
    family = family_of(name)
    model, tokenizer = family.load(name, runtime.device)
    policy = Policy.of(model, family=family, autocast=runtime.autocast)
    sampler = family.sampler(model, tokenizer, decode_dtype=getattr(torch, runtime.dtype), autocast=runtime.autocast)
    probe = MicroBatch.of(family.probe(arbitrary_texts(policy.vocab_size)))
    noise = policy.rounding_noise(probe.to(policy.device))
    return {
        f"{name}, update": f"{runtime.dtype}: {policy.choice}",
        f"{name}, sampling": sampler.path,
        f"{name}, rounding": f"bfloat16 changes the log-probs of arbitrary tokens by {noise:.2g} nats on average",
    }


def _compiled() -> str:
    missing = [part.WITHOUT for part in (kernels, cpu_kernels) if part.compiled is None]
    advice = "have a C++ compiler on the PATH and install Plumbline again"
    return f"not all built: {'; '.join([*missing, advice])}" if missing else "built"


def _gpus() -> str:
    if not torch.cuda.is_available():
        return "none: everything runs on the CPU, without --vllm-transfer nccl and --attention varlen"
    named = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return ", ".join(f"{gpu.name} ({gpu.total_memory / _GIB:.0f} GiB)" for gpu in named)


def _disk(folder: Path) -> str:
    return f"{shutil.disk_usage(folder).free / _GIB:.1f} GiB free"


def _installed(package: str, without: str) -> str:
    for name in (package, f"{package}-cpu"):  # the name of vLLM's build for CPUs
        with suppress(PackageNotFoundError):
            return version(name)
    return f"not installed: {without}"


def _isolation() -> str:
    try:
        isolation = measure()
    except SandboxError as error:
        return f"unavailable: {error}"
    verdict = (
        "safe to run"
        if isolation.rank >= MIN_LEVEL
        else f"refused unless allow_unsafe_code (level {MIN_LEVEL} is needed)"
    )
    return f"{verdict}: isolation {isolation.describe()}"
