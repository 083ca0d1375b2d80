"""Tiny random models and batches to test with."""

from __future__ import annotations

import random
from dataclasses import replace

import torch
from transformers import (
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from rl.forward.micro_batch import TrainGroup, TrainSequence
from rl.objective.reductions import StepCounts, mean_of_token_means
from rl.update.batch import Batch

VOCAB = 61
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,  # large, so that attention is far from uniform and a wrong mask shows
    "eos_token_id": 1,
    "bos_token_id": None,
    "pad_token_id": None,
}
FAMILIES = {
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES, tie_word_embeddings=True)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "gemma": lambda: GemmaForCausalLM(GemmaConfig(**SIZES, head_dim=16)),
    "mistral-window": lambda: MistralForCausalLM(MistralConfig(**SIZES, sliding_window=4)),
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=128, initializer_range=0.3)
    ),
}


def make(family: str, seed: int = 0) -> PreTrainedModel:
    torch.manual_seed(seed)
    return FAMILIES[family]().eval()


def cut(sequence: TrainSequence) -> TrainSequence:
    """Cut by the token limit: the critic says what would have followed, and the last token is not trained on."""
    return replace(
        sequence,
        reward=None,
        loss_mask=(*sequence.loss_mask[:-1], False),
        sampler_logprobs=sequence.sampler_logprobs[:-1],
        advantages=sequence.advantages[:-1],
    )


def random_batch(seed: int = 0, *, groups: int = 5, size: int = 4, longest: int = 9) -> Batch:
    """Ragged prompts and completions, completions of one token among them."""
    rng = random.Random(seed)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(rng.randrange(VOCAB) for _ in range(count))

    def sequence(length: int) -> TrainSequence:
        return TrainSequence(
            token_ids=tokens(length),
            sampler_logprobs=tuple(-3 * rng.random() for _ in range(length)),
            advantages=torch.full((length,), rng.gauss(0, 1)),
            weight=mean_of_token_means(length, length * size, counts),
        )

    counts = StepCounts(num_tokens=0, num_sequences=groups * size, num_groups=groups, max_tokens=longest)
    return Batch(
        tuple(
            TrainGroup(tokens(rng.randint(1, 7)), tuple(sequence(rng.randint(1, longest)) for _ in range(size)))
            for _ in range(groups)
        ),
        counts,
    )
