"""A tokenizer for the tiny random models, and the plain forward with which samplers are compared."""

from __future__ import annotations

import string
from collections.abc import Sequence

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from tests.rl.models import VOCAB

PAD, END = 0, 1
LONG_TOKENS = ("ab", "xy", "the", "ing", "12", "ee", "qu", "st", "er")  # stop strings may begin and end inside them


def tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer with a token for each letter, digit and sign, and a few longer ones."""
    symbols = ["<pad>", "<end>", *string.ascii_lowercase, *string.digits, *"+-=*/.,:?!()", "Ġ", "Ċ", *LONG_TOKENS]
    assert len(symbols) == VOCAB
    made = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(symbols)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<end>", pad_token="<pad>")


@torch.no_grad()
def plain_logits(model: PreTrainedModel, prompt: Sequence[int], completion: Sequence[int]) -> torch.Tensor:
    """The logits from which each token of the completion is drawn, by the model's own forward over the whole text. float64[T, V]"""
    logits = model(torch.tensor([[*prompt, *completion]]), use_cache=False).logits
    return logits[0, len(prompt) - 1 : -1].double()


def plain_logprobs(model: PreTrainedModel, prompt: Sequence[int], completion: Sequence[int]) -> torch.Tensor:
    taken = torch.tensor(completion)[:, None]
    return plain_logits(model, prompt, completion).log_softmax(-1).gather(-1, taken)[:, 0]
