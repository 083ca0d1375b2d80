"""Shapes in signatures are checked while tests run, and only then (jaxtyping and beartype)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

install_import_hook(["rl.advantages", "rl.losses", "rl.batch", "rl.forward"], "beartype.beartype")

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
