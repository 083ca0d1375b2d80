"""A run's folder: locks it for one run at a time, and resumes the run in it."""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from rewards.errors import UserError
from rl.run.checkpoint import checkpoints, load_checkpoint, remove_old, set_aside_damaged
from rl.settings.config import RunConfig
from rl.settings.declare import FixedOnResume, declared
from rl.settings.resolve import RunSettings, resolve
from rl.settings.written_config import holds_run, read_config
from rl.update.learner import Learner
from rl.view.progress import Progress
from rollout.problem_stream import ProblemStream
from rollout.records import Problem

LOCK = ".lock"


class FolderLock:
    """Lock of the one run that writes in a folder. The system releases it however the process ends.

    The lock belongs to the process (lockf): a child process that outlives it for a moment does not hold it.
    """

    def __init__(self) -> None:
        self.file: IO[str] | None = None

    def take(self, run_dir: Path) -> bool:
        """Takes the lock of a folder. -> False if another process has it."""
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


def claim_folder(config: RunConfig, lock: FolderLock) -> Path:
    """The run's folder, which exists now, is writable and is locked by this process.

    Without run_dir the first folder that no other run has, including one that starts at this moment.
    """
    for run_dir in config.possible_run_dirs():
        if claimed(run_dir, config.resume, lock):
            return run_dir
    run_dir = next(config.possible_run_dirs())  # the only one: it is given, or it is the one to resume
    raise UserError(f"run_dir is {str(run_dir)!r}: another run is using it; wait until it ends, or name another folder")


def claimed(run_dir: Path, is_resumed: bool, lock: FolderLock) -> bool:
    """Takes the lock on the folder if it is free. -> whether this process has it.

    Raises UserError if the folder holds a run without --resume, or none with --resume.
    """
    is_taken = holds_run(run_dir)
    if is_resumed and not is_taken:
        raise UserError(f"run_dir is {str(run_dir)!r}: it holds no run to resume; run it without --resume")
    if is_taken and not is_resumed:
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
    """Hashes of the problems' contents and order, which may change under the same name."""
    parts = {"training": training, "held_out": held_out}
    rows = {name: [(p.id, p.messages, p.reference) for p in problems] for name, problems in parts.items()}
    return {
        name: hashlib.blake2b(json.dumps(row, default=dict, sort_keys=True).encode(), digest_size=8).hexdigest()
        for name, row in rows.items()
    }


def require_same_data(run_dir: Path, data: Mapping[str, str]) -> None:
    """Raises UserError if a resumed run's problems have changed: problems that it was trained on might be held out now."""
    written = read_config(run_dir).get("data", data)
    changed = " and ".join(name.replace("_", "-") for name in data if written.get(name) != data[name])
    if changed:
        raise UserError(
            f"dataset: its {changed} problems are other ones than those that the run in {str(run_dir)!r} started with (contents or "
            "order); resume with the same data, or start a new run"
        )


def resume(settings: RunSettings, learner: Learner, stream: ProblemStream, progress: Progress) -> int:
    """Loads the run folder's last undamaged checkpoint. -> its step; 0 if there is none, and the run begins anew."""
    run_dir = settings.run_dir
    written = read_config(run_dir)
    # A run that is older than an option had its default, on a CPU: data types other than float32 are younger.
    now, default = settings.as_json(), resolve(RunConfig(), "cpu").as_json()
    for name in declared(RunConfig, FixedOnResume):
        was = written.get(name, default[name])
        if was != now[name]:
            raise UserError(f"{name} is {now[name]!r}: the run in {str(run_dir)!r} has {was!r}; resume with that")
    for wrong in learner.runtime.broadcast_from_main(lambda: list(set_aside_damaged(run_dir))):
        progress.message(wrong)
    found = checkpoints(run_dir)
    if not found:
        progress.message("there is no checkpoint to resume from: the run begins again")
        return 0
    if learner.runtime.is_main:  # a run that was killed between saving and removing has one too many
        remove_old(run_dir, settings.save_total_limit)
    step = load_checkpoint(found[-1], learner, stream)
    if step >= settings.num_steps:
        progress.message(
            f"no step is left: num_steps is {settings.num_steps} and the run has done {step}; give a larger --num-steps"
        )
    return step
