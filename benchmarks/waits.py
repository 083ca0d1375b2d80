"""Accuracy over thinking tokens with 0 to 4 Waits, and with rejection sampling by length (s1, arXiv 2501.19393), on search traces.

    python -m benchmarks.waits

For each seed the tiny model is trained on worked solutions of the task `searches`. Sampled at temperature 1 it gives up as often as
they do. Waits: budget forcing, with a budget that all Waits have room in. Rejection
sampling: of the completions without Waits, in the order they were sampled, the first whose thinking has at most that many tokens.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
import tyro

from benchmarks.machine import describe_machine, write_result
from rewards.verifiers import VerifierOptions, Verifiers
from rl.command.estimate import Estimate
from rl.command.thinking_budgets import SCALING, Floats, mean_slope, s1_estimates
from rl.processes.runtime import Runtime
from rl.run.evaluate import is_right
from rl.run.tiny import tiny_model, tiny_tokenizer
from rl.run.warm_start import supervised_learner, supervised_step
from rollout.budget_forcing import rollout_within
from rollout.collect import Collector
from rollout.problem_stream import ProblemStream
from rollout.problems import load_problems, split_held_out
from rollout.prompts import PromptRenderer
from rollout.records import Problem
from rollout.sampler import SamplingParams
from rollout.thinking_budget import ThinkingBudget
from rollout.torch_sampler import TorchSampler

WAITS, BUDGET, MAX_TOKENS = (0, 1, 2, 3, 4), 400, 440
RATE, WARMUP = 2e-3, 20  # the peak of the learning rate, and the steps to it
LENGTHS = (8, 21, 34, 47, 86)  # thinking tokens: one try has 8, and each further one 13 more


@dataclass(frozen=True, kw_only=True)
class Options:
    seeds: int = 3
    steps: int = 1200
    """Supervised ones."""
    demonstrations: int = 32
    """Worked solutions of a step."""
    problems: int = 100
    """Held-out problems."""
    samples: int = 8
    """Completions of each problem."""
    threads: int = 1
    """One for a machine that others use too: threads that wait for each other's turn are many times as slow."""


def trained(
    seed: int, options: Options, verifiers: Verifiers, runtime: Runtime, training: Sequence[Problem]
) -> Collector:
    """A collector of the tiny model of this seed, which is trained now, on all worked solutions: a supervised run would leave out those
    that give up at a wrong try."""
    tokenizer = tiny_tokenizer()
    model = tiny_model(tokenizer, seed=seed, device=runtime.device)
    learner = supervised_learner(model, RATE, runtime)
    renderer, stream = PromptRenderer(tokenizer, style="plain"), ProblemStream.of(training, seed)
    for step in range(1, options.steps + 1):
        learner.set_learning_rate(RATE * min(1.0, step / WARMUP, 2 * (1 - (step - 1) / options.steps)))
        loss = supervised_step(learner, stream.take(options.demonstrations), renderer)["loss"]
        if step % 100 == 0:
            print(f"seed {seed}: step {step} of {options.steps}, loss {loss:.3f}", flush=True)
    return Collector(
        sampler=TorchSampler(model, tokenizer),
        verifiers=verifiers,
        renderer=renderer,
        params=SamplingParams(max_tokens=MAX_TOKENS, temperature=1.0),
        group_size=options.samples,
        run_seed=seed,
    )


def with_waits(collector: Collector, waits: int, problems: Sequence[Problem]) -> tuple[Floats, Floats]:
    """Thinking tokens, and 1 for correct answers, of the samples of each problem. -> float[problems, samples] twice."""
    assert isinstance(collector.sampler, TorchSampler)
    budget = ThinkingBudget(least=BUDGET, most=BUDGET, waits=waits)
    rollout = rollout_within(budget, collector.sampler.model, collector.renderer, collector.params, problems[0])
    groups = replace(collector, rollout=rollout).collect(problems, step=0).groups
    thinking = [[r.completion.thinking for r in group.rollouts] for group in groups]
    num_tokens = [[t.num_tokens for t in row if t is not None] for row in thinking]
    return np.array(num_tokens, float), np.array([[is_right(r) for r in group.rollouts] for group in groups], float)


def of_waits(measured: Sequence[tuple[Floats, Floats]]) -> dict[str, Any]:
    """Tokens and accuracy at each number of Waits, and the metrics of s1."""
    num_tokens, right = (np.stack([pair[i].mean(1) for pair in measured], 1) for i in range(2))
    metrics = s1_estimates([BUDGET] * len(WAITS), num_tokens, right)
    points = {str(waits): point(num_tokens[:, i], right[:, i]) for i, waits in enumerate(WAITS)}
    return {"waits": points, **{name: as_dict(metrics[name]) for name in ("control", SCALING, "performance")}}


def of_rejection(num_tokens: Floats, right: Floats) -> dict[str, Any]:
    """Tokens and accuracy of the first sample that is short enough, over the problems that have one at every length."""
    fits = np.stack([num_tokens <= length for length in LENGTHS], 1)
    chosen, rows = fits.argmax(2), fits.any(2).all(-1)
    a, f = (np.take_along_axis(values, chosen, 1)[rows] for values in (num_tokens, right))
    points = {str(length): point(a[:, i], f[:, i]) for i, length in enumerate(LENGTHS)}
    slope = Estimate.by_bootstrap(
        lambda drawn: 100_000 * mean_slope(a[drawn].mean(1), f[drawn].mean(1)), len(a), is_share=False
    )
    return {"rejection": points, SCALING: as_dict(slope)}


def point(num_tokens: Floats, right: Floats) -> dict[str, Any]:
    return {"thinking_tokens": num_tokens.mean(), "accuracy": as_dict(Estimate.of(right.tolist()))}


def as_dict(estimate: Estimate | None) -> dict[str, Any] | None:
    return None if estimate is None else asdict(estimate)


def main(options: Options) -> None:
    runtime = Runtime.start(dtype="float32", device="cpu")
    torch.set_num_threads(options.threads)
    verifiers = Verifiers(VerifierOptions(num_workers=1))
    training, problems = split_held_out(load_problems("searches"), options.problems)
    found = []
    try:
        for seed in range(options.seeds):
            started = time.perf_counter()
            collector = trained(seed, options, verifiers, runtime, training)
            ready = time.perf_counter()
            measured = [with_waits(collector, waits, problems) for waits in WAITS]
            seconds = {"training": ready - started, "measuring": time.perf_counter() - ready}
            found.append(
                {"seed": seed, "seconds": seconds, **of_waits(measured), "by_length": of_rejection(*measured[0])}
            )
            print(found[-1], flush=True)
    finally:
        verifiers.close()
        runtime.close()
    command = " ".join(["python -m benchmarks.waits", *sys.argv[1:]])
    write_result(
        "waits",
        __doc__ or "",
        {
            **describe_machine(),
            "command": command,
            "options": vars(options),
            "found": found,
        },
    )


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
