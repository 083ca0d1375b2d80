"""A run's folder: opened for one run at a time, and read to go on with the run that is in it."""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from rewards.errors import UserError
from rl.run.checkpoint import checkpoints, load_checkpoint, remove_old, set_aside_damaged
from rl.settings.config import RunConfig, read_config
from rl.update.learner import Learner
from rl.view.progress import Progress
from rollout.problems import ProblemStream
from rollout.records import Problem

LOCK = ".lock"
SAME_ON_RESUME = ("model", "dataset", "eval_dataset", "eval_size", "algorithm", "value", "seed", "one_step_ahead")
SAME_ON_RESUME += ("group_size", "problems_per_step", "learning_rate")
SAME_ON_RESUME += ("lora_rank", "lora_alpha", "lora_targets", "lora_base", "optimizer")


class FolderLock:
    """Held by the one run that writes in a folder. The system releases it when the process ends, however it ends.

    A lock of the process's own (lockf): a child that outlives it for a moment does not hold it.
    """

    def __init__(self) -> None:
        self.file: IO[str] | None = None

    def take(self, run_dir: Path) -> bool:
        """Whether nobody else has it."""
        file = (run_dir / LOCK).open("w")
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return False
        self.file = file
        return True

    def release(self) -> None:
        if self.file is not None:
            self.file.close()
            self.file = None


def opened(config: RunConfig, lock: FolderLock) -> RunConfig:
    """With its defaults written out, and the run's folder there, writable and locked.

    Where no folder is named, the next that no other run has, be it a run that starts at this moment.
    """
    resolved = config.resolved()
    while not claimed(resolved, lock):
        if config.run_dir is not None or config.resume:
            raise UserError(
                f"run_dir is {str(resolved.run_dir)!r}: another run is going on in it; wait for it, or name another folder"
            )
        resolved = config.resolved(after=resolved.run_dir)
    return resolved


def claimed(config: RunConfig, lock: FolderLock) -> bool:
    """Whether the folder is this run's now."""
    assert config.run_dir is not None
    run_dir = config.run_dir
    is_taken = (run_dir / "config.json").exists()
    if config.resume and not is_taken:
        raise UserError(f"run_dir is {str(run_dir)!r}: it holds no run to resume; run it without --resume")
    if is_taken and not config.resume:
        raise UserError(f"run_dir is {str(run_dir)!r}: it holds a run already; add --resume, or name another folder")
    try:
        (run_dir / "checkpoints").mkdir(parents=True, exist_ok=True)
        (run_dir / "checkpoints" / ".writable").touch()
        (run_dir / "checkpoints" / ".writable").unlink()
        return lock.take(run_dir)
    except OSError as error:
        raise UserError(
            f"run_dir is {str(run_dir)!r}: it cannot be written ({error.strerror}); name another folder"
        ) from None


def fingerprints(training: Sequence[Problem], held_out: Sequence[Problem]) -> dict[str, str]:
    """Of the data's contents, in order: its name may stay while they change."""
    parts = {"training": training, "held_out": held_out}
    rows = {name: [(p.id, p.messages, p.reference) for p in problems] for name, problems in parts.items()}
    return {
        name: hashlib.blake2b(json.dumps(row, default=dict, sort_keys=True).encode(), digest_size=8).hexdigest()
        for name, row in rows.items()
    }


def require_same_data(run_dir: Path, data: Mapping[str, str]) -> None:
    """As the run began with, if it wrote that down: else what it was trained on might be held out now."""
    written = read_config(run_dir).get("data", data)
    changed = " and ".join(name.replace("_", "-") for name in data if written.get(name) != data[name])
    if changed:
        raise UserError(
            f"dataset: its {changed} problems are other ones than those that the run in {str(run_dir)!r} began with (contents or "
            "order); resume with the same data, or start a new run"
        )


def resume(config: RunConfig, learner: Learner, stream: ProblemStream, progress: Progress) -> int:
    """Back to the last checkpoint of the run folder that is as it was saved; to the beginning where there is none. -> its step."""
    assert config.run_dir is not None
    written = read_config(config.run_dir)
    # An option younger than the run had its default; "auto" is younger than float32.
    now, default = config.as_json(), RunConfig().on("cpu").as_json()
    for name in SAME_ON_RESUME:
        was = written.get(name, default[name])
        if was != now[name]:
            raise UserError(
                f"{name} is {now[name]!r}: the run in {str(config.run_dir)!r} has {was!r}; resume with that"
            )
    run_dir = config.run_dir
    for wrong in learner.runtime.broadcast_from_main(lambda: list(set_aside_damaged(run_dir))):
        progress.message(wrong)
    found = checkpoints(run_dir)
    if not found:
        progress.message("there is no checkpoint to resume from: the run begins again")
        return 0
    if learner.runtime.is_main:  # a run that was killed between saving and removing has one too many
        remove_old(run_dir, config.save_total_limit)
    step = load_checkpoint(found[-1], learner, stream)
    if step >= (config.num_steps or 0):
        progress.message(
            f"no step is left: num_steps is {config.num_steps} and the run has done {step}; give a larger --num-steps"
        )
    return step
