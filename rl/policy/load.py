"""Loads a pretrained model and its tokenizer, and refuses incomplete or invalid weights."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from rewards.errors import UserError, first_line
from rl.policy.precision import round_frozen

# Raised for a weight file that is missing, truncated, or a Git LFS pointer.
UNREADABLE = (OSError, EOFError, SafetensorError, UnpicklingError)


def load_pretrained(
    model: str | Path,
    device: torch.device,
    *,
    nf4: torch.dtype | None = None,
    rounded: bool = False,
    needs_head: bool = True,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model and its tokenizer from a local folder or the hub, in float32.

    nf4: stores all linear layers except the output layer in 4 bits (QLoRA, arXiv 2305.14314), which multiply in this dtype.
    rounded: stores the weights that rl/policy/precision.py selects in 16 bits. needs_head: False if the output layer is not used and
    may be missing.
    """
    require_folder(model)
    folder = Path(model).expanduser().resolve()
    if (folder / "adapter_config.json").is_file():
        raise UserError(
            f"model is {str(model)!r}: it holds adapters and no model; run `plumbline merge {model} OUT` and give OUT"
        )
    source = str(folder) if folder.is_dir() else str(model)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
        config = AutoConfig.from_pretrained(source)
        # The default attention of transformers silently ignores Gemma 2's cap on attention scores.
        capped = getattr(config, "attn_logit_softcapping", None) is not None
        found: Any = AutoModelForCausalLM.from_pretrained(
            source,
            dtype=torch.float32,
            attn_implementation="eager" if capped else None,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # require_weights reports them by name
            **(_in_four_bits(nf4, device) if nf4 else {}),
        )
    except (*UNREADABLE, ValueError) as error:
        raise UserError(
            f"model is {str(model)!r}: it cannot be loaded as a causal LM with its tokenizer "
            f"({first_line(error)}); give a folder in Hugging Face format or a hub name"
        ) from None
    files = tokenizer.vocab_files_names.values()
    if folder.is_dir() and files and not any((folder / name).is_file() for name in files):
        # transformers has then made a tokenizer with an empty vocabulary.
        raise UserError(f"model is {str(model)!r}: it has no tokenizer; put one there ({', '.join(files)})")
    loaded, report = found
    require_weights(str(model), loaded, report, needs_head=needs_head)
    if rounded:
        round_frozen(loaded)
    if nf4:
        for module in loaded.modules():
            # Otherwise bitsandbytes repacks the weights, through which no gradients flow.
            module.support_avx512bf16_for_cpu = False  # pyright: ignore[reportArgumentType]
        return loaded, tokenizer
    return loaded.to(device), tokenizer  # pyright: ignore[reportArgumentType]  the stubs lose `self`


def require_weights(name: str, model: PreTrainedModel, report: Mapping[str, Any], *, needs_head: bool) -> None:
    """Raises a UserError unless all weights were loaded, with the shapes of the config, and are finite.

    transformers initialises missing weights and those of other shapes randomly. report: its loading info. needs_head: see
    load_pretrained.
    """
    head = {n for n, p in model.named_parameters() if p is getattr(model.get_output_embeddings(), "weight", None)}
    unused = set() if needs_head else head
    for weight, stored, wanted in sorted(report["mismatched_keys"]):
        if weight not in unused:
            raise UserError(
                f"model is {name!r}: its config.json asks for a {weight} of shape {list(wanted)}, and its files have one of "
                f"{list(stored)}; give a config.json that belongs to the weights"
            )
    lacking = sorted(set(report["missing_keys"]) - unused)
    if lacking:
        raise UserError(
            f"model is {name!r}: its files lack {len(lacking)} of the weights that its config.json asks for ({', '.join(lacking[:3])}), "
            "which would be random; give a complete folder, or a config.json that fits"
        )
    for weight, parameter in model.named_parameters():
        if parameter.is_floating_point() and not torch.stack(torch.aminmax(parameter.detach())).isfinite().all():
            raise UserError(
                f"model is {name!r}: {weight} holds numbers that are not finite (nan or inf), and so would every log-prob be; "
                "give a model that was saved before it diverged"
            )


def require_folder(model: str | Path) -> None:
    """Raises a UserError if `model` is written as a path and no such folder exists."""
    if str(model).startswith((".", "/", "~")) and not Path(model).expanduser().is_dir():
        raise UserError(
            f"model is {str(model)!r}: there is no such folder; give a folder in Hugging Face format or a hub name"
        )


def _in_four_bits(dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """The arguments of from_pretrained that load linear layers in 4 bits."""
    if find_spec("bitsandbytes") is None:
        raise UserError(
            "lora_base is 'nf4': it needs bitsandbytes, which is not installed; pip install 'plumbline-rl[qlora]', or leave it out"
        )
    quantized = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
    return {"quantization_config": quantized, "device_map": {"": device}}


def context_length(model: PreTrainedModel) -> int | None:
    """The largest number of positions that the model's config states, if it states one."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)
