"""Shapes in signatures are checked while tests run, and only then (jaxtyping and beartype)."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

install_import_hook(
    ["rl.objective.advantages", "rl.objective.losses", "rl.update.batch", "rl.forward.forward"], "beartype.beartype"
)


def pytest_configure() -> None:
    """Each of several processes has cores of its own: on each other's, threads that wait for one another make both as slow as one."""
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    if worker and hasattr(os, "sched_setaffinity"):
        number, count = int(worker.removeprefix("gw")), int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, cores[number::count] or cores)


LONGEST = (
    "tests/vllm/test_server.py",
    "tests/rl/test_processes.py",
    "tests/rl/test_checkpoint.py",
    "tests/rewards/test_program.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, so that no process ends with one while the others wait."""
    items.sort(key=lambda item: not item.nodeid.startswith(LONGEST))


SHARED = Path(__file__).resolve().parents[1].parent / "shared"


@pytest.fixture(scope="session")
def shared_file() -> Callable[[str], Path]:
    """The path of a file beside the repository; skips, with the reason, where it is not there."""

    def find(name: str) -> Path:
        path = SHARED / name
        if not path.exists():
            pytest.skip(f"{name} is not in the folder 'shared' beside the repository")
        return path

    return find
