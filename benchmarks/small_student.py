"""A small model learns from samples of a large one that RL trained, or by RL of its own: which is better at equal compute?

    python -m benchmarks.small_student

As DeepSeek-R1 asks in its section 4.1 (arXiv 2501.12948). For each seed the teacher is the tiny model after 48 steps of GRPO with the default
run's options, and the student a twelfth of its size, taught the same task for a short time. The student then learns in three ways: `rl`, GRPO; `sft`,
on the teacher's correct samples by recipes/distill.py; and `sft, then rl`, about half of each. The compute of an arm is seconds on one
core: of its own steps and, for the teacher's samples, of sampling them, but not of training the teacher; steps are chosen so that `rl` has the
most. The student's rate of RL is the best of five on seed 0 (1e-4 to 2e-3); others were not looked for. Accuracy is greedy, on 400 held-out problems. A stage that is there is not run again.

Writes benchmarks/results/small_student.json.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import torch
import tyro
from transformers import Qwen2ForCausalLM

from benchmarks.grpo_vs_ppo import difference
from benchmarks.machine import describe_machine, head_commit, write_result
from benchmarks.models import ModelSize
from rl.pipeline.distill import RL, SAMPLES, SFT, DistillOptions, run_distillation
from rl.pipeline.stages import checkpoint_of, run_stages, state_of, training
from rl.run.tiny import tiny_tokenizer
from rl.settings.config import RunConfig
from rl.view.metrics import read_metrics, series

BASE, TEACHER = "base", "teacher"
ARMS = ("rl", "sft", "sft, then rl")
PHASES = ("sample", "verify", "train", "deliver")
SAMPLED, RATE = 4, 1e-3


@dataclass(frozen=True, kw_only=True)
class Options:
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    teacher_steps: int = 48
    """Of GRPO: 64 problems x 8."""
    num_steps: int = 192
    """The same, of the student alone."""
    base_steps: int = 300
    """Of the student's supervised training before: 96 problems."""
    sft_steps: int = 900
    """Of SFT on samples: 64 problems."""
    problems: int = 4096
    """Problems that the teacher is sampled on, four completions each."""
    runs: Path = Path("runs") / head_commit() / "small-student"
    """Where the runs are kept."""


def untaught(folder: Path, seed: int) -> Path:
    """A student before it learns anything: a Qwen2 of 0.06 M parameters."""
    if not folder.exists():
        tokenizer = tiny_tokenizer()
        size = ModelSize(
            vocab_size=len(tokenizer),
            hidden_size=48,
            intermediate_size=144,
            num_layers=2,
            num_heads=4,
            num_key_value_heads=2,
        )
        ends = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = Qwen2ForCausalLM(size.config(max_position_embeddings=2048, initializer_range=0.12, **ends))
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folder


def config_of(options: Options, model: str, seed: int, **own: Any) -> RunConfig:
    usual: dict[str, Any] = {
        "algorithm": "grpo",
        "prompt_style": "plain",
        "learning_rate": 2e-4,
        "kl_weight": 0.001,
        "max_tokens": 32,
        "schedule": "constant",
        "num_steps": options.teacher_steps,
        "problems_per_step": 64,
        "group_size": 8,
        "eval_every": 8,
        "eval_size": 400,
        "save_every": 1000,
        "seed": seed,
        "device": "cpu",
    }
    return RunConfig(model=model, **usual | own)


def run_seed(options: Options, seed: int) -> dict[str, Any]:
    """Of each arm its accuracy by seconds, and of teacher and base the accuracy."""
    folder = options.runs / f"seed-{seed}"
    sft: dict[str, Any] = {"algorithm": "sft", "kl_weight": None, "group_size": None, "problems_per_step": 96}
    student = str(untaught(folder / "untaught", seed))
    of_base = config_of(options, student, seed, **sft, num_steps=options.base_steps, eval_every=50, learning_rate=2e-3)
    stages = [
        training(BASE, "SFT of the student", of_base),
        training(TEACHER, "RL of the teacher", config_of(options, "tiny", seed, learning_rate=4e-4)),
    ]
    run_stages(stages, folder, print)
    base, teacher = (str(checkpoint_of(folder / name)) for name in (BASE, TEACHER))
    run_stages(
        [training("rl", "RL of the student", config_of(options, base, seed, num_steps=options.num_steps))],
        folder,
        print,
    )
    found = {"rl": ended(folder / "rl")}
    halves = options.num_steps * 3 // 8, options.sft_steps // 2
    for arm, (rl_steps, sft_steps) in zip(ARMS[1:], ((0, options.sft_steps), halves), strict=True):
        own = DistillOptions(
            samples_from=teacher,
            stages=(SAMPLES, SFT, RL) if rl_steps else (SAMPLES, SFT),
            samples=SAMPLED,
            per_problem=1,
            problems=options.problems,
            sft_steps=sft_steps,
            sft_learning_rate=RATE,
        )
        out = folder / arm.replace(", ", "-").replace(" ", "-")
        run_distillation(config_of(options, base, seed, num_steps=rl_steps or 1, run_dir=out), own)
        parts = [ended(out / name) for name in (SFT, RL)[: 2 if rl_steps else 1]]
        sampling = state_of(out / SAMPLES)["found"]["seconds"]
        found[arm] = {"seconds": sampling + sum(part["seconds"] for part in parts), "accuracy": parts[-1]["accuracy"]}
    return {
        "arms": found,
        "teacher": ended(folder / TEACHER)["accuracy"],
        "base": ended(folder / BASE)["accuracy"],
        "samples": state_of(folder / "sft" / SAMPLES)["found"],
    }


def ended(run: Path) -> dict[str, float]:
    """The last accuracy of a run, and its seconds without evaluations."""
    rows = read_metrics(run)
    return {
        "accuracy": series(rows, "eval/accuracy")[1][-1],
        "seconds": sum(row.get(f"time/{phase}") or 0.0 for row in rows for phase in PHASES),
    }


def tables(found: dict[str, Any]) -> tuple[str, str]:
    """Accuracy and seconds of each arm, and the differences, seed by seed."""
    seeds = found["seeds"]
    of = {arm: [100 * seed["arms"][arm]["accuracy"] for seed in seeds] for arm in ARMS}
    seconds = {arm: f"{mean(seed['arms'][arm]['seconds'] for seed in seeds):.0f}" for arm in ARMS}
    others = {f"the {name}": [100 * seed[name] for seed in seeds] for name in (TEACHER, BASE)}
    lines = ["| | greedy accuracy, % | seconds |", "| --- | --- | --- |"]
    lines += [
        f"| {name} | {mean(v):.1f} ({min(v):.1f} to {max(v):.1f}) | {seconds.get(name, '-')} |"
        for name, v in {**others, **of}.items()
    ]
    pairs = ((ARMS[1], ARMS[0]), (ARMS[2], ARMS[0]), (ARMS[2], ARMS[1]))
    gains = ["| arm | less | points |", "| --- | --- | --- |"]
    gains += [f"| {a} | {b} | {difference(of[a], of[b], 1)} |" for a, b in pairs]
    return "\n".join(lines), "\n".join(gains)


def main(options: Options) -> None:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # a run takes all cores that it may use
    found = {
        "options": {"num_steps": options.num_steps, "sft_steps": options.sft_steps},
        "seeds": [run_seed(options, seed) for seed in options.seeds],
    }
    print(*tables(found), sep="\n\n")
    write_result("small_student", __doc__ or "", {**describe_machine(), **found})


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
