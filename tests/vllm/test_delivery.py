"""What is delivered to real vLLM is proved, and what is wrong is named."""

from __future__ import annotations

import multiprocessing
import re
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rewards.errors import UserError
from rl.policy.lora import LoraPolicy, add_adapters
from rl.policy.policy import Policy
from rl.update.delivery import Delivery, DeliveryError
from rollout.sampler import Sampler, SampleRequest, SamplingParams
from tests.rl.test_deliver import move
from tests.rollout.tiny import tokenizer
from tests.vllm.conftest import model_of, saved

Tensors = Iterable[tuple[str, Tensor]]


class Faulty:
    """The engine, but what it is sent from the second delivery on is changed on the way."""

    def __init__(self, sampler: Sampler, fault: Callable[[Sampler, Tensors], None]) -> None:
        self.sampler, self.fault, self.deliveries = sampler, fault, 0

    def __getattr__(self, name: str) -> object:
        return getattr(self.sampler, name)

    def update_weights(self, named_tensors: Tensors, version: int) -> None:
        self.deliveries += 1
        if self.deliveries > 1:
            self.fault(self.sampler, named_tensors)
        else:
            self.sampler.update_weights(named_tensors, version)


def lora_policy() -> LoraPolicy:
    return LoraPolicy.of(add_adapters(model_of(0), rank=4, alpha=8.0, targets=("all-linear",), seed=0))


@pytest.mark.parametrize("made", [lambda: Policy.of(model_of(0)), lora_policy])
def test_what_arrives_is_let_through(made: Callable[[], Policy], vllm: Sampler) -> None:
    """200 short steps; of a LoRA policy the base is the same bits afterwards."""
    policy = made()
    base = {n: t.detach().clone() for n, t in policy.named_tensors() if ".base_layer." in n}
    delivery = Delivery(policy, vllm, tolerance=1e-3)
    for version in range(200):
        assert delivery.deliver(version) < 1e-4
        move(policy, 1e-4, version)
    assert all(torch.equal(t, base[n]) for n, t in policy.named_tensors() if n in base)


@pytest.mark.parametrize(
    "damaged",
    [
        "model.layers.1.self_attn.k_proj.weight",
        "model.layers.0.self_attn.v_proj.bias",
        "model.layers.0.mlp.up_proj.weight",
        "model.layers.1.mlp.down_proj.weight",
        "model.layers.0.input_layernorm.weight",
        "model.norm.weight",
    ],
)
def test_a_damaged_tensor_is_named(damaged: str, vllm: Sampler) -> None:
    """One row of it is 0: also of a matrix that vLLM keeps packed and joined with others."""

    def fault(sampler: Sampler, tensors: Tensors) -> None:
        row = torch.arange(8)
        changed = ((n, t.detach().index_fill(0, row, 0.0) if n == damaged else t) for n, t in tensors)
        sampler.update_weights(changed, 1)

    policy = Policy.of(model_of(0))
    delivery = Delivery(policy, Faulty(vllm, fault), tolerance=1e-3)  # pyright: ignore
    delivery.deliver(0)
    with pytest.raises(DeliveryError, match=rf"Tensors that differ: {re.escape(damaged)}$"):
        delivery.deliver(1)


def test_an_output_head_that_stays_behind_is_named(vllm: Sampler, tmp_path: Path) -> None:
    """vLLM reports success on a saved model with tied embeddings, and goes on with the old head: the file has none."""

    def by_file(sampler: Sampler, tensors: Tensors) -> None:
        sampler.llm.collective_rpc(  # pyright: ignore
            "reload_weights", kwargs={"weights_path": str(saved(policy.model, tmp_path))}
        )
        sampler.llm.reset_prefix_cache()  # pyright: ignore

    policy = Policy.of(model_of(0))
    delivery = Delivery(policy, Faulty(vllm, by_file), tolerance=1e-3)  # pyright: ignore
    delivery.deliver(0)
    move(policy, 1e-2)
    with pytest.raises(DeliveryError, match=r"Tensors that differ: lm_head\.weight$"):
        delivery.deliver(1)


def test_late_weights_are_caught_however_short_the_step(vllm: Sampler) -> None:
    policy = Policy.of(model_of(0))
    delivery = Delivery(policy, Faulty(vllm, lambda sampler, tensors: None), tolerance=1e-3)  # pyright: ignore
    delivery.deliver(0)
    move(policy, 1e-5)
    with pytest.raises(DeliveryError, match="those of delivery 0: the weights arrive late"):
        delivery.deliver(1)


def in_a_process_of_its_own(test: Callable[[Path], None], folder: Path) -> None:
    """A second engine that ends takes vLLM's process groups with it, and these belong to the whole process."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        process.submit(test, folder).result()


def test_saved_models_and_adapters_open_in_vllm(tmp_path: Path) -> None:
    in_a_process_of_its_own(opens_saved, tmp_path)


def opens_saved(folder: Path) -> None:
    """What a run saves: the whole model, its merged adapters, and adapters on their base all say what the policy says."""
    from vllm import LLM, TokensPrompt  # pyright: ignore[reportMissingImports]
    from vllm import SamplingParams as EngineParams  # pyright: ignore[reportMissingImports]
    from vllm.lora.request import LoRARequest  # pyright: ignore[reportMissingImports]

    policy = lora_policy()
    move(policy, 0.05)
    base = saved(model_of(0), folder / "base")
    policy.save(folder / "adapters")
    text = [3, 4, 5, 6, 7, 8]
    expected = policy.model(torch.tensor([text])).logits.log_softmax(-1)[0]
    plain = model_of(0)(torch.tensor([text])).logits.log_softmax(-1)[0]
    engine = LLM(
        str(base),
        dtype="float32",
        enforce_eager=True,
        enable_lora=True,
        max_lora_rank=8,
        max_model_len=32,
        kv_cache_memory_bytes=1 << 24,
    )
    prompt, params = TokensPrompt(prompt_token_ids=text), EngineParams(max_tokens=1, prompt_logprobs=0)
    for adapters, wanted in ((None, plain), (LoRARequest("ours", 1, str(folder / "adapters")), expected)):
        (found,) = engine.generate(prompt, params, lora_request=adapters, use_tqdm=False)
        rows = [row[t].logprob for row, t in zip(found.prompt_logprobs[1:], text[1:], strict=True)]
        assert rows == pytest.approx([wanted[i, t].item() for i, t in enumerate(text[1:])], abs=1e-3)


def test_an_engine_without_room_for_keys_and_values_is_told(tmp_path: Path) -> None:
    in_a_process_of_its_own(tells_of_no_room, tmp_path)


def tells_of_no_room(folder: Path) -> None:
    from rollout.vllm_sampler import VLLMOptions, VLLMSampler

    saved(model_of(0), folder)
    options = VLLMOptions(dtype="float32", max_length=64, key_values=128, memory=1e-7)
    with pytest.raises(UserError, match=r"sampler is 'vllm': it did not start with .*memory=1e-07.*raise vllm_memory"):
        VLLMSampler(folder, tokenizer(), {1}, options)


def test_an_engine_that_rests_keeps_no_weights_and_decodes_with_the_next_delivered(
    vllm: Sampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU's sleep at level 2, on a CPU: weights are lost, and memory comes back for what is woken, keys and values last."""
    engine, done = vllm.llm, []  # pyright: ignore[reportAttributeAccessIssue]

    def forget(worker: Any) -> None:
        for parameter in worker.model_runner.get_model().parameters():
            parameter.data.fill_(torch.nan)

    def sleep(level: int) -> None:
        done.append(f"sleep {level}")
        engine.collective_rpc(forget)

    monkeypatch.setattr(vllm, "on_gpu", True)
    monkeypatch.setattr(engine, "sleep", sleep)
    monkeypatch.setattr(engine, "wake_up", done.extend)
    monkeypatch.setattr(
        engine, "collective_rpc", lambda f, *a, _call=engine.collective_rpc, **k: (done.append(f), _call(f, *a, **k))[1]
    )
    policy = Policy.of(model_of(0))
    delivery = Delivery(policy, vllm, tolerance=1e-3)
    delivery.deliver(0)
    vllm.sleep()
    with pytest.raises(RuntimeError, match="before new ones are delivered"):
        vllm.sample([SampleRequest((1, 2), (0,))], SamplingParams(max_tokens=1))
    assert done[-2:] == ["sleep 2", forget]
    done.clear()
    delivery.deliver(1)
    assert done[:3] == ["weights", "reload_weights", "kv_cache"]
    vllm.sample([SampleRequest((1, 2), (0,))], SamplingParams(max_tokens=1))
