"""Supervised steps on the problems' own worked solutions, by the same loop as everything else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer

from rewards.errors import UserError
from rl.run.loop import train
from rl.view.metrics import read_metrics
from rollout.demonstrations import demonstrate
from rollout.problems import load_problems
from rollout.prompts import PromptRenderer
from tests.rl.test_loop import options


def written(path: Path, rows: list[dict[str, str]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def worked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sums with GSM8K's answers: worked, then the answer; one of them is wrong, one is longer than a completion may be."""
    rows = [{"question": f"{i}+{i}=", "answer": f"{i}+{i} is\n#### {2 * i}"} for i in range(60)]
    rows[3] = {"question": "3+3=", "worked": "#### 7", "answer": "6"}
    rows[4]["answer"] = "so " * 30 + "\n#### 8"
    return written(tmp_path_factory.mktemp("data") / "worked.jsonl", rows)


def test_the_loss_is_the_mean_over_tokens_of_the_demonstrations(model: Path, worked: Path, tmp_path: Path) -> None:
    """Of one step: -log p of every token of the solutions and of the end, by the model's own forward."""
    run_dir = train(
        options(model, worked, tmp_path, algorithm="sft", group_size=None, max_tokens=24, num_steps=1, eval_size=2)
    )
    rows = [json.loads(line) for line in (run_dir / "completions.jsonl").read_text().splitlines()]
    first = read_metrics(run_dir)[1]
    base, tokenizer = AutoModelForCausalLM.from_pretrained(model), AutoTokenizer.from_pretrained(model)
    problems = {p.id: p for p in load_problems(str(worked))}
    losses = []
    for group in demonstrate(
        [problems[row["problem_id"]] for row in rows], PromptRenderer(tokenizer, style="plain")
    ).groups:
        own = group.rollouts[0].completion.token_ids
        assert tokenizer.decode(own) == group.problem.metadata["worked"] + tokenizer.eos_token
        ids = torch.tensor([*group.prompt_ids, *own])
        logits = base(ids[None]).logits[0, len(group.prompt_ids) - 1 : -1]
        losses.append(cross_entropy(logits, torch.tensor(own), reduction="none"))
    assert len(rows) == 4
    assert first["loss"] == pytest.approx(torch.cat(losses).mean().item(), rel=1e-5)  # float32
    assert (
        not {"kl/sampler", "mismatch/mean", "mismatch/max"} & first.keys()
    )  # nobody sampled: there is no engine to compare


def test_solutions_that_are_wrong_or_too_long_are_left_out_and_told(
    model: Path, worked: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(options(model, worked, tmp_path, algorithm="sft", group_size=None, max_tokens=24, num_steps=20, eval_size=2))
    rows = [json.loads(line) for line in (tmp_path / "completions.jsonl").read_text().splitlines()]
    assert not {"3", "4"} & {row["problem_id"] for row in rows}
    said = " ".join(capsys.readouterr().out.split())
    assert (
        "2 of 58 problems are left out: 0 have no worked solution, of 1 it is not graded as correct, of 1 it is longer"
        in said
    )


def test_bare_answers_are_no_demonstrations(model: Path, digits: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UserError,
        match=r"sft has nothing to learn from its 50 problems: 0 have no .* of 50 it is not graded as correct",
    ):
        train(options(model, digits, tmp_path, algorithm="sft", group_size=None))
