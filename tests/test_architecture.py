"""The house: imports go only to the right, and each heavy dependency has one door."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("rl", "rollout", "rewards")  # each may import itself and what stands to its right
DOORS = {
    "accelerate": "rl/runtime.py rl/launch.py",
    "peft": "rl/lora.py rl/merge.py",
    "triton": "rl/kernels.py",
    "vllm": "rollout/vllm_sampler.py rollout/vllm_nccl.py",
    "math_verify": "rewards/mathematics/symbolic.py",
    "reasoning_gym": "rewards/reasoning_gym_tasks.py",
    "trl": "(tests and benchmarks only)",
}
STANDARD_LIBRARY = set(sys.stdlib_module_names)


def modules() -> list[Path]:
    return [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]


def imported(path: Path) -> set[str]:
    """Top-level names of everything the file imports, wherever in the file."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add((node.module or "").split(".")[0])
    return names


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_only_to_the_right(path: Path) -> None:
    room = path.relative_to(ROOT).parts[0]
    to_the_left = {"recipes", "benchmarks", "tests", *ROOMS[: ROOMS.index(room)]}
    assert not imported(path) & to_the_left


@pytest.mark.parametrize(("package", "door"), DOORS.items())
def test_a_heavy_dependency_is_imported_by_its_doors_alone(package: str, door: str) -> None:
    importers = {str(path.relative_to(ROOT)) for path in modules() if package in imported(path)}
    assert importers <= set(door.split())


def test_no_module_has_the_name_of_one_in_the_standard_library() -> None:
    assert {path.stem for path in modules()} & STANDARD_LIBRARY <= {"__init__"}


def test_rewards_does_without_torch() -> None:
    """Verifier workers start in a tenth of a second and fit in little memory."""
    code = "import sys, rewards.math_answer, rewards.pool; print('torch' in sys.modules, 'sympy' in sys.modules)"
    seen = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert seen.stdout.split() == ["False", "False"]
