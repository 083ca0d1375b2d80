"""grpo-process from end to end: what the lines of a completion are worth reaches the weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rl.run.loop import train
from rl.run.tiny import CHAT_TEMPLATE, END, PAD, tiny_model
from tests.rl.test_loop import options

FALSE = ("1+1=3\n", "2+1=2\n", "2+2=3\n")
LINES = (*FALSE, "1+1=2\n", "1+2=3\n", "2+2=4\n", "2*1=2\n", "1+0=1\n")


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that writes whole lines, since each is a token. It gives no final answer: every outcome is 0."""
    symbols = ["1", "2", "+", "=", "Ċ"]
    made = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(symbols)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([END, PAD])
    made.add_tokens([AddedToken(line, normalized=False) for line in LINES])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token=END, pad_token=PAD, chat_template=CHAT_TEMPLATE, model_max_length=256
    )
    folder = tmp_path_factory.mktemp("writer")
    tiny_model(tokenizer, seed=0, device=torch.device("cpu")).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def sums(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "sums.jsonl"
    rows = [{"question": f"{a}+{b}=", "answer": "7"} for a in (1, 2, 11, 12) for b in (1, 2, 21, 22)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def written(writer: Path, sums: Path, run_dir: Path, algorithm: str, num_steps: int) -> list[dict[str, Any]]:
    """What the run has written down of its completions."""
    config = options(
        writer, sums, run_dir, algorithm=algorithm, num_steps=num_steps, problems_per_step=4, group_size=16, eval_size=2,
        eval_every=100, learning_rate=3e-3,
    )  # fmt: skip
    train(config)
    return [json.loads(line) for line in (run_dir / "completions.jsonl").read_text().splitlines()]


def share_false(rows: list[dict[str, Any]]) -> float:
    lines = [line for row in rows for line in row["completion"].split("\n") if line + "\n" in LINES]
    return sum(f"{line}\n" in FALSE for line in lines) / len(lines)


def test_a_policy_learns_from_its_lines_alone(writer: Path, sums: Path, tmp_path: Path) -> None:
    """Every outcome is 0, from which plain GRPO learns nothing. Three of the eight lines are false: about that share at first,
    and less than half of it after six steps."""
    outcome = written(writer, sums, tmp_path / "outcome", "grpo", 1)
    assert {(row["value"], row["advantage"]) for row in outcome} == {(0.0, 0.0)}
    process = written(writer, sums, tmp_path / "process", "grpo-process", 6)
    assert {row["value"] for row in process} == {0.0}
    assert share_false(process[-64:]) < share_false(process[:64]) / 2
