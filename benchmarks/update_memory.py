"""The most memory that one update needs, ours or TRL's, each in a process of its own.

    python -m benchmarks.update_memory --shape b --side trl

What is counted: everything alive during an update (forward, backward, clipping, the optimiser's step) beyond what is alive
before it, which is weights and optimiser state. Gradients are in it, on both sides. The completions are given, the same
ones to both; TRL's own train() runs over them with its sampling replaced. Earlier updates have made what is made once.
On a GPU the allocator's peak; on a CPU the peak of the process's resident memory, with an allocator that gives memory
back to the system when it is freed (vs_trl sets MALLOC).
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import TrainerCallback

from benchmarks.models import HashVerifier, end_probability
from benchmarks.our_side import OurSide
from benchmarks.shapes import SHAPES, Given, Shape, given
from rl.processes.runtime import Runtime, cpu_cores
from rl.settings.options import DType
from rl.update.batch import pack
from rl.update.update import update
from rollout.records import Completion, FinishReason, Rollout, RolloutGroup

Side = Literal["ours", "trl"]
WARM_UP = 2
# glibc: blocks from 64 KiB on come from the system one by one and go back when freed.
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}


@dataclass(frozen=True, kw_only=True)
class Options:
    shape: str
    side: Side
    threads: int = cpu_cores()
    dtype: DType = "float32"


def in_fresh_process(module: str, arguments: Mapping[str, object]) -> Any:
    """Runs a benchmark module with these options under MALLOC. -> what it printed last, from JSON."""
    options = [text for name, value in arguments.items() for text in (f"--{name}", str(value))]
    done = subprocess.run(
        [sys.executable, "-m", module, *options],
        env={**os.environ, **MALLOC},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"{module} {options} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


class PeakMemory:
    """Bytes between start() and stop(), beyond those at the start."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def start(self) -> None:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()
            return
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark falls to what is resident now
        self.before = resident("VmRSS")

    def stop(self) -> int:
        after = torch.cuda.max_memory_allocated() if self.device.type == "cuda" else resident("VmHWM")
        return after - self.before


def resident(which: str) -> int:
    """Bytes of this process: VmRSS now, VmHWM at most."""
    found = re.search(rf"{which}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return 1024 * int(found[1])


def drawn_groups(shape: Shape, given: Given) -> list[RolloutGroup]:
    """Random tokens in completions as long as the shape's, rewarded by HashVerifier; nothing is sampled from the model."""
    chance = random.Random(0)
    hazard = end_probability(shape.mean_tokens or shape.max_tokens, shape.max_tokens)
    end = int(given.tokenizer.eos_token_id)  # pyright: ignore
    groups = []
    for problem in given.stream().take(shape.problems):
        rows: list[tuple[int, ...]] = []
        for _ in range(shape.group_size):
            length = next((n for n in range(1, shape.max_tokens + 1) if chance.random() < hazard), shape.max_tokens)
            rows.append((*(chance.randrange(2, 250) for _ in range(length - 1)), end))
        prompt = str(problem.prompt)
        scores = HashVerifier(shape.share_without_signal).verify_batch([str(row) for row in rows], [prompt] * len(rows))
        groups.append(
            RolloutGroup(
                problem=problem,
                prompt_ids=given.renderer.render(problem),
                rollouts=tuple(
                    Rollout(problem=problem, completion=_completion(row), score=score)
                    for row, score in zip(rows, scores, strict=True)
                ),
            )
        )
    return groups


def _completion(token_ids: tuple[int, ...]) -> Completion:
    return Completion(
        token_ids=token_ids,
        sampler_logprobs=(-5.0,) * len(token_ids),
        finish_reason=FinishReason.STOP,
        policy_version=0,
        seed=0,
        text="",
    )


def our_peak(shape: Shape, given: Given, runtime: Runtime) -> int:
    groups, learner, peak = (
        drawn_groups(shape, given),
        OurSide(shape, given, runtime).learner,
        PeakMemory(runtime.device),
    )
    algorithm = learner.algorithm
    batch = pack(algorithm.assign_credit(groups, shape.max_tokens), algorithm, shape.max_tokens)
    for _ in range(WARM_UP):
        update(learner, batch)
    peak.start()
    update(learner, batch)
    return peak.stop()


def trl_peak(shape: Shape, given: Given, runtime: Runtime) -> int:
    from benchmarks.trl_side import TimedTrainer, build

    batch = {name: tensor.to(runtime.device) for name, tensor in padded(shape, drawn_groups(shape, given)).items()}

    class GivenTokens(TimedTrainer):
        def _generate_and_score_completions(self, inputs: Any) -> Any:
            return dict(batch)

    class LastStep(TrainerCallback):
        found = 0

        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == WARM_UP:
                peak.start()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.found = peak.stop() if state.global_step == WARM_UP + 1 else 0

    last, peak = LastStep(), PeakMemory(runtime.device)
    trainer = build(shape, given, runtime, num_steps=WARM_UP + 1, trainer=GivenTokens)
    trainer.add_callback(last)
    trainer.train()
    return last.found


def padded(shape: Shape, groups: list[RolloutGroup]) -> dict[str, Tensor]:
    """The groups as TRL's sampling hands them on: prompts padded on the left, completions on the right."""
    from rl.objective.algorithms import GRPO

    advantages = [c.advantages or () for c in GRPO.assign_credit(groups, shape.max_tokens)]
    prompts = [torch.tensor(g.prompt_ids) for g in groups for _ in g.rollouts]
    completions = [torch.tensor(r.completion.token_ids) for g in groups for r in g.rollouts]
    columns = {"advantages": torch.stack([a[0] for rows in advantages for a in rows])}
    for name, rows, side in (("prompt", prompts, "left"), ("completion", completions, "right")):
        columns[f"{name}_ids"] = pad_sequence(rows, batch_first=True, padding_side=side)
        columns[f"{name}_mask"] = pad_sequence([torch.ones_like(row) for row in rows], True, 0, side)
    columns["num_items_in_batch"] = columns["completion_mask"].sum()
    if shape.kl_weight > 0:
        columns["ref_per_token_logps"] = torch.full(columns["completion_ids"].shape, -5.0)
    return columns


def main(options: Options) -> None:
    runtime = Runtime.start(dtype=options.dtype, device="auto")
    torch.set_num_threads(options.threads)
    shape = SHAPES[options.shape]
    what = given(shape, runtime, num_problems=(WARM_UP + 1) * shape.problems)
    print(json.dumps(our_peak(shape, what, runtime) if options.side == "ours" else trl_peak(shape, what, runtime)))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
