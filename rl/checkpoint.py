"""Save and resume. A checkpoint is written aside and renamed, so that what has its name is complete."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from rewards.errors import UserError
from rl.step import Learner
from rollout.collect import Collected
from rollout.problems import ProblemStream

WAITING = "waiting.pickle"  # completions that the next step will be trained on, sampled one step ahead

# Nothing else has to be saved: every random draw is a function of the run's seed and of these counters.


def save_checkpoint(
    folder: Path,
    *,
    step: int,
    learner: Learner,
    stream: ProblemStream,
    tokenizer: PreTrainedTokenizerBase,
    keep: int,
    waiting: Collected | None = None,
) -> None:
    """The policy (a model, or the adapters to one), its critic, the optimiser, the place in the stream; of older checkpoints `keep` - 1 are kept."""
    aside = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    learner.policy.save(aside)
    critic = learner.critic or learner.policy.value_head
    if critic is not None:
        critic.save(aside)
    tokenizer.save_pretrained(aside)
    torch.save(learner.optimizer.state_dict(), aside / "optimizer.pt")
    every = learner.algorithm.refresh_reference_every
    if learner.reference is not None and every and step >= every:  # before its first refresh it is the base
        learner.reference.save(aside / "reference")
    if waiting is not None:
        (aside / WAITING).write_bytes(pickle.dumps(waiting))
    (aside / "trainer.json").write_text(json.dumps({"step": step, "cursor": stream.cursor}))
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(aside, folder)
    for old in checkpoints(folder.parent.parent)[:-keep]:
        shutil.rmtree(old)


def checkpoints(run_dir: Path) -> list[Path]:
    """The complete checkpoints of a run, the oldest first."""
    return sorted((run_dir / "checkpoints").glob("step-*"))


def last_checkpoint(run_dir: Path) -> Path:
    found = checkpoints(run_dir)
    if not found:
        raise UserError(f"run_dir is {str(run_dir)!r}: it holds no checkpoint to resume from; run it without --resume")
    return found[-1]


def load_checkpoint(folder: Path, learner: Learner, stream: ProblemStream) -> int:
    """Puts everything back as it was saved. -> the step."""
    if (folder / "reference").is_dir():  # it was the policy once
        learner.policy.load(folder / "reference")
        learner.reference = learner.policy.frozen_copy()
    learner.policy.load(folder)
    critic = learner.critic or learner.policy.value_head
    if critic is not None:
        critic.load(folder)
    state = json.loads((folder / "trainer.json").read_text())
    learner.optimizer.load_state_dict(torch.load(folder / "optimizer.pt", weights_only=True))
    stream.cursor = state["cursor"]
    return state["step"]


def load_waiting(folder: Path) -> Collected | None:
    """What was sampled one step ahead. A pickle: resume only runs that you trust."""
    path = folder / WAITING
    return pickle.loads(path.read_bytes()) if path.exists() else None
