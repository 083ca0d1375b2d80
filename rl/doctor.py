"""What this machine offers to a run, and the reason for what it does not."""

from __future__ import annotations

import platform
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version

import torch

from rewards.proof import available_provers
from rewards.sandbox.client import SandboxError
from rewards.sandbox.isolation import FLOOR, measure
from rl.runtime import cpu_cores

_OPTIONAL = {
    "vllm": "the embedded engine samples instead",
    "flash-attn": "attention by PyTorch's own kernels instead",
    "reasoning-gym": 'no --dataset reasoning-gym:...; pip install "plumbline-rl[reasoning-gym]"',
}


def examine() -> str:
    """One line for each thing, as text for a person."""
    lines = [
        (
            "machine",
            f"{platform.system()} {platform.machine()}, {cpu_cores()} cores, Python {platform.python_version()}",
        ),
        ("torch", version("torch")),
        ("gpu", torch.cuda.get_device_name() if torch.cuda.is_available() else "none: CPU only"),
        *((package, _installed(package, without)) for package, without in _OPTIONAL.items()),
        ("programs", _isolation()),
        *((f"proofs, {system}", found) for system, found in available_provers().items()),
    ]
    return "\n".join(f"{name:<17} {found}" for name, found in lines)


def _installed(package: str, without: str) -> str:
    for name in (package, f"{package}-cpu"):  # as vLLM's build for CPUs is called
        with suppress(PackageNotFoundError):
            return version(name)
    return f"not installed: {without}"


def _isolation() -> str:
    try:
        isolation = measure()
    except SandboxError as error:
        return f"cannot be run: {error}"
    verdict = (
        "safe to run" if isolation.rank >= FLOOR else f"refused unless allow_unsafe_code (level {FLOOR} is needed)"
    )
    return f"{verdict}: isolation {isolation.describe()}"
