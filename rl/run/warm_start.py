"""The base model of a default run: a tiny model trained on worked solutions until half of its answers are correct.

RL learns nothing from a base that is correct in 2 % of cases, and has nothing to show with one that is correct in 90 %, so the warm
start ends at a held-out accuracy and not after a number of steps. A task with tools is taught for a number of steps: how often its base
calls them, and how well, is what its worked solutions do.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rewards.errors import UserError
from rewards.verifiers import Verifiers
from rl.objective.algorithms import SFT
from rl.policy.policy import Policy
from rl.processes.runtime import Runtime
from rl.run.evaluate import evaluate
from rl.run.tiny import tiny_model, tiny_tokenizer
from rl.update.batch import pack
from rl.update.learner import Learner
from rl.update.step_metrics import Metrics
from rl.update.update import update
from rl.view.progress import Progress
from rollout.collect import Collector
from rollout.demonstrations import demonstrate
from rollout.environment import Environments
from rollout.games import TOOL_TASKS, ToolTask
from rollout.problem_stream import ProblemStream
from rollout.problems import load_problems, split_held_out
from rollout.prompts import PromptRenderer
from rollout.records import Problem
from rollout.sampler import SamplingParams
from rollout.tool_rollout import DEFAULT_DEADLINE
from rollout.torch_sampler import TorchSampler


@dataclass(frozen=True, kw_only=True)
class WarmStart:
    """How the base model is trained. Its cache folder is named after these values.

    dataset: a built-in task whose problems have worked solutions. max_tokens, eval_size: of the accuracy checks. lowest, highest:
    range of held-out accuracy to stop in.
    """

    dataset: str
    max_tokens: int
    eval_size: int
    seed: int = 0
    demonstrations_per_step: int = 64
    learning_rate: float = 2e-3
    lowest: float = 0.45
    highest: float = 0.53
    max_steps: int = 3000

    def folder(self) -> Path:
        name = hashlib.blake2b(json.dumps([FORMAT, asdict(self)]).encode(), digest_size=6).hexdigest()
        return cache_folder() / f"tiny-{self.dataset}-{name}"


def cache_folder() -> Path:
    """Where runs keep what other runs can use again: base models, rows of data."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "plumbline"


COARSE, FINE = 20, 5  # steps between accuracy checks, far from the range and near it: accuracy can jump within 20 steps
NEAR = 0.15
FORMAT = 1  # version of the tasks and the model: a change of either makes cached base models stale


def warm_started(recipe: WarmStart, verifiers: Verifiers, runtime: Runtime, progress: Progress) -> Path:
    """The folder of the base model, which is trained now unless it is cached."""
    folder = recipe.folder()
    if (folder / "config.json").is_file():
        progress.message(f"base model: {folder} (cached)")
        return folder
    training, held_out = split_held_out(load_problems(recipe.dataset), recipe.eval_size)
    task = TOOL_TASKS.get(recipe.dataset)
    tokenizer = tiny_tokenizer(task.words if task else ())
    model = tiny_model(tokenizer, seed=recipe.seed, device=runtime.device)
    learner = supervised_learner(model, recipe.learning_rate, runtime)
    stream = ProblemStream.of(training, recipe.seed)
    if task is not None:
        _teach_tools(recipe, task, learner, tokenizer, stream, progress)
        progress.message(f"base model: taught in {task.num_steps} steps, saved in {folder}")
    else:
        collector = Collector(
            sampler=TorchSampler(model, tokenizer),
            verifiers=verifiers,
            renderer=PromptRenderer(tokenizer, style="plain"),
            params=SamplingParams(max_tokens=recipe.max_tokens),
            group_size=1,
            run_seed=recipe.seed,
        )
        accuracy = _teach(recipe, learner, collector, stream, held_out, progress)
        progress.message(
            f"base model: {accuracy:.1%} of {len(held_out)} held-out problems are solved, saved in {folder}"
        )
    aside = folder.with_name(f"{folder.name}.{os.getpid()}")
    model.save_pretrained(aside)
    tokenizer.save_pretrained(aside)
    try:
        os.rename(aside, folder)
    except OSError:
        if not (folder / "config.json").is_file():
            raise
        shutil.rmtree(aside)  # another run was faster; its model is equal and may be in use
    return folder


def supervised_learner(model: PreTrainedModel, learning_rate: float, runtime: Runtime) -> Learner:
    """A learner for `supervised_step`, of all weights of the model."""
    return Learner(
        policy=Policy.of(model),
        reference=None,
        optimizer=torch.optim.AdamW(model.parameters(), learning_rate, (0.9, 0.99), weight_decay=0.0, fused=True),
        runtime=runtime,
        algorithm=SFT,
        temperature=1.0,
        token_budget=8192,
        max_grad_norm=1.0,
    )


def supervised_step(learner: Learner, problems: Sequence[Problem], renderer: PromptRenderer) -> Metrics:
    """One update on the problems' worked solutions, right or wrong. Returns its metrics."""
    return update(learner, pack(SFT.assign_credit(demonstrate(problems, renderer).groups, 0), SFT, 0))


def _teach_tools(
    recipe: WarmStart,
    task: ToolTask,
    learner: Learner,
    tokenizer: PreTrainedTokenizerBase,
    stream: ProblemStream,
    progress: Progress,
) -> None:
    """Takes supervised steps on episodes of the task's environment."""
    with closing(Environments([task.environment], deadline=DEFAULT_DEADLINE)) as environments:
        renderer = PromptRenderer(tokenizer, style="plain", tools_of=environments.schemas_of)
        for step in range(1, task.num_steps + 1):
            rate = recipe.learning_rate * min(1.0, step / COARSE, 2 * (1 - (step - 1) / task.num_steps))
            learner.set_learning_rate(rate)
            begun = [environments.begun(problem) for problem in stream.take(recipe.demonstrations_per_step)]
            supervised_step(learner, begun, renderer)
            if step % COARSE == 0:
                progress.start(f"training the base model, once: step {step} of {task.num_steps}")


def _teach(
    recipe: WarmStart,
    learner: Learner,
    collector: Collector,
    stream: ProblemStream,
    held_out: Sequence[Problem],
    progress: Progress,
) -> float:
    """Takes supervised steps until the held-out accuracy is within its range. -> the accuracy."""
    model = learner.policy.model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    rate, next_check = recipe.learning_rate, COARSE
    for step in range(1, recipe.max_steps + 1):
        learner.set_learning_rate(rate * min(1.0, step / COARSE))
        supervised_step(learner, stream.take(recipe.demonstrations_per_step), collector.renderer)
        if step < next_check:
            continue
        accuracy = evaluate(collector, held_out)["eval/accuracy"] or 0.0
        progress.start(f"training the base model, once, to {recipe.lowest:.0%} accuracy: step {step}, {accuracy:.1%}")
        if recipe.lowest <= accuracy <= recipe.highest:
            return accuracy
        next_check = step + (FINE if accuracy > NEAR else COARSE)
        if accuracy > recipe.highest:  # beyond the range: back to the last check, with smaller steps
            model.load_state_dict(before)
            rate /= 4
        else:
            before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    raise UserError(f"the warm start did not reach {recipe.lowest:.0%} in {recipe.max_steps} steps; run it again")
