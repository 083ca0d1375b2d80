"""What the tiny model learns from 1,000 rows that are chosen in four ways out of an uneven and noisy pool; part of benchmarks.curation."""

from __future__ import annotations

import json
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.grpo_vs_ppo import difference
from rewards.verifiers import VerifierOptions, Verifiers
from rl.processes.runtime import Runtime
from rl.run.evaluate import evaluate, is_right
from rl.run.setup import tiny_base
from rl.run.warm_start import supervised_learner, supervised_step
from rl.settings.curate_options import CurateOptions
from rl.view.progress import Progress
from rollout.collect import Collector
from rollout.corpus.curate import curate
from rollout.corpus.curation_stages import Curation
from rollout.problem_stream import ProblemStream
from rollout.problems import load_problems
from rollout.prompts import PromptRenderer
from rollout.records import Problem
from rollout.sampler import SamplingParams
from rollout.torch_sampler import TorchSampler

POOL, CHOSEN, HELD_OUT = 4_000, 1_000, 80  # rows; held-out problems of each domain
STEPS, ROWS, RATE, WARMUP = 150, 64, 1e-3, 10
# Of each domain: its share of the pool, the range of the first number, and the signs of the others, which are from 10 to 39.
DOMAINS = {
    "a+b-c": (0.55, 10, 39, "+-"),  # what the base was taught; its two steps are the next two domains
    "a+b": (0.25, 10, 39, "+"),
    "a-b": (0.10, 20, 78, "-"),
    "a+b-c+d": (0.05, 10, 39, "+-+"),
    "a+b-c-d": (0.05, 10, 39, "+--"),
}
BROKEN = 0.1  # of the traces
ARMS = ("curated", "passed, at random", "random", "longest")


def learn(seeds: Sequence[int]) -> dict[str, Any]:
    """What the tiny model learns from 1,000 rows: curated, random, longest.

    The pool of each seed has 4,000 sums of five domains in shares of 5 to 55 %. Of the traces 10 % are broken: a box that is not closed,
    a character that was decoded wrongly, or a wrong step, which no stage sees. A census of one greedy answer of the base to each row says
    what it solves. All arms take 150 steps of 64 rows from the same base, with the same learning rate. Accuracy is greedy, on 80 held-out
    problems of each domain: balanced, their mean; as the pool, weighted by the domains' shares.
    """
    runtime = Runtime.start(dtype="float32", device="cpu")
    torch.set_num_threads(1)
    verifiers = Verifiers(VerifierOptions(num_workers=1))
    try:
        base = tiny_base("arithmetic", verifiers, runtime, Progress(0, quiet=True))
        runs = [of_seed(seed, base, verifiers, runtime) for seed in seeds]
    finally:
        verifiers.close()
        runtime.close()
    return {
        "options": {"steps": STEPS, "rows": ROWS, "learning_rate": RATE, "pool": POOL, "chosen": CHOSEN},
        "seeds": runs,
        "accuracy": {
            f"{arm}, {on}": statistics.mean(run[arm][on] for run in runs)
            for arm in ("base", *ARMS)
            for on in ("balanced", "as the pool")
        },
        "points of curated over": {
            f"{arm}, {on}": difference(
                [100 * run["curated"][on] for run in runs], [100 * run[arm][on] for run in runs], 1
            )
            for arm in ARMS[1:]
            for on in ("balanced", "as the pool")
        },
    }


def of_seed(seed: int, base: Path, verifiers: Verifiers, runtime: Runtime) -> dict[str, Any]:
    rng = random.Random(seed)
    problems = {name: sums(rng, name, HELD_OUT) for name in DOMAINS}
    rows = pool(rng, {one["question"] for of in problems.values() for one in of})
    held_out = {name: as_problems(of) for name, of in problems.items()}
    collector = of_base(base, verifiers)
    found: dict[str, Any] = {"seed": seed, "base": accuracy(collector, held_out)}
    with TemporaryDirectory() as folder:
        arms, found["left after"] = choose(Path(folder), rows, solved(collector, rows), seed)
    for arm in ARMS:
        started = time.process_time()
        collector = of_base(base, verifiers)
        train(collector, as_problems(arms[arm]), seed, runtime)
        found[arm] = accuracy(collector, held_out)
        found[arm]["rows"] = {name: sum(one["domain"] == name for one in arms[arm]) for name in DOMAINS}
        print(seed, arm, found[arm], f"{time.process_time() - started:.0f} CPU seconds", flush=True)
    return found


def sums(rng: random.Random, domain: str, count: int) -> list[dict[str, str]]:
    """Different sums with their worked solutions; fewer where there are fewer."""
    _, least, most, signs = DOMAINS[domain]
    found: dict[str, dict[str, str]] = {}
    for _ in range(4 * count):
        question = total = str(rng.randint(least, most))
        steps = []
        for sign in signs:
            term = f"{sign}{rng.randint(10, 39)}"
            before, total = total, str(int(total) + int(term))
            question, steps = question + term, [*steps, f"{before}{term}={total}"]
        worked = "\n".join([*steps, f"\\boxed{{{total}}}"])
        found[question] = {"question": question, "answer": total, "worked": worked, "domain": domain}
    return [*found.values()][:count]


def pool(rng: random.Random, held_out: set[str]) -> list[dict[str, str]]:
    rows = [one for name, (share, *_) in DOMAINS.items() for one in sums(rng, name, round(share * POOL))]
    rows = [broken(rng, one) if rng.random() < BROKEN else one for one in rows if one["question"] not in held_out]
    return rng.sample(rows, len(rows))


def broken(rng: random.Random, row: dict[str, str]) -> dict[str, str]:
    worked, wrong = row["worked"], str(int(row["answer"]) + 10)
    kinds = (worked[:-1], worked.replace("=", "\ufffd", 1), worked.replace(row["answer"], wrong))
    return {**row, "worked": rng.choice(kinds)}


def as_problems(rows: Sequence[dict[str, str]]) -> list[Problem]:
    return [
        Problem(id=str(n), prompt=row["question"], reference=row["answer"], metadata=row) for n, row in enumerate(rows)
    ]


def of_base(base: Path, verifiers: Verifiers) -> Collector:
    tokenizer = AutoTokenizer.from_pretrained(base)
    return Collector(
        sampler=TorchSampler(AutoModelForCausalLM.from_pretrained(base), tokenizer),
        verifiers=verifiers,
        renderer=PromptRenderer(tokenizer, style="plain"),
        params=SamplingParams(max_tokens=80),
        group_size=1,
        run_seed=0,
    )


def solved(collector: Collector, rows: Sequence[dict[str, str]]) -> list[bool]:
    greedy = replace(collector, params=replace(collector.params, temperature=0.0))
    return [is_right(group.rollouts[0]) for group in greedy.collect(as_problems(rows), step=0).groups]


def choose(
    folder: Path, rows: Sequence[dict[str, str]], solves: Sequence[bool], seed: int
) -> tuple[dict[str, list[dict[str, Any]]], dict[str, int]]:
    """(the rows of each arm, rows left after each stage)."""
    census = [
        {"prompt": row["question"], "pass_rate": float(is_solved)} for row, is_solved in zip(rows, solves, strict=True)
    ]
    for name, lines in (("rows", rows), ("census", census)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    def curated(size: int) -> tuple[list[dict[str, Any]], dict[str, int]]:
        asked = CurateOptions(
            rows=(folder / "rows.jsonl",),
            out=folder / "out.jsonl",
            solved_by=(folder / "census.jsonl",),
            size=size,
            seed=seed,
        )
        left = curate(Curation(**vars(asked))).left
        return [dict(problem.metadata) for problem in load_problems(str(folder / "out.jsonl"))], left

    rng = random.Random(seed)
    found, left = curated(CHOSEN)
    arms = {
        "curated": found,
        "passed, at random": rng.sample(curated(len(rows))[0], CHOSEN),
        "random": rng.sample(rows, CHOSEN),
        "longest": sorted(rows, key=lambda row: len(row["worked"].split()), reverse=True)[:CHOSEN],
    }
    return arms, left


def train(collector: Collector, problems: Sequence[Problem], seed: int, runtime: Runtime) -> None:
    """All worked solutions as they are: a run would leave out those that it does not grade as correct."""
    assert isinstance(collector.sampler, TorchSampler)
    learner = supervised_learner(collector.sampler.model, RATE, runtime)
    stream = ProblemStream.of(problems, seed)
    for step in range(STEPS):
        learner.set_learning_rate(RATE * min(1.0, (step + 1) / WARMUP, 2 * (1 - step / STEPS)))
        supervised_step(learner, stream.take(ROWS), collector.renderer)


def accuracy(collector: Collector, held_out: dict[str, list[Problem]]) -> dict[str, Any]:
    by_domain = {name: evaluate(collector, problems)["eval/accuracy"] or 0.0 for name, problems in held_out.items()}
    return {
        "balanced": statistics.mean(by_domain.values()),
        "as the pool": sum(DOMAINS[name][0] * found for name, found in by_domain.items()),
        "by domain": by_domain,
    }
