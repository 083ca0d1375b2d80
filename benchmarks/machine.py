"""What every result file says of where it came from."""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from rl.runtime import cpu_cores


def describe_machine() -> dict[str, Any]:
    head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "commit": head.stdout.strip(),
        "hardware": {
            "cpu": _cpu_name(),
            "cores": cpu_cores(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        },
        "versions": {name: version(name) for name in ("torch", "transformers", "accelerate")},
    }


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
    path = Path("benchmarks/results") / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"question": question.split("\n")[0], **result}, indent=2) + "\n")
    print(f"written to {path}")


def write_table(name: str, table: str, page: str = "docs/results.md") -> None:
    """Into a page, between the marks of that name."""
    path, begin, end = Path(page), f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->"
    before, _, rest = path.read_text(encoding="utf-8").partition(begin)
    _, _, after = rest.partition(end)
    if not rest:
        raise SystemExit(f"{path} has no mark {begin}: it is gone from the section of the table")
    path.write_text(f"{before}{begin}{table}\n{end}{after}", encoding="utf-8")
