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
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from rewards.errors import UserError, first_line
from rl.policy.precision import round_frozen
from rollout.float32_head import compute_head_in_float32

AutoClass = type[AutoModelForCausalLM | AutoModelForSequenceClassification | AutoModelForTokenClassification]
KINDS: Mapping[AutoClass, str] = {
    AutoModelForCausalLM: "a causal LM",
    AutoModelForSequenceClassification: "a sequence classification model",
    AutoModelForTokenClassification: "a token classification model",
}
# Raised for a weight file that is missing, truncated, or a Git LFS pointer.
UNREADABLE = (OSError, EOFError, SafetensorError, UnpicklingError)


def load_pretrained(
    model: str | Path,
    device: torch.device,
    *,
    nf4: torch.dtype | None = None,
    rounded: bool = False,
    needs_head: bool = True,
    float32_head: bool = False,
    option: str = "model",
    auto: AutoClass = AutoModelForCausalLM,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model and its tokenizer from a local folder or the hub, in float32.

    nf4: stores all linear layers except the output layer in 4 bits (QLoRA, arXiv 2305.14314), which multiply in this dtype.
    rounded: stores the weights that rl/policy/precision.py selects in 16 bits. needs_head: False if the output layer is not used and
    may be missing. float32_head: the output layer computes in float32 under autocast too (rollout/float32_head.py). option: that names
    the model, for messages. auto: the class of transformers that reads it.
    """
    require_folder(model, option)
    folder = Path(model).expanduser().resolve()
    named = f"{option} is {str(model)!r}"
    if (folder / "adapter_config.json").is_file():
        raise UserError(f"{named}: it holds adapters and no model; run `plumbline merge {model} OUT` and give OUT")
    source = str(folder) if folder.is_dir() else str(model)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
        config = AutoConfig.from_pretrained(source)
        # The default attention of transformers silently ignores Gemma 2's cap on attention scores.
        capped = getattr(config, "attn_logit_softcapping", None) is not None
        found: Any = auto.from_pretrained(
            source,
            dtype=torch.float32,
            attn_implementation="eager" if capped else None,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # require_weights reports them by name
            **(_in_four_bits(nf4, device) if nf4 else {}),
        )
    except (*UNREADABLE, ValueError) as error:
        raise UserError(
            f"{named}: it cannot be loaded as {KINDS[auto]} with its tokenizer ({first_line(error)}); give a folder in Hugging Face "
            "format or a hub name"
        ) from None
    files = tokenizer.vocab_files_names.values()
    if folder.is_dir() and files and not any((folder / name).is_file() for name in files):
        # transformers has then made a tokenizer with an empty vocabulary.
        raise UserError(f"{named}: it has no tokenizer; put one there ({', '.join(files)})")
    loaded, report = found
    require_weights(named, loaded, report, needs_head=needs_head)
    if float32_head:
        compute_head_in_float32(loaded)
    if rounded:
        round_frozen(loaded)
    if nf4:
        for module in loaded.modules():
            # Otherwise bitsandbytes repacks the weights, through which no gradients flow.
            module.support_avx512bf16_for_cpu = False  # pyright: ignore[reportArgumentType]
        return loaded, tokenizer
    return loaded.to(device), tokenizer  # pyright: ignore[reportArgumentType]  the stubs lose `self`


def require_weights(named: str, model: PreTrainedModel, report: Mapping[str, Any], *, needs_head: bool) -> None:
    """Raises a UserError unless all weights were loaded, with the shapes of the config, and are finite.

    transformers initialises missing weights and those of other shapes randomly. named: the option and its value. report: its loading
    info. needs_head: see load_pretrained.
    """
    head = {n for n, p in model.named_parameters() if p is getattr(model.get_output_embeddings(), "weight", None)}
    unused = set() if needs_head else head
    for weight, stored, wanted in sorted(report["mismatched_keys"]):
        if weight not in unused:
            raise UserError(
                f"{named}: its config.json asks for a {weight} of shape {list(wanted)}, and its files have one of "
                f"{list(stored)}; give a config.json that belongs to the weights"
            )
    lacking = sorted(set(report["missing_keys"]) - unused)
    if lacking:
        raise UserError(
            f"{named}: its files lack {len(lacking)} of the weights that its config.json asks for ({', '.join(lacking[:3])}), "
            "which would be random; give a complete folder, or a config.json that fits"
        )
    for weight, parameter in model.named_parameters():
        if parameter.is_floating_point() and not torch.stack(torch.aminmax(parameter.detach())).isfinite().all():
            raise UserError(
                f"{named}: {weight} holds numbers that are not finite (nan or inf), and so would every log-prob be; "
                "give a model that was saved before it diverged"
            )


def require_folder(model: str | Path, option: str = "model") -> None:
    """Raises a UserError if `model` is written as a path and no such folder exists, or if it is the folder of a run."""
    folder = Path(model).expanduser()
    if (folder / "checkpoints").is_dir() and not (folder / "tokenizer_config.json").exists():
        found = sorted(folder.glob("checkpoints/step-*"))
        what = f"give one of its checkpoints, such as {found[-1]}" if found else "it has no checkpoint yet"
        raise UserError(f"{option} is {str(model)!r}: it is the folder of a run, which holds no model itself; {what}")
    if str(model).startswith((".", "/", "~")) and not folder.is_dir():
        raise UserError(
            f"{option} is {str(model)!r}: there is no such folder; give a folder in Hugging Face format or a hub name"
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
