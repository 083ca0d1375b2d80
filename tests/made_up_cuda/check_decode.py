"""What a decode step of the embedded engine asks of a GPU, at Qwen2.5-1.5B's shape with four layers, 256 rows."""

from __future__ import annotations

import json

from tests.made_up_cuda.device import CUDA, without_contents  # isort: skip  (before torch)

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from rollout.engine.draw import draw_tokens, uniforms
from rollout.engine.fused_decoder import FusedDecoder
from rollout.engine.fused_model import FusedModel
from rollout.engine.graphs import QueryIndex
from rollout.engine.sizes import Capacity, Sizes
from rollout.sampler import SamplingParams
from tests.made_up_cuda.count import Count

SHAPE = Qwen2Config(
    vocab_size=151_936,
    hidden_size=1536,
    intermediate_size=8960,
    num_hidden_layers=4,
    num_attention_heads=12,
    num_key_value_heads=2,
    tie_word_embeddings=True,
)
SIZES = Sizes(rows=256, groups=32, members=8, shared_width=512, width=576)


def main() -> None:
    with without_contents(), torch.device(CUDA), torch.no_grad():
        model = FusedModel(Qwen2ForCausalLM(SHAPE), torch.bfloat16)
        decoder = FusedDecoder(model, Capacity(256, 32, 512, 1025), bucketed=True, reserves=True)
        batch, params, stops = decoder.batch, SamplingParams(max_tokens=1024), torch.zeros(2, dtype=torch.long)
        heads = decoder.key_heads
        places = QueryIndex(
            *(torch.zeros(n * heads, dtype=torch.long) for n in (SIZES.groups * SIZES.members, SIZES.rows))
        )
        with Count() as forward:
            logits = decoder._step(SIZES, places)
        with Count() as draw:
            tokens, logprobs = draw_tokens(logits, uniforms(batch.seed, batch.length), params)
            batch.append(tokens, logprobs)
            batch.end((tokens[:, None] == stops).any(-1))
        print(
            json.dumps({"forward": forward.totals(), "draw": draw.totals(), "reads": dict(forward.reads + draw.reads)})
        )


if __name__ == "__main__":
    main()
