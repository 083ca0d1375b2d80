"""`plumbline merge`: merges adapters into their base and saves the resulting plain model."""

from __future__ import annotations

import os
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard
from peft import PeftConfig, PeftModel
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from yaml import YAMLError

from rewards.errors import UserError, first_line
from rl.policy.load import UNREADABLE, load_pretrained
from rl.policy.lora import IN_FOUR_BITS, merged_tensors
from rl.policy.save_model import model_state, save_model, stored_dtype


def merge_adapters(checkpoint: Path, out: Path) -> Path:
    """Writes the merged model, in the dtype that its base is stored in, and its tokenizer to `out`. Returns `out`."""
    if not (checkpoint / "adapter_config.json").is_file():
        raise UserError(
            f"checkpoint is {str(checkpoint)!r}: it holds no adapter (adapter_config.json); "
            "give a checkpoint of a run with lora_rank, such as runs/mine/checkpoints/step-000050"
        )
    if out.exists():
        raise UserError(f"out is {str(out)!r}: it exists already; name a new folder")
    merged, tokenizer = load_merged(checkpoint)
    aside = out.with_name(f".{out.name}.partial")
    try:
        save_model(merged, aside, model_state(merged), stored_dtype(str(merged.name_or_path)))
        tokenizer.save_pretrained(aside)
        if (card := merged_card(checkpoint)) is not None:
            card.save(aside / "README.md")
        os.replace(aside, out)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"out is {str(out)!r}: it cannot be written ({first_line(error)}); name another folder"
        ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return out


def merged_card(checkpoint: Path) -> ModelCard | None:
    """The card of the adapters with the metadata of a plain model; None without one, or if its metadata cannot be read."""
    try:
        card = ModelCard.load(checkpoint / "README.md")
    except (OSError, ValueError, YAMLError):
        return None
    data: Any = card.data
    data.library_name = "transformers"
    data.tags = [tag for tag in data.get("tags") or [] if tag != "lora"] or None
    return card


def load_merged(checkpoint: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The base of a folder of adapters with these merged into it by peft, and its tokenizer.

    The adapters may be any that peft can merge, not only those of a run. Raises a UserError if the logits of the merged model differ
    from those of the adapted one.
    """
    config = adapter_config(checkpoint)
    base, tokenizer = load_adapted_base(checkpoint, config)
    adapted = load_adapters(checkpoint, base)
    if config.is_prompt_learning or not hasattr(adapted.base_model, "merge_and_unload"):
        raise UserError(
            f"checkpoint is {str(checkpoint)!r}: adapters of its peft_type ({config.peft_type!s}) cannot be merged into weights; "
            "give adapters of another kind, such as LORA"
        )
    expected = probe_logits(adapted)
    base, _ = load_adapted_base(checkpoint, config)  # loaded again, as peft modifies the base that it adapts
    before = probe_logits(base)
    was_tied = untie(base)
    adapted = load_adapters(checkpoint, base)
    try:
        with warnings.catch_warnings(action="ignore"):  # about tied embeddings, which untie and tie_again handle
            merged: Any = adapted.merge_and_unload(safe_merge=True)  # pyright: ignore[reportCallIssue]
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"checkpoint is {str(checkpoint)!r}: peft cannot merge its adapters ({first_line(error)}); use them with peft as they are"
        ) from error
    if was_tied:
        tie_again(merged)
    require_same_logits(checkpoint, probe_logits(merged), expected, before)
    has_tokenizer = any((checkpoint / name).is_file() for name in tokenizer.vocab_files_names.values())
    return merged, AutoTokenizer.from_pretrained(checkpoint) if has_tokenizer else tokenizer


def adapter_config(checkpoint: Path) -> PeftConfig:
    """The folder's adapter_config.json."""
    try:
        return PeftConfig.from_pretrained(str(checkpoint))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"checkpoint is {str(checkpoint)!r}: its adapter_config.json cannot be read by this version of peft ({first_line(error)}); "
            "give adapters that it can read"
        ) from None


def load_adapted_base(checkpoint: Path, config: PeftConfig) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The weights that the adapters were trained on, in float32, and their tokenizer. A 4-bit base is dequantized."""
    source, cpu = str(config.base_model_name_or_path), torch.device("cpu")
    try:
        base, tokenizer = load_pretrained(source, cpu)
        if (checkpoint / IN_FOUR_BITS).exists():
            rounded, _ = load_pretrained(source, cpu, nf4=torch.float32)
            with torch.no_grad():
                for name, tensor in merged_tensors(rounded):
                    base.get_parameter(name).copy_(tensor)
    except UserError as error:
        raise UserError(f"base_model_name_or_path in '{checkpoint}/adapter_config.json': {error}") from None
    return base, tokenizer


def load_adapters(checkpoint: Path, base: PreTrainedModel) -> PeftModel:
    """The base with all adapters of the folder. Raises a UserError for missing adapter weights, of which peft only warns."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.filterwarnings("error", message="Found missing adapter keys")
            return PeftModel.from_pretrained(base, str(checkpoint)).eval()
    except UNREADABLE as error:
        raise UserError(
            f"checkpoint is {str(checkpoint)!r}: its adapters cannot be read ({first_line(error)}); give a complete folder"
        ) from None
    except (UserWarning, ValueError, RuntimeError) as error:
        raise UserError(
            f"checkpoint is {str(checkpoint)!r}: its adapters do not fit {base.name_or_path!r} ({first_line(error)}); give the base "
            "that they were trained on, in adapter_config.json"
        ) from error


def untie(model: PreTrainedModel) -> bool:
    """Gives the model an output layer separate from its input embeddings, so that an adapter of one is not merged into both.

    Returns whether the two were tied before.
    """
    was_tied = model.config.get_text_config().tie_word_embeddings
    if was_tied:
        head: Any = model.get_output_embeddings()
        head.weight = nn.Parameter(head.weight.detach().clone())
    return was_tied


def tie_again(model: PreTrainedModel) -> None:
    """Ties input and output embeddings again if they are still equal, and records in the config whether they are."""
    head: Any = model.get_output_embeddings()
    embedding: Any = model.get_input_embeddings()
    is_tied = torch.equal(head.weight, embedding.weight)
    if is_tied:
        head.weight = embedding.weight
    model.config.get_text_config().tie_word_embeddings = model.config.tie_word_embeddings = is_tied


@torch.no_grad()
def probe_logits(model: Any) -> Tensor:
    """The model's logits of 48 random tokens, the same for each call: Float[1, 48, V]."""
    vocabulary = model.get_input_embeddings().weight.shape[0]
    tokens = torch.randint(vocabulary, (1, 48), generator=torch.Generator().manual_seed(0))
    return model(input_ids=tokens, use_cache=False).logits


def require_same_logits(checkpoint: Path, merged: Tensor, adapted: Tensor, base: Tensor) -> None:
    """Raises a UserError if the merged logits differ from the adapted model's by more than rounding.

    The bound is a hundredth of what the adapters change, plus a float32 rounding error (2^-24) amplified a thousandfold by the layers.
    """
    difference, change = (merged - adapted).norm(), (adapted - base).norm()
    if not difference <= 0.01 * change + 1e3 * 2**-24 * adapted.norm():
        raise UserError(
            f"checkpoint is {str(checkpoint)!r}: the logits of peft's merge differ by {difference:.3g} from those with adapters, which "
            f"change the base's by {change:.3g}; use the adapters with peft as they are"
        )
