"""Writes models in Hugging Face format as their base was stored: in its floating type and with its generation settings."""

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
    """torch.save through a file of Python's: what the disk refuses is then an OSError at the root, and not a RuntimeError alone."""
    with path.open("wb") as file:
        torch.save(tensors, file)


def stored_dtype(source: str | Path) -> torch.dtype:
    """The floating type that a model's config.json names; float32 where it names none."""
    config = AutoConfig.from_pretrained(source)
    named = config.dtype or config.get_text_config().dtype or torch.float32
    return getattr(torch, named) if isinstance(named, str) else named


def model_state(model: PreTrainedModel) -> dict[str, Tensor]:
    """The model's tensors, each once: tied ones under their first name. All processes must ask for it."""
    every, once = (dict(model.named_parameters(remove_duplicate=d)).keys() for d in (False, True))
    state = model.state_dict(keep_vars=True)
    return {name: full_on_main(t).detach() for name, t in state.items() if name not in every - once}


def save_model(model: PreTrainedModel, folder: Path, state: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    """state: of model_state(). dtype: the type to store floating tensors in.

    transformers loads generation settings that it calls invalid, and refuses to save them: they are written as they are.
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
