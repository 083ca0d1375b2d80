"""`plumbline merge`: a plain model in place of adapters and their base."""

from __future__ import annotations

import os
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from rewards.errors import UserError, first_line
from rl.policy.load import UNREADABLE, load_pretrained
from rl.policy.lora import IN_FOUR_BITS, merged_tensors
from rl.policy.save_model import model_state, save_model, stored_dtype


def merge_adapters(checkpoint: Path, out: Path) -> Path:
    """Writes the adapted model as a plain one, in the type of its base, with its tokenizer. -> out."""
    if not (checkpoint / "adapter_config.json").is_file():
        raise UserError(
            f"checkpoint is {str(checkpoint)!r}: it holds no adapter (adapter_config.json); "
            "give a checkpoint of a run with lora_rank, such as runs/mine/checkpoints/step-000050"
        )
    if out.exists():
        raise UserError(f"out is {str(out)!r}: it is there already; name a new folder")
    merged, tokenizer = load_merged(checkpoint)
    aside = out.with_name(f".{out.name}.partial")
    try:
        save_model(merged, aside, model_state(merged), stored_dtype(str(merged.name_or_path)))
        tokenizer.save_pretrained(aside)
        os.replace(aside, out)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"out is {str(out)!r}: it cannot be written ({first_line(error)}); name another folder"
        ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return out


def load_merged(checkpoint: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The plain model that a folder of adapters makes of its base, by peft's own merge, and its tokenizer.

    Any adapters of peft's, not only those of a run: the merged model must have the logits of the adapted one.
    """
    config = adapter_config(checkpoint)
    base, tokenizer = load_adapted_base(checkpoint, config)
    adapted = adapted_by(checkpoint, base)
    if config.is_prompt_learning or not hasattr(adapted.base_model, "merge_and_unload"):
        raise UserError(
            f"checkpoint is {str(checkpoint)!r}: adapters of its peft_type ({config.peft_type!s}) are no change of weights, so a plain "
            "model cannot have them; give adapters of another kind, such as LORA"
        )
    expected = some_logits(adapted)
    base, _ = load_adapted_base(checkpoint, config)  # peft changes a base that it adapts
    before = some_logits(base)
    was_tied = untie(base)
    adapted = adapted_by(checkpoint, base)
    try:
        with warnings.catch_warnings(action="ignore"):  # of tied embeddings, which are looked after here
            merged: Any = adapted.merge_and_unload(safe_merge=True)  # pyright: ignore[reportCallIssue]
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"checkpoint is {str(checkpoint)!r}: peft cannot merge its adapters ({first_line(error)}); use them with peft as they are"
        ) from error
    if was_tied:
        tie_again(merged)
    require_same_logits(checkpoint, some_logits(merged), expected, before)
    has_own = any((checkpoint / name).is_file() for name in tokenizer.vocab_files_names.values())
    return merged, AutoTokenizer.from_pretrained(checkpoint) if has_own else tokenizer


def adapter_config(checkpoint: Path) -> PeftConfig:
    try:
        return PeftConfig.from_pretrained(str(checkpoint))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"checkpoint is {str(checkpoint)!r}: its adapter_config.json cannot be read by this peft ({first_line(error)}); give "
            "adapters that it opens"
        ) from None


def load_adapted_base(checkpoint: Path, config: PeftConfig) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """What the adapters were trained on, in float32: of a base in 4 bits what these stand for."""
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


def adapted_by(checkpoint: Path, base: PreTrainedModel) -> PeftModel:
    """The base with all adapters of the folder. peft only warns of weights that are not there and would be random."""
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
    """An output layer of its own, so that what adapts one of input and output embeddings is not merged into both. -> whether it had none."""
    was_tied = model.config.get_text_config().tie_word_embeddings
    if was_tied:
        head: Any = model.get_output_embeddings()
        head.weight = nn.Parameter(head.weight.detach().clone())
    return was_tied


def tie_again(model: PreTrainedModel) -> None:
    """One tensor if both are still equal; the configuration says which."""
    head: Any = model.get_output_embeddings()
    embedding: Any = model.get_input_embeddings()
    is_tied = torch.equal(head.weight, embedding.weight)
    if is_tied:
        head.weight = embedding.weight
    model.config.get_text_config().tie_word_embeddings = model.config.tie_word_embeddings = is_tied


@torch.no_grad()
def some_logits(model: Any) -> Tensor:
    vocabulary = model.get_input_embeddings().weight.shape[0]
    tokens = torch.randint(vocabulary, (1, 48), generator=torch.Generator().manual_seed(0))
    return model(input_ids=tokens, use_cache=False).logits


def require_same_logits(checkpoint: Path, merged: Tensor, adapted: Tensor, base: Tensor) -> None:
    """Within a hundredth of what the adapters change, and a rounding error of float32 (2^-24) grown a thousandfold by the layers."""
    differ, change = (merged - adapted).norm(), (adapted - base).norm()
    if not differ <= 0.01 * change + 1e3 * 2**-24 * adapted.norm():
        raise UserError(
            f"checkpoint is {str(checkpoint)!r}: peft's merge makes another model of it, whose logits differ by {differ:.3g} from those "
            f"with adapters, which change the base's by {change:.3g}; use the adapters with peft as they are"
        )
