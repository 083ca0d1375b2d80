"""Iterative GRPO from the beginning, DeepSeekMath's Algorithm 1 (arXiv 2402.03300): a reward model is made, and trained again as the policy moves.

The first reward model is the policy with a head in place of its output layer, trained on the policy's own completions with the rules'
verdicts. The stage of RL then learns from its scores; after each iteration the model is trained on the completions of that iteration with a
replay of earlier ones, and the policy becomes the reference.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from shutil import rmtree
from typing import Annotated

import torch

from rewards.errors import UserError
from rewards.verifiers import Verifiers
from rl.command.census import sampled
from rl.command.evaluate_model import opened
from rl.pipeline.pipeline import Pipeline, as_json, folder_of, some_of, with_model_defaults
from rl.pipeline.stages import Found, Stage
from rl.policy.load import load_pretrained
from rl.policy.reward_model import KINDS, RewardModel
from rl.processes.runtime import Runtime
from rl.run.build import with_environments
from rl.run.setup import tiny_base
from rl.settings.config import RunConfig
from rl.settings.declare import POSITIVE, at_least, require_possible
from rl.settings.defaults import REWARD_MODEL_RATE, TINY, TINY_REWARD_MODEL_RATE
from rl.update.reward_training import Example, RewardTrainer, batches_with_replay, labelled
from rl.update.step_metrics import reward_model_agreement
from rl.view.progress import Progress
from rollout.records import RolloutGroup

STAGES = ("reward-model", "rl")
REWARD_MODEL, RL = STAGES
MODEL = "model"  # folder of the first reward model
RUN_DEFAULTS = {"algorithm": "grpo-iterative"}
# Options of the run that the stages set.
SET_HERE = {
    "reward_model": "the stage reward-model makes it",
    "reward_model_every": "every has the steps of an iteration",
    "refresh_reference_every": "every has the steps of an iteration",
    "reward_model_learning_rate": "reward_model_rate is its learning rate",
}
TESTED = 5  # the completions of one problem in so many are not trained on


@dataclass(frozen=True, kw_only=True)
class IterativeOptions:
    """Options of the pipeline beside those of its run."""

    stages: Annotated[tuple[str, ...], some_of(STAGES)] = STAGES
    """Stages to run, in this order: reward-model (made of model, trained on its completions), rl. One that is done already is not run again."""
    every: Annotated[int, at_least(1)] = 20
    """Steps of an iteration: after them the reward model is trained again, and the policy becomes the reference."""
    samples: Annotated[int, at_least(2)] = 4
    """Completions of each problem that the first reward model is trained on."""
    problems: Annotated[int, at_least(2)] = 1024
    """Problems that are sampled for it, the first of the training data."""
    epochs: Annotated[int, at_least(1)] = 2
    """Passes of its training."""
    reward_model_rate: Annotated[float | None, POSITIVE] = None
    """Learning rate of the reward model, also of its training in the run. Default: 1e-3 for the tiny model, 2e-5 for others."""

    def __post_init__(self) -> None:
        require_possible(self, declared_in=IterativeOptions)

    def rate(self, model: str) -> float:
        return self.reward_model_rate or (TINY_REWARD_MODEL_RATE if model == TINY else REWARD_MODEL_RATE)


def run_iterative(config: RunConfig, options: IterativeOptions) -> Path:
    """Runs the stages and writes report.md. config: of the stage rl."""
    for name, instead in SET_HERE.items():
        if getattr(config, name) is not None:
            raise UserError(f"{name} is {getattr(config, name)!r}: {instead}; leave it out")
    pipeline = Iterative(config=with_model_defaults(config), options=options, out=folder_of(config, "iterative"))
    return pipeline.run(STAGES, options.stages, f"Iterative GRPO of {config.model} on {' '.join(config.dataset)}")


@dataclass(frozen=True, kw_only=True)
class Iterative(Pipeline):
    """The stages of iterative GRPO."""

    options: IterativeOptions

    def stage(self, name: str, progress: Progress) -> Stage:
        if name == REWARD_MODEL:
            return self.reward_model(progress)
        model = self.ended(REWARD_MODEL) / MODEL
        every = self.options.every
        config = replace(
            self.with_held_out(),
            reward_model=str(model),
            reward_model_every=every,
            reward_model_learning_rate=self.options.rate(self.config.model),
            refresh_reference_every=every,
        )
        return self.reinforced(name, None, config)

    def reward_model(self, progress: Progress) -> Stage:
        """Completions of the base with the rules' verdicts, and a reward model that is trained on them."""
        options, census = self.options, self.census(self.config.model, self.options.samples)
        rate = options.rate(self.config.model)

        def make(folder: Path) -> Found:
            problems = self.training_problems()[: options.problems]
            runtime = Runtime.start(dtype="float32", device=self.config.device)
            asking, environments = with_environments(census)
            with opened(asking, environments, problems, "training", progress) as (collector, graded):
                groups = list(sampled(collector, graded, progress, "completions for the reward model: "))
                base = self.config.model
                if base == TINY:
                    verifiers = collector.verifiers
                    assert isinstance(verifiers, Verifiers)
                    base = str(tiny_base(self.config.dataset[0], verifiers, runtime, progress))
            progress.start("training the reward model")
            with closing(runtime):
                return fitted(
                    base, folder / MODEL, groups, runtime, rate=rate, epochs=options.epochs, seed=self.config.seed
                )

        told = {**vars(census), "problems": options.problems, "epochs": options.epochs, "rate": rate}
        return Stage(
            name=REWARD_MODEL,
            does=f"a reward model made of the base, trained on {options.samples} completions of each problem",
            options=as_json(told),
            make=make,
        )


def fitted(
    base: str, folder: Path, groups: Sequence[RolloutGroup], runtime: Runtime, *, rate: float, epochs: int, seed: int
) -> Found:
    """Trains a reward model on four fifths of the groups and saves it. -> completions, and how well it orders the others.

    Raises UserError if the rules found no correct completions, or no wrong ones.
    """
    tested, trained = groups[::TESTED], [group for i, group in enumerate(groups) if i % TESTED]
    examples = list(labelled(trained, 0))
    right = sum(example.is_correct for example in examples)
    if not 0 < right < len(examples):
        raise UserError(
            f"problems is {len(groups)}: of their {len(examples)} completions {right} are correct, and a reward model learns from correct and "
            "wrong ones; name other data, a model that solves some of it, or more problems"
        )
    untrained = folder.with_name("untrained")
    model = new_reward_model(base, untrained, runtime.device)
    fit(model, examples, runtime, rate=rate, epochs=epochs, seed=seed)
    model.model.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    rmtree(untrained)
    found = model.rewarded([rollout for group in tested for rollout in group.rollouts])
    return {"completions": len(examples), "correct": right, **reward_model_agreement(found)}


def fit(
    model: RewardModel, examples: Sequence[Example], runtime: Runtime, *, rate: float, epochs: int, seed: int
) -> None:
    """Trains the model as a run does, in passes over all examples."""
    trainer = RewardTrainer.of(model, runtime, learning_rate=rate, every=1, replay=0.0, seed=seed)
    for epoch in range(epochs):
        for batch in batches_with_replay(examples, [], 0.0, random.Random(f"reward model/{seed}/{epoch}")):
            trainer.update(batch)


def new_reward_model(base: str | Path, folder: Path, device: torch.device, *, num_labels: int = 1) -> RewardModel:
    """The base with a head of zeros in place of its output layer, in this folder too. num_labels: 1 scores answers, 2 scores steps."""
    _, tokenizer = load_pretrained(base, torch.device("cpu"))  # whose checks name what is wrong
    auto = next(auto for auto, labels in KINDS.values() if labels == num_labels)
    model = auto.from_pretrained(base, num_labels=num_labels, dtype=torch.float32)
    torch.nn.init.zeros_(model.score.weight)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    loaded = RewardModel.load(str(folder), device)
    loaded.model.requires_grad_(True)
    return loaded
