from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rewards.math_answer import MathVerifier

SHARED = Path(__file__).resolve().parents[2].parent / "shared"


@pytest.fixture(scope="session")
def verifier() -> Iterator[MathVerifier]:
    with MathVerifier() as made:
        yield made


@pytest.fixture(scope="session")
def shared_file() -> Callable[[str], Path]:
    """The path of a file beside the repository; skips, with the reason, where it is not there."""

    def find(name: str) -> Path:
        path = SHARED / name
        if not path.exists():
            pytest.skip(f"{name} is not in the folder 'shared' beside the repository")
        return path

    return find
