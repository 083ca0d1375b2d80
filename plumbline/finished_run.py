"""`Run`: what a training has left in its folder, read when it is asked for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rewards.errors import UserError
from rewards.functions.source import KEPT
from rl.view.metrics import read_metrics

if TYPE_CHECKING:
    from pandas import DataFrame
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Run:
    """A run in its folder, such as Run("runs/mine") for one that was trained before.

    folder: holds config.json, config.yaml, metrics.jsonl, completions.jsonl, report.html and checkpoints/.
    """

    folder: Path
    _functions: Mapping[str, Any] = field(
        default_factory=dict, repr=False, compare=False
    )  # rewards of the program's own

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", Path(self.folder))
        if not (self.folder / "config.json").is_file():
            raise UserError(f"folder is {str(self.folder)!r}: it holds no run; name a folder with a config.json")

    @property
    def metrics(self) -> list[dict[str, float | None]]:
        """A dict for each step, from step 0, the base model. docs/metrics.md describes the keys."""
        return read_metrics(self.folder)

    @property
    def metrics_frame(self) -> DataFrame:
        """The metrics as a pandas DataFrame with a row for each step."""
        import pandas  # takes half a second, and the datasets library brings it

        return pandas.DataFrame(self.metrics).set_index("step")

    @property
    def completions(self) -> list[dict[str, Any]]:
        """The recorded completions with their scores, in the order of training."""
        path = self.folder / "completions.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        return [json.loads(line) for line in lines]

    @property
    def checkpoint(self) -> Path:
        """The folder of the last checkpoint, which holds the model in Hugging Face format."""
        from rl.run.checkpoint import checkpoints

        found = checkpoints(self.folder)
        if not found:
            raise UserError(
                f"folder is {str(self.folder)!r}: it holds no checkpoint; the run ended before it saved one"
            )
        return found[-1]

    @cached_property
    def model(self) -> PreTrainedModel:
        """The trained model on the CPU, adapters merged."""
        return self._model_and_tokenizer[0]

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer."""
        return self._model_and_tokenizer[1]

    def evaluate(self, dataset: Any = None, **options: Any) -> dict[str, float | None]:
        """The means that `plumbline evaluate` prints, by measure, such as "greedy accuracy".

        dataset: problems, named as in training, or the rows themselves; without it those that the run held out. options: as for the command.
        """
        from plumbline.rows import written_rows
        from rl.command.evaluate_model import evaluate_model
        from rl.settings.config_file import nearest, python_value, specs_of
        from rl.settings.options import EvaluateOptions
        from rl.view.progress import Progress

        specs = specs_of(EvaluateOptions)
        for name in sorted(options.keys() - specs.keys()):
            raise UserError(f"{name} is not an option of an evaluation; {nearest(name, specs)}")
        given = {name: python_value(name, value, specs) for name, value in options.items()}
        named = None if dataset is None else written_rows(dataset)
        if isinstance(named, tuple):
            raise UserError(f"dataset is {list(named)!r}: an evaluation takes one name or file, or the rows themselves")
        KEPT.update(self._functions)
        with Progress(0) as progress:
            found = evaluate_model(
                EvaluateOptions(**{"model": str(self.checkpoint), "dataset": named, **given}), progress
            )
        return {name: None if estimate is None else estimate.mean for name, estimate in found.items()}

    @cached_property
    def _model_and_tokenizer(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        import torch

        from rl.policy.families import family_of
        from rl.policy.merge import load_merged

        folder = self.checkpoint
        if (folder / "adapter_config.json").is_file():
            return load_merged(folder)
        return family_of(str(folder)).load(str(folder), torch.device("cpu"))
