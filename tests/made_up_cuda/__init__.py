"""The CUDA path without a GPU: torch's CPU build with made-up CUDA devices, whose tensors have shapes and no contents.

`device` must be imported before torch, so what uses it runs in a process of its own: `run` starts one. A mix of devices
raises there as on a GPU; `count` counts launches, bytes, operations, and what the host reads.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++ to make the device up")


def run(module: str, *arguments: str, seconds: int = 300) -> Any:
    """What the module prints as JSON on its last line."""
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])
