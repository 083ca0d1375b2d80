"""The tensors here are tiny: a second thread costs more than it brings."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

import pytest
import torch

if find_spec("trl") is not None:
    from trl import import_utils

    # Where vLLM is installed TRL would load it, and warn of a version that it does not know.
    import_utils.is_vllm_available = lambda *_, **__: False


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
