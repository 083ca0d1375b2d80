"""Every figure of README and docs/results.md, made again on this commit: three to four hours on two idle cores.

    python -m benchmarks.everything                        what was not made of this code yet, then the pages
    python -m benchmarks.everything --only vs_trl soak

It may be stopped and started again: a result file that was made of the code as it is here stands.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import tyro

from benchmarks.machine import RESULTS, is_code_of

PROFILES: dict[str, tuple[str, ...]] = {
    "profile_b_float32_torch": ("benchmarks.profile", "--no-compiled"),
    "profile_b_float32": ("benchmarks.profile",),
    "profile_a_float32": ("benchmarks.profile", "--shape", "a"),
    "profile_d_float32": ("benchmarks.profile", "--shape", "d"),
    "profile_real_float32": ("benchmarks.profile", "--shape", "real"),
    "profile_real_bfloat16": ("benchmarks.profile", "--shape", "real", "--dtype", "bfloat16"),
}
COMMANDS: dict[str, tuple[str, ...]] = {  # by result file; what is timed on both cores comes first
    "vs_trl": ("benchmarks.vs_trl",),
    "vs_trl_learning": ("benchmarks.vs_trl", "--learning", "--seeds", "0"),
    "default_run": ("benchmarks.learning_runs", "default_run"),
    "rollout_throughput": ("benchmarks.rollout_throughput",),
    "turns": ("benchmarks.turns", "--cpu-time"),
    "percent_of_limit_b_float32": ("benchmarks.percent_of_limit",),
    **PROFILES,
    "verifier_throughput": ("benchmarks.verifier_throughput",),
    "plan_check": ("benchmarks.plan_check",),
    "code_run": ("benchmarks.learning_runs", "code_run"),
    "vllm_run": ("benchmarks.learning_runs", "vllm_run"),
    "ahead_run": ("benchmarks.learning_runs", "ahead_run"),
    "sentence_run": ("benchmarks.learning_runs", "sentence_run"),
    "grpo_vs_ppo": ("benchmarks.grpo_vs_ppo",),
    "deepseekmath_figures": ("benchmarks.deepseekmath_figures",),
    "distillation": ("benchmarks.distillation",),
    "r1": ("benchmarks.r1",),
    "small_student": ("benchmarks.small_student",),
    "prover": ("benchmarks.prover",),
    "mining": ("benchmarks.mining",),
    "reward_model": ("benchmarks.reward_model",),
    "waits": ("benchmarks.waits",),
    "curation": ("benchmarks.curation",),
    "curation_learning": ("benchmarks.curation", "--learning"),
    "soak": ("benchmarks.soak",),
    "vram_table": ("benchmarks.vram_table",),
    "scale_table": ("benchmarks.scale_table",),
}

SPINNING = {"GOMP_SPINCOUNT": "1000"}  # as the recipes set it, see rl/cli.py


def is_current(name: str) -> bool:
    path = RESULTS / f"{name}.json"
    return path.exists() and is_code_of(json.loads(path.read_text(encoding="utf-8"))["commit"])


def main(only: tuple[str, ...] = tuple(COMMANDS)) -> None:
    for name in only:
        if is_current(name):
            print(f"{name}: made of this code already", flush=True)
            continue
        started = time.monotonic()
        subprocess.run([sys.executable, "-m", *COMMANDS[name]], check=True, env={**SPINNING, **os.environ})
        print(f"{name}: {(time.monotonic() - started) / 60:.1f} minutes", flush=True)
    subprocess.run([sys.executable, "-m", "benchmarks.page"], check=True)


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
