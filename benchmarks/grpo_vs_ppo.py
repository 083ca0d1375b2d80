"""GRPO beside PPO and the other methods that DeepSeekMath compares: accuracy, samples, operations, time, memory.

    python -m benchmarks.grpo_vs_ppo

Every method begins from the same warm-started base, takes as many completions a step, and has the learning rates, clipping,
schedule and number of steps of the default run; none has a KL, which all could have at the same price. Two things are varied
apart: the method, and how many different problems a step's completions are of (N / G problems x G, or N x 1 where a method
does not compare within groups). The arms recipe-* have the critic recipe of docs/algorithms.md, on the policy's trunk and on a
critic's own; its three critic-only steps are among the number of steps. Each run is a process of its own, on one core, two of them at a time; a run that is there
already is not made again. The held-out problems are looked at greedily, at the end also by 16 samples each. Methods are compared seed by seed:
a difference is said to be there if the 95 % interval of its mean over the seeds (Student's t) does not hold 0.

Writes benchmarks/results/grpo_vs_ppo.json and docs/grpo_vs_ppo.png.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Literal

import torch
import tyro
from matplotlib.figure import Figure

from benchmarks.machine import describe_machine, head_commit, write_result
from benchmarks.update_memory import PeakMemory, in_fresh_process
from rewards.verifiers import Verifiers
from rl.capacity.cost import FLOAT32
from rl.command.evaluate_model import opened, pass_at_k, problems_of, run_of, with_values_of
from rl.processes.runtime import Runtime
from rl.run.checkpoint import checkpoints
from rl.run.evaluate import is_right, right_by_vote
from rl.run.loop import train, verifier_options
from rl.run.setup import set_up
from rl.settings.config import RunConfig
from rl.settings.defaults import TINY
from rl.settings.options import EvaluateOptions
from rl.settings.resolve import model_defaults
from rl.update.batch import pack
from rl.update.update import update
from rl.view.metrics import Row, read_metrics, series
from rl.view.plots import PERCENT
from rl.view.progress import Progress
from rollout.records import RolloutGroup

COMPLETIONS = 512  # a step
LEVEL = 0.70
T_95 = {
    2: 12.706,
    3: 4.303,
    4: 3.182,
    5: 2.776,
    6: 2.571,
    7: 2.447,
    8: 2.365,
}  # Student's t, two-sided, by the number of seeds
SAMPLES = 16  # of each held-out problem, after the last step
SAMPLED = "sampled.json"  # of a run's folder: maj@16 and pass@16


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A method, and how many problems a step's completions are of."""

    title: str
    group_size: int
    colour: str
    style: str = "-"
    options: dict[str, Any]

    def config(self, seed: int, run_dir: Path, num_steps: int) -> RunConfig:
        return RunConfig(
            **self.options,
            kl_weight=0.0,
            group_size=self.group_size,
            problems_per_step=COMPLETIONS // self.group_size,
            num_steps=num_steps,
            seed=seed,
            eval_every=12,
            save_every=num_steps,
            run_dir=run_dir,
        )


def ppo(scale: float | None, group_size: int, colour: str, style: str) -> Arm:
    own = {"algorithm": "ppo-separate"} if scale is None else {"algorithm": "ppo", "value_trunk_scale": scale}
    title = "PPO, critic of its own" if scale is None else f"PPO, shared trunk, scale {scale:g}"
    return Arm(title=title, group_size=group_size, colour=colour, style=style, options=own)


def recipe(source: str, group_size: int, colour: str, style: str, faster: int = 1) -> Arm:
    """The critic recipe of docs/algorithms.md. faster: the critic's learning rate over the policy's, for a critic of its own."""
    own: dict[str, Any] = {"algorithm": "ppo", "lam_length": 0.5, "whiten": True, "clip_high": 0.28}
    own |= {"critic_warmup_steps": 3, "value": source}
    if source == "separate":
        own |= {
            "critic_updates": 2,
            "value_learning_rate": faster * model_defaults(TINY, "arithmetic")["learning_rate"],
        }
    title = f"PPO, critic recipe, {'critic of its own' if source == 'separate' else 'shared trunk'}"
    title += f" at {faster} x the rate" if faster > 1 else ""
    return Arm(title=title, group_size=group_size, colour=colour, style=style, options=own)


def named(title: str, algorithm: str, group_size: int, colour: str, style: str = "-") -> Arm:
    return Arm(title=title, group_size=group_size, colour=colour, style=style, options={"algorithm": algorithm})


G = 8
ARMS = {
    "grpo": named("GRPO", "grpo", G, "#3b7dd8"),
    "grpo-pairs": named("GRPO", "grpo", 2, "#3b7dd8", "--"),
    "grpo-process": named("GRPO, process", "grpo-process", G, "#75808f"),
    "rloo": named("RLOO", "rloo", G, "#2fa37a"),
    "dr-grpo": named("Dr. GRPO", "dr-grpo", G, "#cfa62e"),
    "ppo-1": ppo(1.0, G, "#d1495b", "-"),
    "ppo-0.1": ppo(0.1, G, "#8c5a3c", "-"),
    "ppo-0": ppo(0.0, G, "#e08a2e", "-"),
    "ppo-separate": ppo(None, G, "#8d6bd1", "-"),
    "rft": named("RFT", "rft", G, "#b9c0ca"),
    "online-rft": named("online RFT", "online-rft", G, "#222222"),
    "online-dpo": named("online DPO", "online-dpo", G, "#6a994e"),
    "ppo-1-spread": ppo(1.0, 1, "#d1495b", "--"),
    "ppo-separate-spread": ppo(None, 1, "#8d6bd1", "--"),
    "recipe-shared": recipe("shared", G, "#b5179e", "-"),
    "recipe-separate": recipe("separate", G, "#0b7a75", "-"),
    "recipe-shared-spread": recipe("shared", 1, "#b5179e", "--"),
    "recipe-separate-spread": recipe("separate", 1, "#0b7a75", "--"),
    "recipe-separate-spread-5": recipe("separate", 1, "#4cc9f0", "--", faster=5),
    "online-rft-spread": named("online RFT", "online-rft", 1, "#222222", "--"),
}


# What is compared with what.
PAIRS = (
    ("ppo-1", "grpo"),
    ("ppo-separate", "ppo-1"),
    ("recipe-shared", "ppo-1"),
    ("recipe-separate", "ppo-separate"),
    ("recipe-separate", "recipe-shared"),
    ("recipe-shared-spread", "ppo-1-spread"),
    ("recipe-separate-spread", "ppo-separate-spread"),
    ("recipe-separate-spread", "recipe-shared-spread"),
    ("recipe-separate-spread-5", "recipe-separate-spread"),
    ("recipe-separate-spread", "online-rft-spread"),
    ("ppo-separate-spread", "ppo-1-spread"),
    ("ppo-1-spread", "online-rft-spread"),
    ("ppo-1-spread", "ppo-1"),
    ("ppo-separate-spread", "ppo-separate"),
    ("online-rft-spread", "online-rft"),
    ("online-rft", "rft"),
    ("grpo", "online-rft"),
    ("grpo-process", "grpo"),
    ("online-dpo", "grpo"),
)


@dataclass(frozen=True, kw_only=True)
class Options:
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    steps: int = 48
    arms: tuple[str, ...] = tuple(ARMS)
    runs: Path = Path("runs") / head_commit() / "grpo_vs_ppo"
    """Where the runs are kept."""
    only: Literal["run", "memory"] | None = None
    """Do this for the first of arms and seeds, and print what was found: what the processes are called with."""


def folder(options: Options, arm: str, seed: int) -> Path:
    return options.runs / f"{arm}-{seed}"


def sampled(model: str, seed: int, samples: int) -> list[RolloutGroup]:
    """Completions of each held-out problem at temperature 1."""
    torch.set_num_threads(1)
    options = EvaluateOptions(model=model, samples=samples, seed=seed)
    run = run_of(options)
    options = with_values_of(run, options)
    problems, _ = problems_of(options, run)
    with opened(options, None, problems, "held-out", Progress(0)) as (collector, problems):
        return collector.collect(problems, step=0).groups


def of_k(groups: Sequence[RolloutGroup], ks: Sequence[int]) -> dict[str, list[float]]:
    """maj@K, the mean over disjoint blocks of K samples, and pass@K, the unbiased estimate."""

    def majority(group: RolloutGroup, k: int) -> float:
        blocks = (group.rollouts[at : at + k] for at in range(0, len(group.rollouts), k))
        return statistics.mean(right_by_vote(replace(group, rollouts=block)) for block in blocks)

    right = [(len(group.rollouts), sum(map(is_right, group.rollouts))) for group in groups]
    return {
        "maj": [statistics.mean(majority(group, k) for group in groups) for k in ks],
        "pass": [statistics.mean(pass_at_k(n, c, k) for n, c in right) for k in ks],
    }


def make_run(options: Options, arm: str, seed: int) -> None:
    """Trains, and looks at the last checkpoint by samples. One that was cut off begins anew."""
    run_dir = folder(options, arm, seed)
    shutil.rmtree(run_dir, ignore_errors=True)
    train(ARMS[arm].config(seed, run_dir, options.steps))
    groups = sampled(str(checkpoints(run_dir)[-1]), seed, SAMPLES)
    found = {name: at_k for name, (at_k,) in of_k(groups, (SAMPLES,)).items()}
    (run_dir / SAMPLED).write_text(json.dumps(found))


def is_done(options: Options, arm: str, seed: int) -> bool:
    return (folder(options, arm, seed) / SAMPLED).exists()


def make_runs(options: Options) -> None:
    """All of a seed before the next, so that what disturbs the machine meets all methods."""
    missing = [(a, s) for s in options.seeds for a in options.arms if not is_done(options, a, s)]
    cores: SimpleQueue[int] = SimpleQueue()
    for core in sorted(os.sched_getaffinity(0)):
        cores.put(core)

    def make(arm: str, seed: int) -> None:
        core = cores.get()
        command = [sys.executable, "-m", "benchmarks.grpo_vs_ppo", "--only", "run", "--arms", arm, "--seeds", str(seed)]
        command += ["--steps", str(options.steps), "--runs", str(options.runs)]
        done = subprocess.run(["taskset", "-c", str(core), *command], capture_output=True, text=True, check=False)
        cores.put(core)
        if done.returncode != 0:
            raise RuntimeError(f"{arm}, seed {seed} failed:\n{done.stderr[-3000:]}")
        final = read_metrics(folder(options, arm, seed))[-1]["eval/accuracy"]
        print(f"{arm}, seed {seed}: {final:.1%}", flush=True)

    with ThreadPoolExecutor(cores.qsize()) as threads:
        for _ in threads.map(lambda run: make(*run), missing):
            pass  # an error of its own is raised here


def update_bytes(arm: Arm) -> dict[str, int]:
    """Of the base's first step: what is kept between updates, and what an update takes beyond."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as aside, Progress(0) as progress:
        config = arm.config(0, Path(aside), num_steps=8)  # more than those that train the critic only
        runtime = Runtime.start(dtype="float32", device="cpu")
        verifiers = Verifiers(verifier_options(config))
        run = set_up(config, runtime, verifiers, progress)
        learner, max_tokens = run.learner, run.settings.max_tokens
        groups = run.collector.collect(run.stream.take(run.settings.problems_per_step), step=1).groups
        batch = pack(learner.algorithm.assign_credit(groups, max_tokens), learner.algorithm, max_tokens)
        verifiers.close()
        learner.set_learning_rate(0.0)
        peak = PeakMemory(torch.device("cpu"))
        update(learner, batch)
        peak.start()
        update(learner, batch)
        taken = peak.stop()
    trained = sum(p.numel() for group in learner.optimizer.param_groups for p in group["params"])
    copies = sum(p.numel() for p in learner.initial_policy.model.parameters()) if learner.initial_policy else 0
    return {
        "kept": FLOAT32 * (3 * trained + 2 * copies),
        "update": taken,
    }  # the start policy's, and the sampler's of it


def step_seconds(rows: Sequence[Row]) -> dict[str, float]:
    """Medians over the steps."""
    found = {
        p: statistics.median(series(list(rows), f"time/{p}")[1]) for p in ("sample", "verify", "train", "optimizer")
    }
    return {
        "sampling": found["sample"],
        "verifying": found["verify"],
        "forward/backward": found["train"] - found["optimizer"],
        "optimiser": found["optimizer"],
    }


def curves(options: Options, arm: str) -> dict[str, Any]:
    """Held-out accuracy of each seed at the steps that were looked at."""
    runs = [
        [row for row in read_metrics(folder(options, arm, seed)) if row.get("eval/accuracy") is not None]
        for seed in options.seeds
    ]
    return {
        "steps": [row["step"] for row in runs[0]],
        "eval/accuracy": [[row["eval/accuracy"] for row in run] for run in runs],
    }


def summarise(options: Options, arm: str) -> dict[str, Any]:
    runs, looked = [read_metrics(folder(options, arm, seed)) for seed in options.seeds], curves(options, arm)
    at_end = [json.loads((folder(options, arm, seed) / SAMPLED).read_text()) for seed in options.seeds]
    seconds = [step_seconds(rows) for rows in runs]
    flops = [[0.0, *series(rows, "flops/update")[1]] for rows in runs]
    return {
        "title": ARMS[arm].title,
        "problems": COMPLETIONS // ARMS[arm].group_size,
        "group_size": ARMS[arm].group_size,
        **looked,
        **{key: [found[key] for found in at_end] for key in ("maj", "pass")},
        "update_flops_so_far": [[sum(f[: int(step or 0) + 1]) for step in looked["steps"]] for f in flops],
        "step_seconds": {part: statistics.median(s[part] for s in seconds) for part in seconds[0]},
        "memory": in_fresh_process("benchmarks.grpo_vs_ppo", {"only": "memory", "arms": arm}),
    }


def mean_curve(found: dict[str, Any]) -> list[float]:
    return [statistics.mean(at_step) for at_step in zip(*found["eval/accuracy"], strict=True)]


def last(found: dict[str, Any]) -> list[float]:
    """Greedy accuracy of each seed after the last step."""
    return [run[-1] for run in found["eval/accuracy"]]


def percent(shares: Sequence[float]) -> list[float]:
    return [100 * share for share in shares]


def samples_to(steps: Sequence[int], curve: Sequence[float], level: float) -> float | None:
    """Where a curve of accuracy crosses the level, between two looks in a line; None where it does not."""
    points = list(zip(steps, curve, strict=True))
    for (step, accuracy), (next_step, next_accuracy) in pairwise(points):
        if accuracy < level <= next_accuracy:
            return COMPLETIONS * (step + (next_step - step) * (level - accuracy) / (next_accuracy - accuracy))
    return None


def difference(ours: Sequence[float | None], theirs: Sequence[float | None], digits: int) -> str:
    """The mean over the seeds of ours - theirs with its 95 % interval; "-" where some seed has no value."""
    if None in (*ours, *theirs) or len(ours) < 2:
        return "-"
    apart = [a - b for a, b in zip(ours, theirs, strict=True) if a is not None and b is not None]
    mean, margin = statistics.mean(apart), T_95[len(apart)] * statistics.stdev(apart) / len(apart) ** 0.5
    interval = f"{mean:+,.{digits}f} [{mean - margin:+,.{digits}f}, {mean + margin:+,.{digits}f}]"
    return f"**{interval}**" if abs(mean) > margin else interval


def differences(found: dict[str, dict[str, Any]]) -> str:
    """The table of PAIRS; bold where the interval does not hold 0."""

    def name(arm: str) -> str:
        return f"{found[arm]['title']}, {found[arm]['problems']} x {found[arm]['group_size']}"

    def samples(arm: str) -> list[float | None]:
        return [samples_to(found[arm]["steps"], run, LEVEL) for run in found[arm]["eval/accuracy"]]

    lines = [f"| method | less | greedy, points | maj@16, points | samples to {LEVEL:.0%} |", "| --- " * 5 + "|"]
    for ours, theirs in PAIRS:
        if ours in found and theirs in found:
            parts = [
                difference(percent(last(found[ours])), percent(last(found[theirs])), 1),
                difference(percent(found[ours]["maj"]), percent(found[theirs]["maj"]), 1),
                difference(samples(ours), samples(theirs), 0),
            ]
            lines.append(f"| {name(ours)} | {name(theirs)} | {' | '.join(parts)} |")
    return "\n".join(lines)


def table(found: dict[str, dict[str, Any]]) -> str:
    def final(shares: Sequence[float]) -> str:
        found = percent(shares)
        return f"{statistics.mean(found):.1f} ({min(found):.1f} to {max(found):.1f})"

    lines = [
        f"| method | problems x completions | greedy, % | maj@16 | pass@16 | samples to {LEVEL:.0%} | update, TFLOP "
        "| step, s: sampling + verifying + forward/backward + optimiser | memory, MB: kept + update |",
        "| --- " * 9 + "|",
    ]
    for of_arm in sorted(found.values(), key=lambda f: -mean_curve(f)[-1]):
        seconds, memory, samples = (
            of_arm["step_seconds"],
            of_arm["memory"],
            samples_to(of_arm["steps"], mean_curve(of_arm), LEVEL),
        )
        flops = statistics.mean(run[-1] for run in of_arm["update_flops_so_far"]) / 1e12
        parts = " + ".join(f"{s:.2f}" for s in seconds.values())
        lines.append(
            f"| {of_arm['title']} | {of_arm['problems']} x {of_arm['group_size']} | {final(last(of_arm))} "
            f"| {final(of_arm['maj'])} | {final(of_arm['pass'])} "
            f"| {'-' if samples is None else f'{samples:,.0f}'} | {flops:.2f} | {sum(seconds.values()):.2f}: {parts} "
            f"| {memory['kept'] / 1e6:.0f} + {memory['update'] / 1e6:.0f} |"
        )
    return "\n".join(lines)


def figure(found: dict[str, dict[str, Any]], path: Path) -> None:
    """The mean over seeds, the range shaded, against three prices."""
    prices: dict[str, Callable[[dict[str, Any]], list[float]]] = {
        "completions sampled": lambda f: [COMPLETIONS * step for step in f["steps"]],
        "operations of the updates, TFLOP": lambda f: [
            statistics.mean(at) / 1e12 for at in zip(*f["update_flops_so_far"], strict=True)
        ],
        "seconds on one core (median step)": lambda f: [sum(f["step_seconds"].values()) * step for step in f["steps"]],
    }
    drawn = Figure(figsize=(15, 6), dpi=90, layout="constrained")
    all_axes = drawn.subplots(1, len(prices), sharey=True)
    for axes, (label, price) in zip(all_axes, prices.items(), strict=True):
        for name, of_arm in found.items():
            arm, x = ARMS[name], price(of_arm)
            runs = list(zip(*of_arm["eval/accuracy"], strict=True))
            title = f"{arm.title}, {of_arm['problems']} x {arm.group_size}"
            axes.plot(x, mean_curve(of_arm), arm.style, marker="o", markersize=3, color=arm.colour, label=title)
            axes.fill_between(
                x, [min(r) for r in runs], [max(r) for r in runs], color=arm.colour, alpha=0.06, linewidth=0
            )
        axes.set_xlabel(label)
        axes.yaxis.set_major_formatter(PERCENT)
        axes.spines[["top", "right"]].set_visible(False)
    all_axes[0].set_ylabel("held-out problems solved, greedy")
    handles, labels = all_axes[0].get_legend_handles_labels()
    drawn.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    drawn.savefig(path, format="png")


def main(options: Options) -> None:
    if options.only == "run":
        make_run(options, options.arms[0], options.seeds[0])
    elif options.only == "memory":
        print(json.dumps(update_bytes(ARMS[options.arms[0]])))
    else:
        make_runs(options)
        found = {arm: summarise(options, arm) for arm in options.arms}
        print(table(found), differences(found), sep="\n\n")
        figure(found, Path("docs/grpo_vs_ppo.png"))
        step = {"completions": COMPLETIONS, "steps": options.steps, "seeds": options.seeds}
        write_result("grpo_vs_ppo", __doc__ or "", {**describe_machine(), **step, "methods": found})


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
