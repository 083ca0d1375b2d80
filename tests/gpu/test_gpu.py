"""What runs on a GPU only: ragged attention, 16-bit products summed in float32, decoding by CUDA graphs."""

from __future__ import annotations

import pytest
import torch

from rl.forward.choose_forward import choose_forward
from rl.forward.forward import Forward, packed_forward, varlen_forward
from rl.forward.output_head import OutputHead
from rl.objective.tokens import TokenScores
from rl.run.tiny import tiny_model, tiny_tokenizer
from rollout.sampler import SampleRequest, SamplingParams
from rollout.torch_sampler import TorchSampler
from tests.rl.families import of_family
from tests.rl.models import random_batch

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
CUDA = torch.device("cuda")


def gradient(forward: Forward, family: str) -> torch.Tensor:
    model = of_family(family).to(CUDA)
    (micro,) = (m.to(CUDA) for m in random_batch(groups=8, longest=30).micro_batches(10_000))

    def loss_of(scores: TokenScores, part: slice) -> torch.Tensor:
        tokens = micro.tokens(part)
        return (tokens.weights * tokens.advantages * scores.logprobs).sum()

    with torch.autocast("cuda", torch.bfloat16, enabled=forward is not packed_forward):
        states, head = forward.hidden_states(model, micro), forward.head(model)
        loss, _ = head.loss(states, micro.targets, 1.0, loss_of, token_level=True)
    loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("family", ["Qwen2", "Llama", "Mistral, window", "GPT-2"])
def test_ragged_attention_gives_the_dense_gradient(family: str) -> None:
    """bfloat16 against float32: each product rounds by 2^-9, the sum of many less."""
    exact, ragged = gradient(packed_forward, family), gradient(varlen_forward, family)
    assert (ragged - exact).norm() < 0.05 * exact.norm()


def test_ragged_attention_is_taken_in_bfloat16_and_only_there() -> None:
    model = of_family("Qwen2").to(CUDA)
    assert choose_forward(model) is packed_forward
    with torch.autocast("cuda", torch.bfloat16):
        assert choose_forward(model) is varlen_forward


def test_logits_of_16_bit_products_are_not_rounded() -> None:
    """The loss is that of products of rounded factors, summed and kept in float32."""
    hidden, weight = (torch.randn(shape, device=CUDA).bfloat16() for shape in ((64, 256), (1000, 256)))
    targets = torch.arange(64, device=CUDA)
    head = OutputHead(weight)
    loss, _ = head.loss(hidden, targets, 1.0, lambda scores, part: scores.logprobs.sum(), token_level=True)
    exact = (hidden.double() @ weight.double().T).log_softmax(-1).gather(-1, targets[:, None]).sum()
    assert abs(loss - exact) < 1e-5 * abs(exact)


def test_graphs_decode_what_the_plain_steps_decode() -> None:
    tokenizer = tiny_tokenizer()
    model = tiny_model(tokenizer, seed=0, device=CUDA)
    requests = [SampleRequest(tuple(range(5, 8 + i)), tuple(range(10 * i, 10 * i + 7))) for i in range(6)]
    params = SamplingParams(max_tokens=40)
    graphed, plain = TorchSampler(model, tokenizer), TorchSampler(model, tokenizer)
    plain.bucketed, plain.check_every = False, 1
    of_both = [[c.token_ids for group in s.sample(requests, params) for c in group] for s in (graphed, plain)]
    assert of_both[0] == of_both[1]
    assert graphed.kept is not None and graphed.kept.graphs.kept
