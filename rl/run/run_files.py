"""Writes a run's files: config.json, metrics.jsonl, completions.jsonl."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from rl.processes.runtime import cpu_cores
from rl.update.step import StepResult
from rl.view.metrics import MetricsWriter, keep_lines, write_whole
from rollout.collected_json import tool_use_to_json
from rollout.records import Completion

PACKAGES = ("torch", "transformers", "accelerate", "peft", "math-verify", "vllm")


class RunRecords:
    """Appends to metrics.jsonl and completions.jsonl.

    keep_through: the step that a resumed run continues from; records of later steps are removed. tokenizer: decodes the prompts of
    completions.jsonl.
    """

    def __init__(
        self, run_dir: Path, keep_through: int | None = None, tokenizer: PreTrainedTokenizerBase | None = None
    ) -> None:
        self.metrics = MetricsWriter(run_dir, keep_through)
        self.completions, self.tokenizer = run_dir / "completions.jsonl", tokenizer
        if self.completions.exists():
            keep_lines(self.completions, lambda line: json.loads(line)["step"] <= (keep_through or 0))

    def write(self, metrics: Mapping[str, float | None], result: StepResult | None = None) -> None:
        self.metrics.write(metrics)
        if result is not None:
            assert self.tokenizer is not None
            step, tokenizer = int(metrics["step"] or 0), self.tokenizer
            with self.completions.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(row) + "\n" for row in completion_rows(step, result, tokenizer))


def completion_rows(step: int, result: StepResult, tokenizer: PreTrainedTokenizerBase) -> Iterator[dict[str, Any]]:
    """Rows of completions.jsonl for every sampled group. Groups that dynamic sampling left out of the update have no advantage."""
    trained = {id(credited) for credited in result.groups}
    for credited in result.sampled:
        group, in_update = credited.group, id(credited) in trained
        prompt = tokenizer.decode(list(group.prompt_ids))
        for rollout, _, advantages in credited.rows():
            completion, score = rollout.completion, rollout.score
            yield {
                "step": step,
                "problem_id": group.problem.id,
                "prompt": prompt,
                "reference": group.problem.reference,
                "completion": completion.text,
                "value": score.value,
                "outcome": score.outcome.value,
                "parts": dict(score.parts),
                "detail": score.detail,
                "length": completion.num_chosen,
                "finish_reason": completion.finish_reason.value,
                "policy_version": completion.policy_version,
                "in_update": in_update,
                "advantage": advantages.mean().item() if in_update and advantages is not None else None,
                **conversation_columns(completion, tokenizer),
            }


def conversation_columns(completion: Completion, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """What is recorded beside the graded text of a rollout with tools or a thinking budget: all tokens as text, where in it the masked
    ones stand, as [start, end] in characters, and what the rollout did. Nothing for rollouts of one turn that the policy wrote alone."""
    if completion.tool_use is None and completion.thinking is None and all(completion.loss_mask):
        return {}

    def text(num_tokens: int) -> str:
        return str(tokenizer.decode(list(completion.token_ids[:num_tokens]), clean_up_tokenization_spaces=False))

    masked, done = [], 0
    for is_chosen, run in groupby(completion.loss_mask):
        start, done = done, done + len(list(run))
        if not is_chosen:
            masked.append([len(text(start)), len(text(done))])
    return {
        "conversation": text(len(completion.token_ids)),
        "masked": masked,
        "tool_use": tool_use_to_json(completion.tool_use),
        "thinking": None if completion.thinking is None else asdict(completion.thinking),
    }


def write_config(run_dir: Path, config: Mapping[str, Any]) -> None:
    """Writes config.json, with the versions of packages and the hardware.

    config: the run's options, and what was found at set-up: by which paths the update and the sampler run the model, the first
    prompt, fingerprints of the problems.
    """
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    hardware = {"cpu_cores": cpu_cores(), "machine": platform.machine(), "gpu": gpu}
    written = {**config, "resume": False, "versions": versions, "hardware": hardware}
    write_whole(run_dir / "config.json", json.dumps(written, indent=2) + "\n")
