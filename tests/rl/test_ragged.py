"""Attention of a whole row in one call of a GPU's kernel, by stand-ins that take what these take and refuse what they refuse.

Autocast on a CPU gives tensors the types that it gives them on a GPU.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec
from itertools import pairwise
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from rewards.errors import UserError
from rl.forward.choose_forward import RAGGED, _difference_in_16_bits, choose_forward
from rl.forward.forward import Forward, flash_forward, packed_forward, plain_forward, varlen_forward
from rl.forward.layouts import PackedRow, packed_tokens
from rl.forward.packed_attention import fastest, flash_package
from rl.update.batch import Batch
from tests.rl.families import FAMILIES, TABLE, of_family
from tests.rl.models import make, random_batch

PACKED = [name for name in FAMILIES if f"| {name} | packed" in TABLE.read_text(encoding="utf-8")]


def attend(q: Tensor, k: Tensor, v: Tensor, q_from: Tensor, k_from: Tensor, max_q: int, max_k: int, scale, window):
    """What kernels take: 16 bits, and one type for all three."""
    if not (q.dtype == k.dtype == v.dtype == torch.bfloat16 and q.stride(-1) == k.stride(-1) == v.stride(-1) == 1):
        raise RuntimeError(
            f"FlashAttention only supports fp16 and bf16, and one of them: {q.dtype}, {k.dtype}, {v.dtype}"
        )
    return by_loop(q, k, v, q_from, k_from, max_q, max_k, scale, window)


def by_loop(q: Tensor, k: Tensor, v: Tensor, q_from: Tensor, k_from: Tensor, max_q: int, max_k: int, scale, window):
    """The last query of a piece sees its last key, and window[0] keys before each query's own."""
    assert q_from.dtype == k_from.dtype == torch.int32 and q_from[-1] == len(q) and k_from[-1] == len(k)
    outputs = []
    for (q0, q1), (k0, k1) in zip(pairwise(q_from.tolist()), pairwise(k_from.tolist()), strict=True):
        assert 0 < q1 - q0 <= max_q and 0 < k1 - k0 <= max_k
        ago = torch.arange(k1 - k0 - (q1 - q0), k1 - k0)[:, None] - torch.arange(k1 - k0)
        visible = (ago >= -window[1]) & ((window[0] < 0) | (ago <= window[0]))
        piece = (x.transpose(0, 1) for x in (q[q0:q1], k[k0:k1], v[k0:k1]))
        out = F.scaled_dot_product_attention(
            *piece, attn_mask=visible, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
        )
        outputs.append(out.transpose(0, 1))
    return torch.cat(outputs)


def torch_2_13(q, k, v, q_from, k_from, max_q, max_k, *, scale=None, window_size=(-1, -1), enable_gqa=False):
    assert enable_gqa == (q.shape[1] != k.shape[1])
    return attend(q, k, v, q_from, k_from, max_q, max_k, scale, window_size)


def torch_2_11(q, k, v, q_from, k_from, max_q, max_k, *, scale=None, window_size=(-1, -1)):
    assert q.shape[1] == k.shape[1]
    return attend(q, k, v, q_from, k_from, max_q, max_k, scale, window_size)


def flash_2(
    q, k, v, q_from, k_from, max_q, max_k, dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1)
):
    assert causal and dropout_p == 0  # causal puts 0 in place of window_size[1]
    return attend(q, k, v, q_from, k_from, max_q, max_k, softmax_scale, (window_size[0], 0))


def flash_3(
    q, k, v, q_from, k_from, max_q, max_k, seqused_q=None, softmax_scale=None, causal=False, window_size=(-1, -1)
):
    assert causal and seqused_q is None
    return attend(q, k, v, q_from, k_from, max_q, max_k, softmax_scale, (window_size[0], 0)), None


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """A package of that name that has the function."""

    def do(name: str, function: Callable[..., Any]) -> None:
        package: Any = ModuleType(name)
        package.__spec__ = ModuleSpec(name, None)
        package.flash_attn_varlen_func = function
        monkeypatch.setitem(sys.modules, name, package)
        flash_package.cache_clear()

    yield do
    flash_package.cache_clear()


@pytest.fixture(params=[torch_2_13, torch_2_11, flash_2, flash_3], ids=lambda function: function.__name__)
def ragged_forward(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, install) -> Forward:
    if request.param in (torch_2_13, torch_2_11):
        monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", request.param)
        return varlen_forward
    install("flash_attn", flash_2)
    if request.param is flash_3:
        install("flash_attn_interface", flash_3)
        monkeypatch.setattr("rl.forward.packed_attention.flash_package", lambda device: "flash_attn_interface")
    return flash_forward


def scored(forward: Forward, model: PreTrainedModel, batch: Batch, *, autocast: bool) -> list[Tensor]:
    """Log-probs, and the gradient of a loss in which log-probs and entropies count."""
    model.zero_grad()
    (micro,) = batch.micro_batches(10_000)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        scores = forward.score(model, micro, 0.7)
    (micro.weights * (micro.advantages * scores.logprobs + 0.3 * scores.entropies)).sum().backward()
    gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    return [scores.logprobs.detach(), gradient]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("family", PACKED)
def test_one_call_a_layer_gives_what_dense_attention_gives(
    family: str, ragged_forward: Forward, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under autocast, against float32. What rounding does to a model is measured on it: its own forward under autocast is that far
    from its own in float32. The two round other numbers, so one may have half as much again of the other's.

    Each token goes to all experts where there are some: to which it goes otherwise, rounding decides.
    """
    model_type, own = FAMILIES[family]
    if "num_experts" in own:
        monkeypatch.setitem(FAMILIES, family, (model_type, {**own, "num_experts_per_tok": own["num_experts"]}))
    model, batch = of_family(family), random_batch(longest=20)
    exact, own = (scored(f, model, batch, autocast=a) for f, a in ((packed_forward, False), (plain_forward, True)))
    found = scored(ragged_forward, model, batch, autocast=True)
    for ours, theirs, right in zip(found, own, exact, strict=True):
        assert 0 < (ours - right).norm() < 1.5 * (theirs - right).norm()


def test_prompts_and_completions_are_one_call_and_stand_in_it_as_in_the_row() -> None:
    """A completion of one token asks nothing and is no piece."""
    (micro,) = random_batch().micro_batches(10_000)
    row = micro.laid_out(PackedRow.of)
    lengths = [len(piece.own) for piece in (*row.prompts, *row.completions) if piece.own]
    assert min(micro.lengths) == 1 and len(row.ragged.query_starts) - 1 == len(lengths)
    assert row.ragged.query_starts.diff().tolist() == lengths
    assert sum(lengths) == packed_tokens(micro.groups)


def test_where_there_is_no_such_kernel_it_is_said(install) -> None:
    model = of_family("Qwen2")
    with pytest.raises(UserError, match=r"attention is 'varlen'.*cpu"):
        choose_forward(model, "varlen")
    with pytest.raises(UserError, match=r"attention is 'flash': .*not installed.*plumbline-rl\[flash\]"):
        choose_forward(model, "flash")
    install("flash_attn", flash_2)
    with pytest.raises(UserError, match=r"attention is 'flash'.*cpu"):
        choose_forward(model, "flash")


def test_of_several_kernels_that_agree_the_fastest_is_taken(install, monkeypatch: pytest.MonkeyPatch) -> None:
    install("flash_attn", flash_2)
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", torch_2_13)
    as_on_a_gpu = lambda name, model, micro: _difference_in_16_bits(RAGGED[name][1], model, micro)  # noqa: E731
    monkeypatch.setattr("rl.forward.choose_forward._why_not_ragged", as_on_a_gpu)
    compared: list[list[str]] = []
    monkeypatch.setattr(
        "rl.forward.choose_forward.fastest", lambda kernels, model: compared.append([*kernels]) or "flash"
    )
    with torch.autocast("cpu", torch.bfloat16):
        assert choose_forward(of_family("Qwen2")) is flash_forward
    assert compared == [["varlen", "flash"]]


def test_the_fastest_is_found_by_running_forward_and_backward() -> None:
    """One that is slow in its backward alone loses."""

    def slow_backward(micro, query, *_):
        out = query[0].transpose(0, 1) * 1
        out.register_hook(lambda gradient: time.sleep(0.05))
        return out

    def quick(micro, query, *_):
        return query[0].transpose(0, 1) * 1

    model = make("qwen2")
    assert fastest({"slow": slow_backward, "quick": quick}, model) == "quick"
    assert fastest({"only": slow_backward}, model) == "only"


def test_on_a_hopper_the_third_version_is_preferred(install, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, function in (("flash_attn", flash_2), ("flash_attn_interface", flash_3)):
        install(name, function)
    found = {}
    for major in (8, 9):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, major=major: (major, 0))
        flash_package.cache_clear()
        found[major] = flash_package(torch.device("cuda"))
    assert found == {8: "flash_attn", 9: "flash_attn_interface"}
