"""Sizes of a transformer, read from its config."""

from __future__ import annotations

from transformers import PretrainedConfig


def heads(config: PretrainedConfig) -> int:
    """Number of query heads; 1 if the model has no attention."""
    return getattr(config, "num_attention_heads", None) or 1


def head_size(config: PretrainedConfig) -> int:
    """Numbers of one head's query, key or value."""
    return getattr(config, "head_dim", None) or config.hidden_size // heads(config)


def inner_width(config: PretrainedConfig) -> int:
    """Width of the MLP; the usual 4 H if the config does not state it."""
    return getattr(config, "intermediate_size", None) or 4 * config.hidden_size


def key_width(config: PretrainedConfig) -> int:
    """H_kv: width of all key heads together."""
    return (getattr(config, "num_key_value_heads", None) or heads(config)) * head_size(config)
