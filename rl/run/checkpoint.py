"""Saves and loads checkpoints. Each is written to a temporary folder and renamed, so that every named checkpoint is complete.

A checkpoint has the checksums of its files (`sha256sum -c SHA256SUMS` checks them), and a damaged one is not resumed from.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import PreTrainedTokenizerBase

from rewards.errors import UserError, first_line
from rl.policy.save_model import save_tensors
from rl.processes.sharding import full_state, load_full_state
from rl.update.learner import Learner
from rl.view.model_card import CARD
from rollout.collect import Collected
from rollout.collected_json import collected_from_json, collected_to_json
from rollout.problem_memory import ProblemMemory
from rollout.problem_stream import ProblemStream

WAITING = "waiting.json"  # completions of the next step, sampled one step ahead
PASS_RATES = "pass_rates.jsonl"  # the memory of the stream, a line for each problem that was drawn
CRITIC_FOLDER = "critic"  # a folder of its own, since engines load every safetensors file beside the model's
REFERENCE_FOLDER = "reference"
REWARD_MODEL_FOLDER = "reward-model"
CHECKSUMS = "SHA256SUMS"

# Nothing else has to be saved: every random draw is a function of the run's seed and the saved counters.


def save_checkpoint(
    folder: Path,
    *,
    step: int,
    learner: Learner,
    stream: ProblemStream,
    tokenizer: PreTrainedTokenizerBase,
    keep: int,
    waiting: Collected | None = None,
    card: str = "",
) -> None:
    """Saves policy (all weights, or the adapters), critic, optimizer, a reward model that is trained, and the stream's positions and
    memory. Keeps the `keep` newest checkpoints.

    card: text of the model card, which has no checksum, because people edit it. Every process must call it; the main process writes.
    """
    every = learner.algorithm.refresh_reference_every
    reference = learner.reference if every and step >= every else None  # before its first refresh it is the base
    policy_state, optimizer_state = learner.policy.state(), full_state(learner.optimizer)
    reference_state = {} if reference is None else reference.state()
    if not learner.runtime.is_main:
        return
    aside = folder.with_name(f".{folder.name}.partial")
    with writing(folder.parent.parent, aside):
        shutil.rmtree(aside, ignore_errors=True)
        learner.policy.save(aside, policy_state)
        critic = learner.critic or learner.policy.value_head
        if critic is not None:
            (aside / CRITIC_FOLDER).mkdir()
            critic.save(aside / CRITIC_FOLDER)
        tokenizer.save_pretrained(aside)
        save_tensors(optimizer_state, aside / "optimizer.pt")
        if reference is not None:
            reference.save(aside / REFERENCE_FOLDER, reference_state)
        if learner.reward_trainer is not None:
            learner.reward_trainer.save(aside / REWARD_MODEL_FOLDER)
        if waiting is not None:
            (aside / WAITING).write_text(json.dumps(collected_to_json(waiting)), encoding="utf-8")
        (aside / PASS_RATES).write_text(stream.memory.to_lines(), encoding="utf-8")
        counters = {"step": step, "cursor": stream.state(), "skipped_in_a_row": learner.skipped_in_a_row}
        (aside / "trainer.json").write_text(json.dumps(counters))
        (aside / CARD).unlink(missing_ok=True)  # peft's template of one
        sums = {path: checksum(path) for path in files_of(aside)}
        (aside / CHECKSUMS).write_text("".join(f"{s}  {path.relative_to(aside)}\n" for path, s in sums.items()))
        if card:
            (aside / CARD).write_text(card, encoding="utf-8")
        for path in (*files_of(aside), aside):
            flush(path)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(aside, folder)
        flush(folder.parent)
    remove_old(folder.parent.parent, keep)


def try_saving(run_dir: Path, learner: Learner, stream: ProblemStream, tokenizer: PreTrainedTokenizerBase) -> None:
    """Saves a checkpoint and removes it, so that a failure to save shows before there is work to lose.

    Every process must call it.
    """
    trial = run_dir / "checkpoints" / ".trial"
    save_checkpoint(trial, step=0, learner=learner, stream=stream, tokenizer=tokenizer, keep=1)
    if learner.runtime.is_main:
        shutil.rmtree(trial)


def remove_old(run_dir: Path, keep: int) -> None:
    """Removes all but the `keep` newest checkpoints."""
    for old in checkpoints(run_dir)[:-keep]:
        shutil.rmtree(old)


@contextmanager
def writing(run_dir: Path, aside: Path | None = None) -> Iterator[None]:
    """Turns an error of the disk in the block into a UserError, and removes the temporary folder `aside`."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:  # from Python, safetensors, torch
        if aside is not None:
            shutil.rmtree(aside, ignore_errors=True)
        if not is_of_the_disk(error):
            raise
        found = checkpoints(run_dir)
        stands = f"{found[-1].name} is complete" if found else "there is no checkpoint yet"
        raise UserError(
            f"run_dir is {str(run_dir)!r}: it could not be written ({first_line(error)}); {stands}. Fix that (free space, permissions) "
            "and continue with --resume: lost steps are recomputed and give the same result"
        ) from error


def is_of_the_disk(error: BaseException | None) -> bool:
    """Whether an OSError is the cause: safetensors names it in its message, torch raises another error while it handles it."""
    if isinstance(error, SafetensorError):
        return "os error" in str(error)
    return isinstance(error, OSError) or (error is not None and is_of_the_disk(error.__cause__ or error.__context__))


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def flush(path: Path) -> None:
    """Writes cached data to the disk (fsync), so that the files are whole if the machine loses power after the rename."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def checkpoints(run_dir: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    return sorted((run_dir / "checkpoints").glob("step-*"))


def set_aside_damaged(run_dir: Path) -> Iterator[str]:
    """Renames damaged checkpoints, from the newest to the first undamaged one. -> a message for each."""
    for folder in reversed(checkpoints(run_dir)):
        wrong = damage(folder)
        if wrong is None:
            return
        os.replace(folder, folder.with_name(f"damaged-{folder.name}"))
        yield f"{folder.name} is damaged ({wrong}) and is not used; it is renamed to damaged-{folder.name}"


def damage(folder: Path) -> str | None:
    """What differs from the saved checksums; None for an undamaged checkpoint."""
    try:
        lines = (folder / CHECKSUMS).read_text(encoding="utf-8").splitlines()
        expected = {name: sum for sum, _, name in (line.partition("  ") for line in lines)}
        wrong = [name for name, sum in expected.items() if checksum(folder / name) != sum]
    except (OSError, ValueError) as error:
        return str(error)
    if not expected:
        return f"{CHECKSUMS} is empty"
    return f"wrong checksum of {', '.join(wrong)}" if wrong else None


def load_checkpoint(folder: Path, learner: Learner, stream: ProblemStream) -> int:
    """Loads everything that save_checkpoint saved. -> the step."""
    if (folder / REFERENCE_FOLDER).is_dir():  # after a refresh the reference is a former policy
        assert learner.reference is not None
        learner.policy.load(folder / REFERENCE_FOLDER)
        learner.reference = learner.policy.copy_weights_to(learner.reference)
    learner.policy.load(folder)
    critic = learner.critic or learner.policy.value_head
    if critic is not None:
        of_critic = folder / CRITIC_FOLDER
        critic.load(of_critic if of_critic.is_dir() else folder)  # earlier versions saved it beside the model
    if learner.reward_trainer is not None:
        learner.reward_trainer.load(folder / REWARD_MODEL_FOLDER)
    state = json.loads((folder / "trainer.json").read_text())
    load_full_state(learner.optimizer, torch.load(folder / "optimizer.pt", map_location="cpu", weights_only=True))
    rates = folder / PASS_RATES  # earlier versions had none
    memory = ProblemMemory.from_lines(rates.read_text(encoding="utf-8")) if rates.is_file() else ProblemMemory()
    stream.load_state(state["cursor"], memory)
    learner.skipped_in_a_row = state["skipped_in_a_row"]
    return state["step"]


def load_waiting(folder: Path) -> Collected | None:
    """The saved completions that were sampled one step ahead, if any."""
    path = folder / WAITING
    return collected_from_json(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else None
