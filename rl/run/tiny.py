"""The tiny model: a Qwen2 of 0.7 M parameters with byte tokens, small enough for two CPU cores."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

END, PAD = "<|end|>", "<|pad|>"
# Each message is one line.
CHAT_TEMPLATE = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"
# The names of the tools are a line before them. That calls are written in <tool_call> is for rollout/tool_calls.py to read.
TOOL_TEMPLATE = (
    "{# <tool_call> #}{% if tools %}{% for tool in tools %}{{ tool.function.name }} {% endfor %}\n{% endif %}"
    + CHAT_TEMPLATE
)


def tiny_tokenizer(words: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """One token per byte, so that it covers any text, and one for the beginning of a box. words: of calls of tools, one token each; with
    them the template shows tools."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([END, PAD])
    tokenizer.add_tokens([AddedToken(word, normalized=False) for word in ("\\boxed{", *words)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        chat_template=TOOL_TEMPLATE if words else CHAT_TEMPLATE,
        model_max_length=2048,
    )


def tiny_model(tokenizer: PreTrainedTokenizerFast, *, seed: int, device: torch.device) -> Qwen2ForCausalLM:
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        initializer_range=0.08,  # about 1/sqrt(hidden_size); with 0.02 a model of this size needs three times the steps
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.vocab[END],
        pad_token_id=tokenizer.vocab[PAD],
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2ForCausalLM(config)
    model.to(device)  # pyright: ignore[reportArgumentType]  the stubs lose `self`
    return model
