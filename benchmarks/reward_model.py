"""Share of held-out answers that the rule calls right, before and after RL on a reward model: of answers, of steps, and trained again.

    python -m benchmarks.reward_model

The policy is the tiny model's base on the task `arithmetic`, and the rule that its answer is even (benchmarks/even_answer.py). To judge
the sums themselves takes a model that can add better than the policy: a judge that is right in two of three pairs is exploited at once.
For each seed completions of the base are labelled by the rule, and two classification models that begin as the base are trained on
them: one on the answers, one on whether the number at the end of each step is even. RL starts from the base with the rule (`rules`, to
compare with), with the model of answers (`outcome`), with that of steps (`process`), and with the model of answers trained after every
`every` steps on what the policy has written (`iterative`).
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import tyro
from torch.nn.functional import cross_entropy

from benchmarks.even_answer import even
from benchmarks.machine import describe_machine, write_result
from rewards.reward_spec import parse_rewards
from rewards.verifiers import REWARD, VerifierOptions, Verifiers
from rl.pipeline.iterative import fit, new_reward_model
from rl.policy.load import load_pretrained
from rl.policy.reward_model import RewardModel
from rl.processes.runtime import Runtime
from rl.run.loop import train
from rl.run.setup import tiny_base
from rl.settings.config import RunConfig
from rl.update.reward_training import BATCH, labelled
from rl.update.step_metrics import mean, reward_model_agreement
from rl.view.metrics import read_metrics
from rl.view.progress import Progress
from rollout.collect import Collector
from rollout.problems import load_problems, split_held_out
from rollout.prompts import PromptRenderer
from rollout.records import RolloutGroup
from rollout.sampler import SamplingParams
from rollout.steps import written_steps
from rollout.torch_sampler import TorchSampler

TASK, HELD_OUT, MAX_TOKENS = "arithmetic", 400, 32
RULE = ("benchmarks.even_answer:even",)
RATE = 1e-3  # of the classification models
TESTED = 5  # one in so many groups is not trained on


@dataclass(frozen=True, kw_only=True)
class Options:
    seeds: int = 3
    steps: int = 12
    """Of RL."""
    every: int = 4
    """Steps of an outer iteration of `iterative`."""
    problems_per_step: int = 48
    group_size: int = 8
    labelled: int = 320
    """Problems whose completions the first reward models are trained on."""
    epochs: int = 2
    """Passes of their training."""


def sampled(base: Path, seed: int, options: Options, verifiers: Verifiers) -> list[RolloutGroup]:
    """Completions of the base with the rule's verdicts, and their steps."""
    model, tokenizer = load_pretrained(base, torch.device("cpu"))
    collector = Collector(
        sampler=TorchSampler(model, tokenizer),
        verifiers=verifiers,
        renderer=PromptRenderer(tokenizer, style="plain"),
        params=SamplingParams(max_tokens=MAX_TOKENS, temperature=1.0),
        group_size=options.group_size,
        run_seed=seed,
        scores_steps=True,
    )
    training, _ = split_held_out(load_problems(TASK), HELD_OUT)
    chosen = random.Random(seed).sample(training, options.labelled)
    return collector.collect([replace(problem, verifier=REWARD) for problem in chosen], step=0).groups


def fit_steps(model: RewardModel, groups: Sequence[RolloutGroup], options: Options) -> None:
    """Trains on whether each step ends with an even number, by the cross-entropy of the two labels at its last token."""
    optimizer = torch.optim.AdamW(model.model.parameters(), RATE, weight_decay=0.0)
    rollouts = [r for group in groups for r in group.rollouts if r.step_rewards]
    for epoch in range(options.epochs):
        order = random.Random(epoch).sample(rollouts, len(rollouts))
        for start in range(0, len(order), BATCH):
            batch = order[start : start + BATCH]
            steps = [written_steps(r.problem, r.completion) for r in batch]
            texts = [
                model.read(r.problem.question, r.completion.text, [s.end for s in of]) for r, of in zip(batch, steps)
            ]
            rows = [i for i, text in enumerate(texts) for _ in text.step_tokens]
            places = [place for text in texts for place in text.step_tokens]
            labels = torch.tensor([int(even(r.completion.text[: s.end])) for r, of in zip(batch, steps) for s in of])
            cross_entropy(model.logits(texts)[rows, places], labels).backward()
            optimizer.step()
            optimizer.zero_grad()


def trained_models(
    base: Path, folder: Path, seed: int, options: Options, verifiers: Verifiers, runtime: Runtime
) -> dict[str, Any]:
    """Trains both models and saves them in the folder. -> how well they order completions that they were not trained on."""
    groups = sampled(base, seed, options, verifiers)
    training, tested = [g for i, g in enumerate(groups) if i % TESTED], groups[::TESTED]
    rollouts = [r for group in tested for r in group.rollouts]
    answers, steps = (
        new_reward_model(base, folder / name, runtime.device, num_labels=n)
        for name, n in (("answers", 1), ("steps", 2))
    )
    fit(answers, list(labelled(training, 0)), runtime, rate=RATE, epochs=options.epochs, seed=seed)
    fit_steps(steps, training, options)
    found: dict[str, Any] = {"completions": options.group_size * len(training)}
    for name, model in (("answers", answers), ("steps", steps)):
        model.model.save_pretrained(folder / name)
        found[f"auc_of_{name}"] = reward_model_agreement(model.rewarded(rollouts))["reward_model/auc"]
    return found


def arms(folder: Path, every: int) -> dict[str, dict[str, Any]]:
    """The options of each kind of run."""
    answers, steps = ({"reward_model": str(folder / name)} for name in ("answers", "steps"))
    return {
        "rules": {"algorithm": "grpo"},
        "outcome": {"algorithm": "grpo", **answers},
        "process": {"algorithm": "grpo-process", **steps},
        "iterative": {"algorithm": "grpo-iterative", **answers, "reward_model_every": every},
    }


def run(folder: Path, seed: int, options: Options, **changed: Any) -> dict[str, Any]:
    """A run of RL. -> the rules' accuracy before and after, and what the reward model knew of the policy's own completions."""
    usual: Mapping[str, Any] = {
        "reward": RULE,
        "num_steps": options.steps,
        "warmup_steps": 4,
        "schedule": "constant",
        "problems_per_step": options.problems_per_step,
        "group_size": options.group_size,
        "eval_every": options.steps,
        "eval_size": HELD_OUT,
        "save_every": options.steps,
        "verifier_workers": 1,
        "device": "cpu",
    }
    started = time.perf_counter()
    rows = read_metrics(train(RunConfig(**usual, **changed, seed=seed, run_dir=folder)))
    auc = [row["reward_model/auc"] for row in rows if row.get("reward_model/auc") is not None]
    return {
        "accuracy_before": rows[0]["eval/accuracy"],
        "accuracy_after": rows[-1]["eval/accuracy"],
        "auc_at_first": mean(auc[:3]),
        "auc_at_last": mean(auc[-3:]),
        "seconds": time.perf_counter() - started,
    }


def of_seed(base: Path, seed: int, options: Options, verifiers: Verifiers, runtime: Runtime) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        models = trained_models(base, folder, seed, options, verifiers, runtime)
        print(f"seed {seed}: {models}", flush=True)
        chosen = arms(folder, options.every).items()
        runs = {name: run(folder / name, seed, options, **changed) for name, changed in chosen}
    print(f"seed {seed}: {runs}", flush=True)
    return {"seed": seed, "models": models, "runs": runs}


def main(options: Options) -> None:
    runtime = Runtime.start(dtype="float32", device="cpu")
    verifiers = Verifiers(VerifierOptions(num_workers=1, rewards=parse_rewards(RULE)))
    try:
        with Progress(0, quiet=True) as progress:
            base = tiny_base(TASK, verifiers, runtime, progress)
        found = [of_seed(base, seed, options, verifiers, runtime) for seed in range(options.seeds)]
    finally:
        verifiers.close()
        runtime.close()
    keys = ("accuracy_before", "accuracy_after")
    means = {name: {key: mean(f["runs"][name][key] for f in found) for key in keys} for name in found[0]["runs"]}
    result = {
        **describe_machine(),
        "command": " ".join(["python -m benchmarks.reward_model", *sys.argv[1:]]),
        "options": vars(options),
        "means": means,
        "found": found,
    }
    write_result("reward_model", __doc__ or "", result)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
