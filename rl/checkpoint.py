"""Save and resume. A checkpoint is written aside and renamed, so that what has its name is complete."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from rewards.errors import UserError
from rl.policy import Policy
from rl.step import Learner
from rollout.problems import ProblemStream

# Nothing else has to be saved: every random draw is a function of the run's seed and of these counters.


def save_checkpoint(
    folder: Path, *, step: int, learner: Learner, stream: ProblemStream, tokenizer: PreTrainedTokenizerBase, keep: int
) -> None:
    """The policy in Hugging Face format, the optimiser, the place in the stream; of older checkpoints `keep` - 1 are kept."""
    aside = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    learner.policy.model.save_pretrained(aside)
    tokenizer.save_pretrained(aside)
    torch.save(learner.optimizer.state_dict(), aside / "optimizer.pt")
    if learner.reference is not None and learner.algorithm.refresh_reference_every:
        learner.reference.model.save_pretrained(aside / "reference")
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
    load_weights(learner.policy, folder)
    state = json.loads((folder / "trainer.json").read_text())
    learner.optimizer.load_state_dict(torch.load(folder / "optimizer.pt", weights_only=True))
    if (folder / "reference").is_dir():
        assert learner.reference is not None
        load_weights(learner.reference, folder / "reference")
    stream.cursor = state["cursor"]
    return state["step"]


def load_weights(policy: Policy, folder: Path) -> None:
    saved = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    policy.model.load_state_dict(saved.state_dict())
