"""DeepSeek-R1's stages on arithmetic: R1-Zero from a base that knows the sums but not the form, and the four stages beside RL alone.

    python -m benchmarks.r1

The base is the tiny model after SFT on worked solutions of which one in four is in think and answer tags, the others as they were: it solves
most problems where it writes no tags, and it writes them in a part of its samples. For each seed recipes/r1.py runs zero, cold-start, rl, rejection, sft and
final-rl; every RL stage has as many steps. A further run goes on from rl for as many steps as final-rl has ("rl, twice as long"), so that what the
four stages gain is not what twice the RL gains. Accuracy is greedy, on 200 held-out problems. A stage that is there is not run again.

Writes benchmarks/results/r1.json.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

import tyro

from benchmarks.grpo_vs_ppo import difference
from benchmarks.machine import describe_machine, head_commit, write_result
from rl.pipeline.pipeline import write_problems
from rl.pipeline.r1 import (
    FINAL_RL,
    FIRST_RL,
    R1,
    REJECTION,
    RUN_DEFAULTS,
    SFT,
    STAGES,
    ZERO,
    R1Options,
    in_tags,
    run_r1,
)
from rl.pipeline.stages import checkpoint_of, run_stages, state_of, training
from rl.run.load_data import joined, load_data
from rl.settings.config import RunConfig
from rl.settings.resolve import resolve
from rl.view.metrics import read_metrics, series

IN_TAGS = 4  # one worked solution of the base in so many
LONGER = "rl, twice as long"
HELD_OUT = 200


@dataclass(frozen=True, kw_only=True)
class Options:
    seeds: tuple[int, ...] = (0, 1, 2)
    num_steps: int = 24
    """Of each RL stage: 64 problems x 8."""
    runs: Path = Path("runs") / head_commit() / "r1"
    """Where the stages are kept."""


def base(runs: Path) -> str:
    """The base of all seeds: a checkpoint."""
    plain = RunConfig(
        algorithm="sft", num_steps=100, learning_rate=1e-3, max_tokens=64, eval_size=HELD_OUT, device="cpu"
    )
    rows = runs / "base.jsonl"
    if not rows.exists():
        problems = joined(load_data(resolve(plain, "cpu"))[0])[:2048]
        write_problems(rows, [p if number % IN_TAGS else in_tags(p) for number, p in enumerate(problems)])
    stage = training("base", "SFT on both forms", replace(plain, dataset=(str(rows),)))
    run_stages([stage], runs, print)
    return str(checkpoint_of(runs / "base"))


def config_of(options: Options, seed: int) -> RunConfig:
    return RunConfig(
        **RUN_DEFAULTS,
        model=base(options.runs),
        prompt_style="plain",
        learning_rate=4e-4,  # the tiny model's own, as what follows
        kl_weight=0.001,
        max_tokens=64,
        num_steps=options.num_steps,
        problems_per_step=64,
        group_size=8,
        eval_every=4,
        eval_size=HELD_OUT,
        seed=seed,
        device="cpu",
        run_dir=options.runs / f"seed-{seed}",
    )


def run_seed(options: Options, seed: int) -> dict[str, Any]:
    """Accuracy after each stage, and R1-Zero's curves."""
    config, out = config_of(options, seed), options.runs / f"seed-{seed}"
    own = R1Options(stages=STAGES, sft_steps=60, sft_learning_rate=2e-3, samples=4, per_problem=1, problems=2048)
    run_r1(config, own)
    pipeline = R1(config=config, options=own, out=out)
    again = replace(pipeline.with_held_out(), model=pipeline.model_of(FIRST_RL))
    run_stages([training(LONGER, "RL goes on", again)], out, print)
    found = {name: state_of(out / name)["found"] for name in (*STAGES, LONGER)}
    zero = read_metrics(out / ZERO)
    curves = ("eval/accuracy", "part/think-answer", "accuracy/sampled", "length/mean")
    return {
        "accuracy": {name: of["eval/accuracy"][-1] for name, of in found.items() if "eval/accuracy" in of},
        "of_base": found[ZERO]["eval/accuracy"][0],
        "rejection": found[REJECTION],
        "zero": {name: series(zero, name)[1] for name in curves},
    }


def accuracies(found: dict[str, Any]) -> tuple[str, str]:
    """Two tables: accuracy after each stage, and what the last one has over others, seed by seed."""
    by_seed = [seed["accuracy"] for seed in found["seeds"]]
    of = {name: [100 * accuracy[name] for accuracy in by_seed] for name in by_seed[0]}
    lines = ["| after the stage | greedy accuracy, % |", "| --- | --- |"]
    lines += [f"| {name} | {mean(v):.1f} ({min(v):.1f} to {max(v):.1f}) |" for name, v in of.items()]
    gains = ["| stage | less | points |", "| --- | --- | --- |"]
    gains += [
        f"| {FINAL_RL} | {other} | {difference(of[FINAL_RL], of[other], 1)} |" for other in (FIRST_RL, LONGER, SFT)
    ]
    return "\n".join(lines), "\n".join(gains)


def main(options: Options) -> None:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # a run takes all cores that it may use
    found = {
        "options": {"num_steps": options.num_steps},
        "seeds": [run_seed(options, seed) for seed in options.seeds],
    }
    print(*accuracies(found), sep="\n\n")
    write_result("r1", __doc__ or "", {**describe_machine(), **found})


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
