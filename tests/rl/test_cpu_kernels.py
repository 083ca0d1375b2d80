"""The compiled attention of an update in 16 bits, against its definition in float64, and what it leaves in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from rl.forward import cpu_kernels
from rl.forward.casts import keeping_casts
from rl.forward.forward import Forward, in_fused, packed_forward
from rl.forward.row import AttentionBlock, pieces_of
from rollout.attention import grouped_attention
from tests.rl.families import of_family
from tests.rl.models import random_batch

pytestmark = pytest.mark.skipif(cpu_kernels.compiled is None, reason="no compiled parts: install with a C++ compiler")
# Of a tensor, relative to its length: torch's own attention may happen to be exact to less than the rounding of its result.
LEAST_ERROR = {torch.float32: 1e-7, torch.bfloat16: 2**-9}
LENGTHS = [5, 23, 40, 1, 37]
SCALE = 0.3


@pytest.fixture(params=[1, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def block() -> AttentionBlock:
    """Prompts of 19 and 3 tokens, of which completions of LENGTHS see one."""
    return AttentionBlock.of(pieces_of([19, 3], LENGTHS, [0, 0, 1, 1, 0])[2:])


def exact(query: Tensor, key: Tensor, value: Tensor, visible: Tensor) -> Tensor:
    group = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(group, 1) for x in (key, value))
    scores = (query @ key.mT * SCALE).masked_fill(~visible[:, None], -torch.inf)
    return (scores.softmax(-1) @ value).transpose(1, 2)


def errors(found: list[Tensor], right: list[Tensor]) -> list[float]:
    return [((x.double() - y).norm() / y.norm()).item() for x, y in zip(found, right, strict=True)]


@pytest.mark.parametrize("scores_at_once", [1 << 20, 900, 1], ids=["at once", "in parts", "query by query"])
@pytest.mark.parametrize("window", [None, 7])
@pytest.mark.parametrize("dtype", LEAST_ERROR)
def test_values_and_gradients(
    dtype: torch.dtype, window: int | None, scores_at_once: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As near as torch's attention, also where a row's scores are cut. Queries and keys have a bias: scores are large sums with small
    differences."""
    monkeypatch.setattr(cpu_kernels, "SCORES_AT_ONCE", scores_at_once)
    torch.manual_seed(0)
    attended = block()
    (rows, queries), keys = attended.query_slots.shape, attended.key_slots.shape[1]
    of = {"query": (rows, 6, queries, 24), "key": (rows, 2, keys, 24), "value": (rows, 2, keys, 24)}
    states = {name: (torch.randn(shape) + (name != "value") * 3).to(dtype) for name, shape in of.items()}
    direction = torch.randn(rows, queries, 6, 24).to(dtype)

    def through(attend: Callable[..., Tensor], dtype: torch.dtype) -> list[Tensor]:
        leaves = [x.to(dtype, copy=True).requires_grad_() for x in states.values()]
        out = attend(*leaves)
        return [out.detach(), *torch.autograd.grad(out, leaves, direction.to(dtype))]

    found = through(lambda *x: cpu_kernels.attend(*x, *attended.spans(window), SCALE), dtype)
    right = through(lambda *x: exact(*x, attended.visible(window)), torch.float64)
    mask = attended.visible(window)[:, None]
    torchs = through(lambda *x: grouped_attention(*x, mask=mask, causal=False, scale=SCALE), dtype)
    assert all(x.dtype == dtype for x in found)
    for ours, theirs in zip(errors(found, right), errors(torchs, right), strict=True):
        assert ours < max(1.5 * theirs, LEAST_ERROR[dtype])


def test_no_number_stays_none() -> None:
    """A NaN among a query's own numbers makes its row NaN and no other."""
    attended = block()
    rows, queries = attended.query_slots.shape
    query = torch.ones(rows, 1, queries, 16, dtype=torch.bfloat16)
    key = torch.ones(rows, 1, attended.key_slots.shape[1], 16, dtype=torch.bfloat16)
    query[1, 0, 2, 5] = torch.nan
    out = cpu_kernels.attend(query, key, key, *attended.spans(None), SCALE)
    assert out[1, 2].isnan().all()
    assert out.isnan().sum() == 16


def test_spans_are_what_is_visible() -> None:
    for window in (None, 1, 6):
        attended = block()
        (first, last), visible = attended.spans(window), attended.visible(window)
        assert torch.equal(last - first, visible.sum(-1))
        assert torch.equal(visible.int().argmax(-1), first)


class Casts(TorchDispatchMode):
    """Counts the numbers that are cast, of tensors of at least `tokens` rows."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.tokens, self.numbers = tokens, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default and args[0].dtype != out.dtype and self.tokens in args[0].shape:
            self.numbers += args[0].numel()
        return out


def casts_of(forward: Forward, backward: bool) -> float:
    """Numbers of activations that are cast in a layer, per token and hidden size."""
    found = []
    for layers in (2, 1):
        model = of_family("Qwen2")
        model.model.layers = model.model.layers[:layers]
        (micro,) = random_batch(groups=3, size=3, longest=20).micro_batches(10_000)
        tokens = len(micro.laid_out(forward.lay_out).input_ids)
        with keeping_casts(torch.device("cpu")), Casts(tokens) as counted:
            with torch.autocast("cpu", torch.bfloat16):
                scores = forward.score(model, micro, 1.0)
            if backward:
                scores.logprobs.sum().backward()
        found.append(counted.numbers / tokens / model.config.hidden_size)
    return found[0] - found[1]


@pytest.mark.parametrize(("backward", "most"), [(False, 1.5), (True, 8.0)])
def test_casts_of_a_layer_in_16_bits(backward: bool, most: float) -> None:
    """The model's own layer casts the input of each of its seven products."""
    fused, own = (casts_of(forward, backward) for forward in (in_fused(packed_forward), packed_forward))
    assert fused <= most
    assert own > 2 * fused
