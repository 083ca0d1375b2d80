"""The compiled parts of a decoding step, against their definitions in float64, and torch in their place."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from rollout.engine import kernels
from rollout.engine.draw import draw, draw_tokens, uniforms
from rollout.engine.fused_decoder import FusedDecoder
from rollout.engine.fused_model import FusedModel
from rollout.engine.kernels import Rows, attend, rms_norm, rotate_, silu_mul
from rollout.engine.sizes import Capacity
from rollout.sampler import SampleRequest, SamplingParams
from rollout.torch_sampler import TorchSampler
from tests.rollout.families import model_of, tiny_model
from tests.rollout.sampler_contract import TOLERANCE as CONTRACT
from tests.rollout.tiny import tokenizer

pytestmark = pytest.mark.skipif(kernels.compiled is None, reason="no compiled parts: install with a C++ compiler")
DTYPES = [torch.float32, torch.bfloat16]
# Relative to numbers near 1: some roundings of 2^-24 each, or one of 2^-9 of the result.
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2**-8}
NONE = math.nan


@pytest.fixture(params=["compiled", "torch"])
def by(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "torch":
        monkeypatch.setattr(kernels, "compiled", None)
    return request.param


def require_close(found: Tensor, expected: Tensor) -> None:
    tolerance = TOLERANCE[found.dtype]
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rms_norm(dtype: torch.dtype, by: str) -> None:
    x, weight = torch.randn(5, 96), torch.randn(96)
    x[3, 17] = NONE
    expected = x.double() / (x.double() ** 2).mean(-1, keepdim=True).add(1e-2).sqrt() * weight.double()
    require_close(rms_norm(x, weight, 1e-2, dtype), expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rotation_turns_pairs_half_a_head_apart_and_no_other_heads(dtype: torch.dtype, by: str) -> None:
    angles = torch.rand(5, 1, 32) * 2 * math.pi
    heads = torch.randn(5, 7, 64).to(dtype)
    before = heads.double()
    cos, sin = torch.cat([angles.cos()] * 2, -1), torch.cat([-angles.sin(), angles.sin()], -1)
    rotate_(heads.narrow(1, 0, 5), cos, sin)
    turned = torch.polar(torch.ones(()).double(), angles.double()) * torch.complex(*before[:, :5].chunk(2, -1))
    # In 16 bits torch rounds the sum's two parts too.
    torch.testing.assert_close(
        heads[:, :5].double(), torch.cat([turned.real, turned.imag], -1), rtol=0, atol=8 * TOLERANCE[dtype]
    )
    assert torch.equal(heads[:, 5:].double(), before[:, 5:])


@pytest.mark.parametrize("dtype", DTYPES)
def test_silu_mul(dtype: torch.dtype, by: str) -> None:
    gate_up = torch.randn(3, 64).mul(9).to(dtype)
    gate_up[0, :6] = torch.tensor([-200.0, -90.0, -87.5, 88.0, 200.0, NONE])
    gate, up = gate_up.double().chunk(2, -1)
    expected = gate / (1 + (-gate).exp()) * up
    found = silu_mul(gate_up)
    torch.testing.assert_close(found.double(), expected, rtol=2 * TOLERANCE[dtype], atol=1e-30, equal_nan=True)


def test_results_are_rounded_to_the_nearest_with_ties_to_even_and_none_stays_none() -> None:
    """As torch rounds: halfway between two numbers of 16 bits, beyond the largest, and what is no number in any of its forms."""
    forms = torch.tensor([0x3F808000, 0x3F818000, 0x3F808001, 0x7F7FFFFF, 0x7F800001, 0x7FFFFFFF, -1, 0x7F800000])
    cos, sin = torch.zeros(1, 1, 32), torch.zeros(1, 1, 32)
    cos[0, 0, :8] = forms.to(torch.int32).view(torch.float32)
    heads = torch.ones(1, 1, 32).bfloat16()  # turned, they are the cosines: 1 x cos + 1 x 0
    rotate_(heads, cos, sin)
    assert torch.equal(heads.isnan(), cos.isnan())
    numbers = ~cos.isnan()
    assert torch.equal(heads[numbers], cos.bfloat16()[numbers])


HEADS = [(6, 2, 64), (7, 1, 32), (4, 4, 128), (9, 3, 16), (8, 2, 80)]


def case_of(query_heads: int, key_heads: int, size: int, dtype: torch.dtype) -> dict[str, Any]:
    """Six rows of three groups in a mixed order, in buffers with more rows and columns."""
    group, prefix = torch.tensor([2, 0, 1, 0, 2, 1]), torch.tensor([0, 19, 7])
    states = torch.randn(6, query_heads + 2 * key_heads, size).to(dtype)
    query, key, value = states.split((query_heads, key_heads, key_heads), 1)
    rows = Rows(group.argsort(), torch.tensor([0, 4, 8, 17, 2, 21]), prefix[group], group)
    shared = torch.randn(2, 3, key_heads, 19, size).to(dtype)
    own = torch.randn(2, 9, key_heads, 22, size).to(dtype)
    own[1, 1, :, 5:], shared[:, 2, :, 7:] = NONE, NONE  # what no row sees, whatever it is
    return {"query": query, "key": key, "value": value, "shared": shared, "own": own, "rows": rows, "scale": 0.3}


def attention(case: dict[str, Any], row: int, window: int | None) -> Tensor:
    """softmax(scale q k) v over the row's keys, one head after the other."""
    at, prefix, group = (int(x[row]) for x in case["rows"][1:])
    keys, values = (
        torch.cat([case["shared"][i, group, :, :prefix], case["own"][i, row, :, : at + 1]], 1).double() for i in (0, 1)
    )
    seen = slice(0 if window is None else max(0, prefix + at + 1 - window), None)
    queries = case["query"][row].double()
    of_each = len(queries) // len(keys)
    heads = [(q, keys[h // of_each][seen], values[h // of_each][seen]) for h, q in enumerate(queries)]
    return torch.stack([(case["scale"] * k @ q).softmax(0) @ v for q, k, v in heads])


@pytest.mark.parametrize("window", [None, 1, 6, 20])
@pytest.mark.parametrize("heads", HEADS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_attention(dtype: torch.dtype, heads: tuple[int, int, int], window: int | None) -> None:
    torch.manual_seed(0)
    case = case_of(*heads, dtype)
    found = attend(**case, window=window)
    for row in range(6):
        at = int(case["rows"].at[row])
        assert torch.equal(case["own"][0, row, :, at], case["key"][row])
        assert torch.equal(case["own"][1, row, :, at], case["value"][row])
        require_close(found[row], attention(case, row, window))
    assert found.isfinite().all()


def test_a_query_that_is_no_number_has_no_result() -> None:
    case = case_of(6, 2, 64, torch.float32)
    case["query"][4, 3, 5] = NONE
    found = attend(**case, window=None)
    assert found[4, 3].isnan().all()
    assert int(found.isnan().any(-1).sum()) == 1


@pytest.mark.parametrize(
    ("field", "value"), [("at", 22), ("at", -1), ("prefix", 20), ("prefix", -1), ("group", 3), ("order", 9)]
)
def test_a_row_outside_the_buffers_is_refused(field: str, value: int) -> None:
    case = case_of(6, 2, 64, torch.float32)
    getattr(case["rows"], field)[3] = value
    before = case["own"].clone()
    with pytest.raises(IndexError, match="outside"):
        attend(**case, window=None)
    assert torch.equal(case["own"].nan_to_num(), before.nan_to_num())


@pytest.mark.parametrize("num_tokens", [1, 15, 16, 40, 256, 257, 1000])
@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("dtype", DTYPES)
def test_draws(dtype: torch.dtype, temperature: float, num_tokens: int) -> None:
    """The token whose share of the cumulative weights the uniform falls into. A few of 4,000 fall on the other side of a border, as
    float32 exponentials are rounded by 2^-24 or two; greedy ones never. Masked tokens are not drawn."""
    generator = torch.Generator().manual_seed(num_tokens)
    logits = (3 * torch.randn(4000, num_tokens, generator=generator)).to(dtype)
    logits[:, 1::3] = -math.inf
    seeds, counters = torch.randint(-(2**62), 2**62, (2, 4000), generator=generator)
    params = SamplingParams(max_tokens=1, temperature=temperature)
    tokens, logprobs = draw(logits, seeds, counters, params)
    expected, theirs = draw_tokens(logits, uniforms(seeds, counters), params)
    same = tokens == expected
    assert (~same).sum() <= (2 if temperature else 0)
    torch.testing.assert_close(logprobs[same], theirs[same], rtol=0, atol=4e-6)  # of sums up to 20
    assert logits.gather(1, tokens[:, None]).isfinite().all()


def test_of_logits_that_are_no_numbers_a_token_is_drawn_whose_log_prob_is_none() -> None:
    logits = torch.randn(2, 40)
    logits[1, 7] = NONE
    tokens, logprobs = draw(logits, torch.tensor([1, 2]), torch.tensor([0, 0]), SamplingParams(max_tokens=1))
    assert logprobs.isnan().tolist() == [False, True] and int(tokens[1]) < 40


@pytest.mark.parametrize("family", ["mistral-window", "smollm3", "qwen3"])
def test_completions_are_those_of_torch(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Log-probs within what all engines may differ by."""
    requests = [SampleRequest((5, 9, 2, 11), seeds=(1, 2, 3)), SampleRequest((3, 8), seeds=(4, 5))]

    def sampled() -> list[Any]:
        groups = TorchSampler(tiny_model(family, 0), tokenizer()).sample(requests, SamplingParams(max_tokens=40))
        return [completion for group in groups for completion in group]

    ours = sampled()
    monkeypatch.setattr(kernels, "compiled", None)
    for one, other in zip(ours, sampled(), strict=True):
        assert one.token_ids == other.token_ids
        assert one.sampler_logprobs == pytest.approx(other.sampler_logprobs, abs=CONTRACT)


class Counted(TorchDispatchMode):
    """Counts torch's operations."""

    count = 0

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        self.count += 1
        return function(*arguments, **(options or {}))


def operations(num_layers: int) -> int:
    """Of one decoding step of seven rows, the tenth."""
    model = model_of("llama", {"num_hidden_layers": num_layers, "head_dim": 32})
    fused = FusedModel(model, torch.float32)
    decoder, rows = FusedDecoder(fused, Capacity(rows=7, groups=2, shared_width=4, width=20)), torch.arange(7)
    prompts = [torch.tensor([5, 9, 2, 11]), torch.tensor([3, 8])]
    with torch.no_grad(), fused.packed():
        decoder.admit(rows, prompts, torch.tensor([0, 0, 1, 1, 0, 1, 0]))
        for step in range(10):
            with Counted() as counted:
                decoder.logits(torch.full((7,), 4), torch.tensor([4, 4, 2, 2, 4, 2, 4]) + step)
    return counted.count


def test_a_layer_asks_little_of_torch() -> None:
    """Four matrix products, an output for each compiled part but the rotation, which is in place, and views. Without compiled parts
    there are 60."""
    assert (operations(6) - operations(2)) / 4 <= 13
