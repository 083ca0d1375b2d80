"""What every result file says of where it came from."""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from rl.processes.runtime import cpu_cores

RESULTS = Path("benchmarks/results")
MEASURED = ("rl", "rollout", "rewards", "recipes", "pyproject.toml", "benchmarks/*.py")
MEASURED += tuple(f":!benchmarks/{name}.py" for name in ("machine", "everything", "page"))  # which measure nothing


def describe_machine() -> dict[str, Any]:
    return {
        "commit": head_commit(),
        "date": date.today().isoformat(),
        "hardware": {
            "cpu": _cpu_name(),
            "cores": cpu_cores(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        },
        "versions": {name: version(name) for name in ("torch", "transformers", "accelerate")},
    }


def head_commit() -> str:
    """With "+edits" where the code is not as it was committed."""
    commit = _git("rev-parse", "--short", "HEAD")
    return "unknown" if commit is None else commit + ("" if is_code_of("HEAD") else "+edits")


def is_code_of(commit: str) -> bool:
    """Whether the code here is that of the commit, whatever else has changed since."""
    return _git("diff", "--quiet", commit, "--", *MEASURED) is not None


def _git(*arguments: str) -> str | None:
    """What it prints; None where it fails, as without a repository, or is not there."""
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def spread(ratios: list[float]) -> dict[str, float]:
    """The ratio of each round's pair: median, least, most."""
    found = {"ratio_median": statistics.median(ratios), "ratio_min": min(ratios), "ratio_max": max(ratios)}
    print("ratio {ratio_median:.2f} (from {ratio_min:.2f} to {ratio_max:.2f})".format(**found))
    return found


def write_result(name: str, question: str, result: dict[str, Any]) -> None:
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"question": question.split("\n")[0], **result}, indent=2) + "\n")
    print(f"written to {path}")
