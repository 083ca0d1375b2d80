"""What a small run starts from."""

from __future__ import annotations

import json
from pathlib import Path
from string import ascii_letters

import pytest
import torch

import rl.pipeline.pipeline
import rl.view.report
from rewards.math_answer import MathVerifier
from rl.run.tiny import tiny_model, tiny_tokenizer
from rl.settings.config import RunConfig


def draw_nothing(*args: object) -> str:
    """In place of the report's plots, which take as long as a small run."""
    return "<svg></svg>"


@pytest.fixture(autouse=True)
def _without_plots(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if not request.node.get_closest_marker("plots"):
        monkeypatch.setattr(rl.view.report, "svg_of", draw_nothing)
        monkeypatch.setattr(rl.pipeline.pipeline, "stages_figure", draw_nothing)


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


@pytest.fixture
def config(model: Path, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    """Of the runs of a pipeline: short, and with a reward that an untaught model gets half of the time."""
    from tests.rl.test_loop import odd_lengths, options

    monkeypatch.setattr(MathVerifier, "verify_batch", odd_lengths)
    ends = tuple(ascii_letters)  # an untaught model hardly ever writes the token that ends a turn
    return options(model, digits, tmp_path / "pipeline", save_every=1, eval_every=3, stop_strings=ends)
