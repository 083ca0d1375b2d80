"""What a small run starts from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import rl.view.report
from rl.run.tiny import tiny_model, tiny_tokenizer


def draw_nothing(*args: object) -> str:
    """In place of the report's plots, which take as long as a small run."""
    return "<svg></svg>"


@pytest.fixture(autouse=True)
def _without_plots(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if not request.node.get_closest_marker("plots"):
        monkeypatch.setattr(rl.view.report, "svg_of", draw_nothing)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, untaught, in a folder of the Hugging Face format."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = tiny_tokenizer()
    tiny_model(tokenizer, seed=0, device=torch.device("cpu")).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small sums in a file of GSM8K's columns."""
    path = tmp_path_factory.mktemp("data") / "digits.jsonl"
    rows = [{"question": f"{i}+{i}=", "answer": f"{2 * i}"} for i in range(60)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
