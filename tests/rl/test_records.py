"""What a run writes down is what the model read and wrote, of every group that was sampled."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import torch

import rl.view.metrics
from rewards.score import Outcome, Score
from rl.objective.algorithms import CreditedGroup
from rl.run.run_files import RunRecords, conversation_columns, write_config
from rl.run.tiny import tiny_tokenizer
from rl.settings.config import RunConfig
from rl.settings.resolve import resolve
from rl.update.step import StepResult
from rl.view.report import write_report
from rollout.records import Completion, FinishReason, Problem, Rollout, RolloutGroup, Thinking

TOKENIZER = tiny_tokenizer()


def group(name: str, *values: float, seed: int = 0) -> RolloutGroup:
    problem = Problem(id=name, prompt=f"{name}?", reference="1")
    rollouts = []
    for i, value in enumerate(values):
        completion = Completion(
            token_ids=(1,),
            sampler_logprobs=(0.0,),
            finish_reason=FinishReason.STOP,
            policy_version=0,
            seed=seed + i,
            text=f"{name} {i}",
        )
        score = Score(value, Outcome.CORRECT if value else Outcome.WRONG)
        rollouts.append(Rollout(problem=problem, completion=completion, score=score))
    prompt = tuple(TOKENIZER(f"<|system|>{name}?<|end|>").input_ids)
    return RolloutGroup(problem=problem, prompt_ids=prompt, rollouts=tuple(rollouts))


def test_groups_that_dynamic_sampling_drops_are_written_without_an_advantage(tmp_path: Path) -> None:
    """An audit would not see the answers that all were judged alike, where a faulty verifier shows; a problem may be drawn twice."""
    dropped, trained, again = group("a", 1, 1), group("b", 1, 0), group("a", 0, 1, seed=2)
    advantages = ((dropped, (0.0, 0.0)), (trained, (0.5, -0.5)), (again, (-1.0, 1.0)))
    sampled = [
        CreditedGroup(group=g, rewards=(0.0, 0.0), advantages=tuple(torch.tensor([a]) for a in row))
        for g, row in advantages
    ]
    result = StepResult(groups=sampled[1:], sampled=sampled, metrics={})
    RunRecords(tmp_path, tokenizer=TOKENIZER).write({"step": 1}, result)
    rows = [json.loads(line) for line in (tmp_path / "completions.jsonl").read_text().splitlines()]
    assert [(r["problem_id"], r["completion"], r["in_update"], r["advantage"]) for r in rows] == [
        ("a", "a 0", False, None),
        ("a", "a 1", False, None),
        ("b", "b 0", True, 0.5),
        ("b", "b 1", True, -0.5),
        ("a", "a 0", True, -1.0),
        ("a", "a 1", True, 1.0),
    ]
    assert rows[0]["prompt"] == "<|system|>a?<|end|>"


def test_completions_of_any_size_are_cut_line_by_line_when_a_run_resumes(tmp_path: Path, monkeypatch) -> None:
    """A file of gigabytes does not fit in memory."""
    (tmp_path / "completions.jsonl").write_text("".join(f'{{"step": {n}}}\n' for n in range(1, 5)))
    read: list[str] = []
    lines = rl.view.metrics.complete_lines

    def noted(path: Path):
        for line in lines(path):
            if path.name == "completions.jsonl":
                read.append(line)
                assert len(read) == 1 or (tmp_path / "completions.jsonl.tmp").exists()
            yield line

    monkeypatch.setattr(rl.view.metrics, "complete_lines", noted)
    RunRecords(tmp_path, keep_through=2)
    assert len(read) == 4
    assert (tmp_path / "completions.jsonl").read_text() == '{"step": 1}\n{"step": 2}\n'


def test_the_first_prompt_stands_in_the_report(tmp_path: Path) -> None:
    """With its special tokens, as text: a template may have tags in it."""
    (tmp_path / "metrics.jsonl").write_text("")
    write_config(tmp_path, {**resolve(RunConfig(), "cpu").as_json(), "first_prompt": "<|im_start|>user\n1+1?<script>"})
    page = write_report(tmp_path).read_text()
    assert page.count("&lt;|im_start|&gt;user\n1+1?&lt;script&gt;") == 1 and "First prompt" in page


def test_masked_tokens_are_marked_in_the_text_of_the_whole_conversation() -> None:
    """Tokens are bytes here: a character whose bytes stand on both sides of a boundary is one character of the text."""
    token_ids = tuple(TOKENIZER.encode("äWaitfür!?7"))
    loss_mask = (True, *[False] * 5, *[True] * 4, *[False] * 2, True)
    completion = Completion(
        token_ids=token_ids,
        loss_mask=loss_mask,
        sampler_logprobs=(0.0,) * sum(loss_mask),
        finish_reason=FinishReason.STOP,
        policy_version=0,
        seed=0,
        text="",
        thinking=Thinking(num_tokens=7, num_waits=1),
    )
    found = conversation_columns(completion, TOKENIZER)
    assert found["conversation"] == "äWaitfür!?7"
    assert found["masked"] == [[1, 5], [8, 10]]
    assert found["thinking"] == {"num_tokens": 7, "num_waits": 1, "is_cut": False} and found["tool_use"] is None
    alone = replace(completion, thinking=None, loss_mask=(), sampler_logprobs=(0.0,) * len(token_ids))
    assert conversation_columns(alone, TOKENIZER) == {}
