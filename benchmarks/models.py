"""Random models whose completions are as long as a benchmark wants, with prompts and rewards to go with them.

A benchmark of speed needs no model that can do anything, but lengths that are really sampled: an engine that decodes until
the longest row ends, and one that lets rows go, must both meet them.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from zlib import crc32

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from rewards.score import Outcome, Reference, Score
from rollout.problem_stream import ProblemStream, Source
from rollout.records import Problem

END, PAD = "<|end|>", "<|pad|>"


@dataclass(frozen=True, kw_only=True)
class ModelSize:
    """A Qwen2 with tied embeddings."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_key_value_heads: int

    def config(self, **further: Any) -> Qwen2Config:
        return Qwen2Config(
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            num_hidden_layers=self.num_layers,
            num_attention_heads=self.num_heads,
            num_key_value_heads=self.num_key_value_heads,
            tie_word_embeddings=True,
            **further,
        )


SMALL = ModelSize(
    vocab_size=512, hidden_size=256, intermediate_size=704, num_layers=4, num_heads=4, num_key_value_heads=2
)  # 3 M parameters
LARGE = ModelSize(
    vocab_size=32_000, hidden_size=384, intermediate_size=1152, num_layers=9, num_heads=6, num_key_value_heads=2
)  # 28 M parameters, 12 M of them embeddings


HALF_BILLION = ModelSize(
    vocab_size=151_936, hidden_size=896, intermediate_size=4864, num_layers=24, num_heads=14, num_key_value_heads=2
)  # the size of Qwen2.5-0.5B


def word_tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    """A token a word: prompts of any length can be written, and a completion's text is its tokens."""
    words = {word: i for i, word in enumerate([END, PAD, *(f"w{i}" for i in range(2, vocab_size))])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token=PAD))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=PAD)


def random_model(
    size: ModelSize, tokenizer: PreTrainedTokenizerFast, *, end_probability: float, seed: int = 0
) -> PreTrainedModel:
    """Random weights, but every token is the end with `end_probability`, whatever the text.

    One coordinate of the residual stream is CONSTANT: every embedding has it, no layer writes it. The embedding of END
    has `bias` more there, and since the head is tied that is added to END's logit alone; END is never an input. The
    constant is so large beside the rest that the last norm hardly depends on the text.
    """
    config = size.config(
        max_position_embeddings=2048,
        bos_token_id=None,
        eos_token_id=tokenizer.vocab[END],
        pad_token_id=tokenizer.vocab[PAD],
    )
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model: Any = Qwen2ForCausalLM(config).eval()  # the stubs know modules by no name
        end, embedding = tokenizer.vocab[END], model.get_input_embeddings().weight
        embedding[:, 0] = CONSTANT
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight[0] = 0
            layer.mlp.down_proj.weight[0] = 0
        text = torch.randint(2, size.vocab_size, (16, 64))
        others = model(text).logits.logsumexp(-1).mean()  # END is one token of many still: CONSTANT shifts them all
        wanted = others + math.log(end_probability / (1 - end_probability))
        hidden = model.model(text).last_hidden_state
        now = hidden @ embedding[end]
        embedding[end, 0] += ((wanted - now) / hidden[..., 0]).mean()
    return model


CONSTANT = 2.0  # the other coordinates of an embedding are 0.02 each, their norm about 0.3


def end_probability(mean: float, longest: int) -> float:
    """The hazard h of an end at each token for which completions of at most `longest` tokens have this mean length.

    The mean is (1 - (1 - h)^L) / h, which falls with h: bisection. Every row full is a hazard of (nearly) 0.
    """
    low, high = 1e-9, 1.0
    while high - low > 1e-9:
        h = (low + high) / 2
        low, high = (h, high) if (1 - (1 - h) ** longest) / h > mean else (low, h)
    return low


def random_problems(
    count: int, num_words: int, words: Sequence[str], *, begin: str = "", share_without_signal: float, seed: int = 0
) -> list[Problem]:
    """Prompts of random words, those without signal spread evenly. The reference is the prompt itself: HashVerifier asks it."""
    chance = random.Random(seed)

    def prompt(wanted: bool) -> str:
        while True:
            text = f"{begin} {' '.join(chance.choice(words) for _ in range(num_words))}".lstrip()
            if has_signal(text, share_without_signal) == wanted:
                return text

    silent = [int((i + 1) * share_without_signal) > int(i * share_without_signal) for i in range(count)]
    prompts = [prompt(not is_silent) for is_silent in silent]
    return [Problem(id=str(i), prompt=p, reference=p, verifier="hash") for i, p in enumerate(prompts)]


class InOrder(ProblemStream):
    """Draws the problems as they stand."""

    def order(self, source: Source, epoch: int) -> list[int]:
        return list(range(len(source.problems)))


def has_signal(prompt: str, share_without_signal: float) -> bool:
    """A function of the prompt alone, so that both sides agree."""
    return crc32(prompt.encode()) % 1000 >= 1000 * share_without_signal


@dataclass(frozen=True)
class HashVerifier:
    """A reward that is a function of prompt and completion and costs nothing: 0 for prompts without signal, for the
    rest right or wrong by a bit of the completion's checksum."""

    share_without_signal: float

    def verify_batch(self, answers: Sequence[str], references: Sequence[Reference]) -> list[Score]:
        return [self._score(answer, str(reference)) for answer, reference in zip(answers, references, strict=True)]

    def _score(self, answer: str, prompt: str) -> Score:
        is_right = has_signal(prompt, self.share_without_signal) and crc32(answer.encode()) % 2 == 1
        return Score(float(is_right), Outcome.CORRECT if is_right else Outcome.WRONG)

    def check_references(self, references: Sequence[Reference]) -> list[Score]:
        return [Score(1.0, Outcome.CORRECT) for _ in references]

    def close(self) -> None:
        pass
