"""A run's folder: opened for one run at a time, and read to go on with the run that is in it."""

from __future__ import annotations

import json

from rewards.errors import UserError
from rl.checkpoint import checkpoints, load_checkpoint, remove_old, set_aside_damaged
from rl.config import RunConfig
from rl.learner import Learner
from rl.progress import Progress
from rollout.problems import ProblemStream

SAME_ON_RESUME = ("model", "dataset", "eval_dataset", "eval_size", "algorithm", "value", "seed", "one_step_ahead")
SAME_ON_RESUME += ("group_size", "problems_per_step", "learning_rate")
SAME_ON_RESUME += ("lora_rank", "lora_alpha", "lora_targets", "lora_base", "optimizer")


def opened(config: RunConfig) -> RunConfig:
    """The same, with the run's folder there and writable; a new one unless the run is resumed or one is named."""
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
    except OSError as error:
        raise UserError(
            f"run_dir is {str(run_dir)!r}: it cannot be written ({error.strerror}); name another folder"
        ) from None
    return config


def resume(config: RunConfig, learner: Learner, stream: ProblemStream, progress: Progress) -> int:
    """Back to the last checkpoint of the run folder that is as it was saved; to the beginning where there is none. -> its step."""
    assert config.run_dir is not None
    written = json.loads((config.run_dir / "config.json").read_text(encoding="utf-8"))
    # An option younger than the run had its default; "auto" is younger than float32.
    now, default = config.as_json(), RunConfig().on("cpu").as_json()
    for name in SAME_ON_RESUME:
        was = written.get(name, default[name])
        if was != now[name]:
            raise UserError(
                f"{name} is {now[name]!r}: the run in {str(config.run_dir)!r} has {was!r}; resume with that"
            )
    run_dir = config.run_dir
    for wrong in learner.runtime.from_main(lambda: list(set_aside_damaged(run_dir))):
        progress.message(wrong)
    found = checkpoints(run_dir)
    if not found:
        progress.message("there is no checkpoint to resume from: the run begins again")
        return 0
    if learner.runtime.is_main:  # a run that was killed between saving and removing has one too many
        remove_old(run_dir, config.save_total_limit)
    return load_checkpoint(found[-1], learner, stream)
