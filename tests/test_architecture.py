"""The house: imports go only to the right, and each heavy dependency has one door."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("plumbline", "rl", "rollout", "rewards")  # each may import itself and what stands to its right
DOORS = {
    "accelerate": "rl/processes/runtime.py rl/command/launch.py",
    "peft": "rl/policy/lora.py rl/policy/merge.py",
    "triton": "rl/forward/triton_kernels.py",
    "vllm": "rollout/vllm_sampler.py rollout/vllm_nccl.py",
    "math_verify": "rewards/mathematics/symbolic.py",
    "reasoning_gym": "rewards/reasoning_gym_tasks.py",
    "datasketch": "rollout/corpus/near_duplicates.py",
    "resiliparse": "rollout/corpus/archives.py",
    "sklearn": "rollout/corpus/page_classifier.py",
    "warcio": "rollout/corpus/archives.py",
    "trl": "(tests and benchmarks only)",
}
# Which packages of rl each may import; every one may import itself.
MAY_IMPORT = {
    "objective": "",
    "forward": "objective",
    "settings": "objective forward",
    "processes": "forward settings",
    "policy": "objective forward settings processes",
    "capacity": "objective forward settings policy",
    "update": "objective forward processes policy capacity",
    "view": "",
    "run": "objective forward settings processes policy capacity update view",
    "command": "objective forward settings processes policy capacity update view run",
    "pipeline": "objective forward settings processes policy capacity update view run command",
}
STANDARD_LIBRARY = set(sys.stdlib_module_names)


def modules() -> list[Path]:
    return [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]


def imported_modules(path: Path) -> set[str]:
    """Full names of the modules that the file imports, wherever in the file."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names if node.module == "rl")}
    return names


def imported(path: Path) -> set[str]:
    """Top-level names of everything the file imports."""
    return {name.split(".")[0] for name in imported_modules(path)}


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_only_to_the_right(path: Path) -> None:
    room = path.relative_to(ROOT).parts[0]
    to_the_left = {"recipes", "benchmarks", "tests", *ROOMS[: ROOMS.index(room)]}
    assert not imported(path) & to_the_left


def test_the_packages_of_rl_import_one_way() -> None:
    order = list(MAY_IMPORT)
    assert all(
        order.index(other) < order.index(name) for name, others in MAY_IMPORT.items() for other in others.split()
    )
    assert set(MAY_IMPORT) == {path.parent.name for path in (ROOT / "rl").glob("*/__init__.py")}


@pytest.mark.parametrize("path", sorted((ROOT / "rl").glob("*/*.py")), ids=lambda p: f"{p.parent.name}/{p.name}")
def test_a_package_of_rl_imports_what_its_row_of_the_table_says(path: Path) -> None:
    package = path.parent.name
    found = {module.split(".")[1] for module in imported_modules(path) if module.startswith("rl.")}
    assert found <= {package, *MAY_IMPORT[package].split()}


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_a_package_of_rl_has_at_most_about_twelve_files_and_says_what_it_holds(package: str) -> None:
    files = list((ROOT / "rl" / package).glob("*.py"))
    assert len(files) <= 13  # twelve and __init__
    docstring = ast.get_docstring(ast.parse((ROOT / "rl" / package / "__init__.py").read_text(encoding="utf-8")))
    assert docstring and "mports" in docstring


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
