"""Does a prover learn faster from statements that it proves sometimes? GRPO on theorems in Metamath with and without the filter.

    python -m benchmarks.prover

For each seed recipes/prover.py teaches the tiny model proofs of the task `theorems`, and RL goes on from there in four arms of as many steps:
`filter`, on the prompts of 1,024 statements whose pass rate in eight attempts is 0.1 to 0.9, each statement in both of its prompts; `all`, on all
of these prompts; and `formal`, `informal`, as `filter` with each statement in one prompt only. `filter` and `all` also on statements of up to eight
steps, of which no proof beyond four was taught (`longer`). Solved@1 is the share of correct samples, eight
of each of 200 held-out statements in each of its two prompts; greedy accuracy is on the same. A stage that is there is not run again.

Writes benchmarks/results/prover.json.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any, get_args

import tyro

from benchmarks.grpo_vs_ppo import difference
from benchmarks.machine import describe_machine, head_commit, write_result
from rl.command.census import take_census
from rl.pipeline.pipeline import write_problems
from rl.pipeline.prover import FILTER, RL, SFT, Informal, ProverOptions, asked, run_prover
from rl.pipeline.stages import checkpoint_of, state_of
from rl.settings.config import RunConfig
from rl.settings.options import CensusOptions
from rl.view.metrics import read_metrics, series
from rl.view.progress import Progress
from rollout.problems import load_problems, split_held_out
from rollout.theorems import theorems

PROMPTS: tuple[Informal, ...] = ("without", "with")  # of held-out statements
BOTH = ProverOptions(problems=1024)
ARMS = {
    "filter": BOTH,
    "all": replace(BOTH, pass_rates="0:1"),
    "formal": replace(BOTH, informal="without"),
    "informal": replace(BOTH, informal="with"),
    "filter, longer": BOTH,
    "all, longer": replace(BOTH, pass_rates="0:1"),
}
HELD_OUT = 200  # statements


@dataclass(frozen=True, kw_only=True)
class Options:
    seeds: tuple[int, ...] = (0, 1, 2)
    arms: tuple[str, ...] = tuple(ARMS)
    num_steps: int = 40
    """Of RL: 64 prompts x 8."""
    runs: Path = Path("runs") / head_commit() / "prover"
    """Where the stages are kept."""


def held_out(runs: Path) -> dict[Informal, Path]:
    """Files of the held-out statements: in each prompt, and in both."""
    files = {informal: runs / f"held-out-{informal}.jsonl" for informal in get_args(Informal)}
    if not all(path.exists() for path in files.values()):
        statements = split_held_out(load_problems("theorems"), HELD_OUT)[1]
        for informal, path in files.items():
            write_problems(path, list(asked(statements, informal)))
    return files


def longer(runs: Path) -> str:
    """A data set of statements of one to eight steps."""
    path = runs / "longer.jsonl"
    if not path.exists():
        write_problems(path, theorems(2000, seed=1, steps=range(1, 9)))
    return str(path)


def config_of(options: Options, seed: int, run_dir: Path) -> RunConfig:
    is_longer = "longer" in run_dir.name
    return RunConfig(
        algorithm="grpo",
        dataset=(longer(options.runs) if is_longer else "theorems",),
        eval_dataset=str(held_out(options.runs)["both"]),
        prompt_style="plain",
        num_steps=options.num_steps,
        learning_rate=2e-4,
        kl_weight=0.001,
        max_tokens=64,
        warmup_steps=4,
        problems_per_step=64,
        group_size=8,
        eval_every=10,
        seed=seed,
        device="cpu",
        run_dir=run_dir,
    )


def measure(options: Options, arm: str, seed: int) -> dict[str, Any]:
    """Runs an arm, after the SFT that all arms of a seed begin at."""
    taught, folder = options.runs / f"taught-{seed}", options.runs / f"{arm.replace(', ', '-')}-{seed}"
    run_prover(config_of(options, seed, taught), replace(BOTH, stages=(SFT,)))
    base = str(checkpoint_of(taught / SFT))
    config = replace(config_of(options, seed, folder), model=base, eval_size=len(PROMPTS) * HELD_OUT)
    run_prover(config, replace(ARMS[arm], stages=(FILTER, RL)))
    rows = read_metrics(folder / RL)
    return {
        "greedy": series(rows, "eval/accuracy")[1],
        "filter": state_of(folder / FILTER)["found"],
        "without_signal": mean(series(rows, "groups/no_signal")[1]),
        "solved": {
            name: {of: solved(model, options, of) for of in PROMPTS}
            for name, model in (("before", base), ("after", str(checkpoint_of(folder / RL))))
        },
    }


def solved(model: str, options: Options, prompts: Informal) -> float:
    """Solved@1 on held-out statements: the mean share of correct samples."""
    data = held_out(options.runs)[prompts]
    with Progress(0, quiet=True) as progress:
        found = take_census(CensusOptions(model=model, dataset=str(data), samples=8, device="cpu"), progress)
    return mean(one.rate for one in found if one.rate is not None)


def tables(found: dict[str, Any]) -> tuple[str, str]:
    """Of each arm solved@1 before and after RL, and what `filter` has over the others, seed by seed."""
    arms = found["arms"]

    def percent(arm: str, when: str, prompts: Sequence[Informal] = PROMPTS) -> list[float]:
        return [100 * mean(seed["solved"][when][of] for of in prompts) for seed in arms[arm]]

    def shown(values: Sequence[float]) -> str:
        return f"{mean(values):.1f} ({min(values):.1f} to {max(values):.1f})"

    lines = [
        "| | solved@1, % | of statements alone | with their words | greedy, % | groups without signal, % |",
        "| --- " * 6 + "|",
    ]
    for name, arm, when in (("after SFT", "filter", "before"), *((arm, arm, "after") for arm in arms)):
        rates = (shown(percent(arm, when, of)) for of in (PROMPTS, PROMPTS[:1], PROMPTS[1:]))
        greedy = mean(100 * seed["greedy"][0 if when == "before" else -1] for seed in arms[arm])
        silent = "" if when == "before" else f"{100 * mean(seed['without_signal'] for seed in arms[arm]):.0f}"
        lines.append(f"| {name} | {' | '.join(rates)} | {greedy:.1f} | {silent} |")
    gains = ["| solved@1 of | less | points |", "| --- | --- | --- |"]
    gains.append(f"| filter | after SFT | {difference(percent('filter', 'after'), percent('filter', 'before'), 1)} |")
    for ours, theirs in (
        ("filter", "all"),
        ("filter", "formal"),
        ("filter", "informal"),
        ("filter, longer", "all, longer"),
    ):
        if ours in arms and theirs in arms:
            gains.append(f"| {ours} | {theirs} | {difference(percent(ours, 'after'), percent(theirs, 'after'), 1)} |")
    return "\n".join(lines), "\n".join(gains)


def main(options: Options) -> None:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # a run takes all cores that it may use
    arms = {arm: [measure(options, arm, seed) for seed in options.seeds] for arm in options.arms}
    found = {"options": {"num_steps": options.num_steps}, "arms": arms}
    print(*tables(found), sep="\n\n")
    write_result("prover", __doc__ or "", {**describe_machine(), **found})


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
