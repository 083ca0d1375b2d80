from __future__ import annotations

from collections.abc import Iterator

import pytest

from rewards.math_answer import MathVerifier


@pytest.fixture(scope="session")
def verifier() -> Iterator[MathVerifier]:
    with MathVerifier() as made:
        yield made
