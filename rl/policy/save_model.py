"""Saves models in Hugging Face format, with the floating-point dtype and the generation settings of their base."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, GenerationConfig, PreTrainedModel

from rewards.errors import UserError, first_line
from rl.processes.sharding import full_on_main

GENERATION_CONFIG = "generation_config.json"


def save_tensors(tensors: Any, path: Path) -> None:
    """torch.save to a file object, so that a disk error has an OSError as its cause; torch alone raises a bare RuntimeError."""
    with path.open("wb") as file:
        torch.save(tensors, file)


def stored_dtype(source: str | Path) -> torch.dtype:
    """The floating-point dtype in a model's config.json; float32 if it has none."""
    config = AutoConfig.from_pretrained(source)
    named = config.dtype or config.get_text_config().dtype or torch.float32
    return getattr(torch, named) if isinstance(named, str) else named


def model_state(model: PreTrainedModel) -> dict[str, Tensor]:
    """The model's tensors, tied ones once under their first name. All processes must call it."""
    every, once = (dict(model.named_parameters(remove_duplicate=d)).keys() for d in (False, True))
    state = model.state_dict(keep_vars=True)
    return {name: full_on_main(t).detach() for name, t in state.items() if name not in every - once}


def save_model(model: PreTrainedModel, folder: Path, state: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    """Writes a model and its generation settings. state: from model_state(). dtype: of the floating-point tensors in the files.

    The generation settings are written separately and unchanged: transformers loads invalid ones but refuses to save them.
    """
    settings, model.generation_config = model.generation_config, GenerationConfig()
    try:
        stored = {name: t.to(dtype) if t.is_floating_point() else t for name, t in state.items()}
        model.save_pretrained(folder, state_dict=stored)
        if dtype != model.dtype:
            config = copy.deepcopy(model.config)
            config.dtype = dtype
            config.save_pretrained(folder)
    except ValueError as error:
        raise UserError(
            f"model is {model.name_or_path!r}: transformers refuses to save it ({first_line(error)}); fix its config.json"
        ) from error
    finally:
        model.generation_config = settings
    if settings is not None:
        settings.to_json_file(folder / GENERATION_CONFIG)
