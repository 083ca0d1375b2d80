"""Shapes of a transformer, as its config tells them."""

from __future__ import annotations

from transformers import PretrainedConfig


def heads(config: PretrainedConfig) -> int:
    """Of the queries; 1 where there is no attention."""
    return getattr(config, "num_attention_heads", None) or 1


def head_size(config: PretrainedConfig) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // heads(config)


def inner_width(config: PretrainedConfig) -> int:
    """Of the MLP; where the config does not tell, the usual 4 H."""
    return getattr(config, "intermediate_size", None) or 4 * config.hidden_size


def key_width(config: PretrainedConfig) -> int:
    """Of all key heads together, H_kv."""
    return (getattr(config, "num_key_value_heads", None) or heads(config)) * head_size(config)
