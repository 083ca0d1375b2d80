"""What a run writes down while it goes: config.json, metrics.jsonl, completions.jsonl."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from rl.config import RunConfig
from rl.metrics import MetricsWriter, complete_lines, write_whole
from rl.runtime import cpu_cores
from rl.step import StepResult

PACKAGES = ("torch", "transformers", "accelerate", "peft", "math-verify", "vllm")


class RunRecords:
    """The run's files. A resumed run goes on from `keep_through`; what was written of later steps is cut off."""

    def __init__(self, run_dir: Path, keep_through: int | None = None) -> None:
        self.metrics = MetricsWriter(run_dir, keep_through)
        self.completions = run_dir / "completions.jsonl"
        if self.completions.exists():
            lines = complete_lines(self.completions)
            kept = [line for line in lines if json.loads(line)["step"] <= (keep_through or 0)]
            write_whole(self.completions, "".join(kept))

    def write(self, metrics: Mapping[str, float | None], result: StepResult | None = None) -> None:
        self.metrics.write(metrics)
        if result is not None:
            with self.completions.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(row) + "\n" for row in completion_rows(int(metrics["step"] or 0), result))


def completion_rows(step: int, result: StepResult) -> Iterator[dict[str, Any]]:
    for i, group in enumerate(result.groups):
        prompt = "\n".join(message["content"] for message in group.problem.messages)
        for j, rollout in enumerate(group.rollouts):
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
                "advantage": None if result.advantages is None else result.advantages[i][j].mean().item(),
            }


def write_config(run_dir: Path, config: RunConfig, paths: Mapping[str, str] | None = None) -> None:
    """paths: how the update and the sampler run the model, and why not faster."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    hardware = {"cpu_cores": cpu_cores(), "machine": platform.machine(), "gpu": gpu}
    written = {**config.as_json(), "paths": dict(paths or {}), "versions": versions, "hardware": hardware}
    write_whole(run_dir / "config.json", json.dumps(written, indent=2) + "\n")
