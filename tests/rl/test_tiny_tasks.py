"""Each built-in task has a base of its own, whose solutions a run has room for."""

from __future__ import annotations

import sys
from contextlib import closing
from pathlib import Path

import pytest

import rl.run.warm_start
from rewards.verifiers import VerifierOptions, Verifiers
from rl.cli import run_recipe
from rl.processes.runtime import Runtime
from rl.run.tiny import END, tiny_tokenizer
from rl.run.warm_start import WarmStart, warm_started
from rl.settings.config import RunConfig
from rl.settings.defaults import TINY, TINY_TASKS, tiny_task
from rl.settings.resolve import model_defaults, resolve
from rl.view.progress import Progress
from rollout.demonstrations import demonstration
from rollout.environment import Environments
from rollout.games import TOOL_TASKS
from rollout.problems import BUILT_IN, load_problems
from rollout.prompts import PromptRenderer
from rollout.worked import worked_messages, worked_text


@pytest.mark.parametrize("task", TINY_TASKS)
def test_every_worked_solution_fits_and_can_be_read_back(task: str) -> None:
    """One that is cut off by max_tokens could never be rewarded; one that decodes to other text would be taught wrong."""
    tools, problems = TOOL_TASKS.get(task), load_problems(task)[:2000]
    tokenizer = tiny_tokenizer(tools.words if tools else ())
    renderer, said = PromptRenderer(tokenizer, style="plain"), 0
    if tools:  # what an environment says at the beginning counts to the completion (rollout/collect.py)
        with closing(Environments([tools.environment], deadline=9)) as environments:
            begun = [environments.begun(problem) for problem in problems[:1]]
        said = len(renderer.render(begun[0])) - len(renderer.render(problems[0]))
    completions = [demonstration(problem, renderer).rollouts[0].completion for problem in problems]
    assert max(len(c.token_ids) for c in completions) + said <= model_defaults(TINY, task)["max_tokens"]
    for problem, completion in zip(problems, completions, strict=True):
        turns = tokenizer.decode([t for t, own in zip(completion.token_ids, completion.loss_mask, strict=True) if own])
        spoken = [message["content"] for message in worked_messages(problem) if message["role"] == "assistant"]
        assert turns == "".join(text + END for text in spoken) and completion.text == worked_text(problem)


def test_a_run_on_other_data_starts_from_the_base_of_arithmetic() -> None:
    assert set(TINY_TASKS) <= set(BUILT_IN)
    assert [tiny_task(name) for name in ("small-programs", "data.jsonl")] == ["small-programs", "arithmetic"]
    defaults = [resolve(RunConfig(dataset=name), "cpu").max_tokens for name in ("small-programs", "data.jsonl")]
    assert defaults == [24, 32]


def test_each_recipe_has_a_base_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    recipes = [("a", 32, 0), ("b", 32, 0), ("a", 24, 0), ("a", 32, 1)]
    folders = {WarmStart(dataset=d, max_tokens=n, eval_size=9, seed=s).folder() for d, n, s in recipes}
    assert len(folders) == len(recipes)
    assert all(tmp_path in folder.parents for folder in folders)


@pytest.mark.parametrize(("options", "dataset"), [([], "small-programs"), (["--dataset", "x.jsonl"], "x.jsonl")])
def test_a_recipes_defaults_give_way_to_options(
    options: list[str], dataset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[RunConfig] = []
    monkeypatch.setattr("rl.run.loop.train", seen.append)
    monkeypatch.setattr(sys, "argv", ["grpo_code.py", *options])
    run_recipe("", dataset="small-programs")
    assert seen == [RunConfig(dataset=dataset)]


def test_of_two_first_runs_at_once_the_slower_one_takes_the_base_of_the_faster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be read at this moment, so it is neither removed nor replaced."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    recipe = WarmStart(dataset="arithmetic", max_tokens=8, eval_size=2)

    def taught_while_another_run_saves_its_own(*_: object) -> float:
        recipe.folder().mkdir(parents=True)
        (recipe.folder() / "config.json").write_text("the faster one's")
        return 0.5

    monkeypatch.setattr(rl.run.warm_start, "_teach", taught_while_another_run_saves_its_own)
    with closing(Verifiers(VerifierOptions(num_workers=1))) as verifiers, Progress(0, quiet=True) as progress:
        folder = warm_started(recipe, verifiers, Runtime.start(dtype="float32", device="cpu"), progress)
    assert (folder / "config.json").read_text() == "the faster one's"
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
