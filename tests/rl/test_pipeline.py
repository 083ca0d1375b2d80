"""Pipelines: stages that are done once and go on where they were interrupted, rejection sampling, and the stages of R1."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import rl.run.loop
from rewards.errors import UserError
from rewards.math_answer import MathVerifier
from rewards.score import Outcome, Score
from rl.pipeline.pipeline import REPORT, with_model_defaults
from rl.pipeline.r1 import COLD_START_FILE, STAGES, R1Options, in_tags, run_r1
from rl.pipeline.rejection import Kept
from rl.pipeline.stages import Stage, run_stages, state_of, table
from rl.settings.config import RunConfig
from rl.settings.resolve import run_defaults
from rollout.arithmetic import arithmetic_problems
from rollout.problems import load_problems
from rollout.records import Completion, FinishReason, Problem, Rollout, RolloutGroup
from rollout.worked import worked_text
from tests.rl.test_loop import final_weights, measured


def stage(name: str, make: Callable[[Path], dict[str, Any]], **own: Any) -> Stage:
    return Stage(name=name, does="counts", options=own, make=make)


def test_a_stage_is_done_once_and_an_interrupted_one_goes_on(tmp_path: Path) -> None:
    calls: list[str] = []

    def interrupted(folder: Path) -> dict[str, Any]:
        calls.append("second")
        if calls.count("second") == 1:
            raise KeyboardInterrupt
        return {"count": 1234}

    def first(folder: Path) -> dict[str, Any]:
        calls.append("first")
        return {"share": [0.25, 0.5]}

    stages = [stage("one", first, size=3), stage("two", interrupted)]
    with pytest.raises(KeyboardInterrupt, match="stopped in the stage two; the same command goes on"):
        run_stages(stages, tmp_path, print)
    assert "found" not in state_of(tmp_path / "two")
    run_stages(stages, tmp_path, print)
    run_stages(stages, tmp_path, print)
    assert calls == ["first", "second", "second"]
    assert "| one | counts | share 0.250 -> 0.500 | 0 |\n| two | counts | count 1,234 | 0 |" in table(
        ["one", "two", "three"], tmp_path
    )


def test_a_stage_that_began_with_other_options_is_refused(tmp_path: Path) -> None:
    run_stages([stage("one", lambda folder: {}, size=3, run_dir="a")], tmp_path, print)
    run_stages([stage("one", lambda folder: {}, size=3, run_dir="b")], tmp_path, print)
    with pytest.raises(UserError, match=r"size is 4: one in '.*' began with 3; .* remove one and what was made of it"):
        run_stages([stage("one", lambda folder: {}, size=4)], tmp_path, print)
    (tmp_path / "one" / "stage.json").write_text("{")
    with pytest.raises(UserError, match=r"one/stage.json cannot be read .* remove the folder one"):
        run_stages([stage("one", lambda folder: {}, size=3)], tmp_path, print)


def test_rejection_keeps_correct_readable_and_different_completions_up_to_a_number_of_each_problem() -> None:
    problem = Problem(id="0", prompt=({"role": "user", "content": "1+1"},), reference="2")

    def rollout(text: str, value: float | None = 1.0, ends: FinishReason = FinishReason.STOP) -> Rollout:
        outcome = {1.0: Outcome.CORRECT, 0.0: Outcome.WRONG, None: Outcome.CRASHED}[value]
        completion = Completion(
            token_ids=(1,), sampler_logprobs=(0.0,), finish_reason=ends, policy_version=0, seed=0, text=text
        )
        return Rollout(problem=problem, completion=completion, score=Score(value, outcome))

    good = [f"<think>{n}</think><answer>2</answer>" for n in range(4)]
    group = RolloutGroup(
        problem=problem,
        prompt_ids=(1,),
        rollouts=(
            rollout(good[0], 0.0),
            rollout(good[3], None),
            rollout(good[1]),
            rollout(good[1].replace("><", "> <")),  # other white space makes another text
            rollout(good[1]),
            rollout("2"),
            rollout(good[2], ends=FinishReason.LENGTH),
            rollout(good[0]),  # a wrong one had the same text: still no duplicate of what is kept
            rollout(good[2]),
        ),
    )
    fallen = Counter[str]()
    kept = Kept(per_problem=2, formats=("think-answer",)).of(group, fallen)
    assert [r.completion.text for r in kept] == [good[1], good[1].replace("><", "> <")]
    assert fallen == {
        "wrong": 1,
        "could not be graded": 1,
        "a duplicate": 1,
        "think-answer": 1,
        "cut by max_tokens": 1,
        "more than enough of a problem": 2,
    }
    assert len(Kept(per_problem=9, formats=()).of(group, Counter())) == 5


def test_worked_solutions_in_tags() -> None:
    problem = in_tags(next(p for p in arithmetic_problems(27_000, seed=0) if p.id == "12+25-14"))
    assert worked_text(problem) == "<think>12+25=37\n37-14=23</think><answer>23</answer>"


@pytest.fixture
def own(tmp_path: Path) -> R1Options:
    traces = tmp_path / "traces.jsonl"
    rows = [{"question": f"{i}+{i}=", "answer": f"{2 * i}", "worked": f"#{2 * i}#"} for i in range(100, 116)]
    traces.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return R1Options(stages=STAGES, cold_start=str(traces), sft_steps=2, sft_learning_rate=1e-3, samples=2)


def test_the_stages_of_r1_go_on_to_the_bit_wherever_they_were_stopped(
    config: RunConfig, own: R1Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run_r1(config, own).parent
    parts = replace(config, run_dir=tmp_path / "parts")
    run_r1(parts, replace(own, stages=("zero", "cold-start")))
    steps = iter(range(100))
    train_step = rl.run.loop.train_step

    def killed(*args: Any, **kwargs: Any) -> Any:
        if next(steps) == 2:  # in the third step of the stage rl
            raise MemoryError
        return train_step(*args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(rl.run.loop, "train_step", killed)
        with pytest.raises(MemoryError):
            run_r1(parts, own)
    assert (tmp_path / "parts" / "rl" / "checkpoints" / "step-000002").exists()
    run_r1(parts, own)
    for name, steps_of in (("zero", 3), ("cold-start", 2), ("rl", 3), ("sft", 2), ("final-rl", 3)):
        weights, others = (final_weights(folder / name, steps_of) for folder in (whole, tmp_path / "parts"))
        assert weights.keys() == others.keys() and all(torch.equal(weights[key], others[key]) for key in weights)
        assert measured(whole / name) == measured(tmp_path / "parts" / name)
    assert (whole / "rejection" / "rows.jsonl").read_bytes() == (tmp_path / "parts/rejection/rows.jsonl").read_bytes()
    report = (whole / REPORT).read_text()
    assert all(f"| {name} |" in report for name in STAGES)
    assert json.loads((whole / "final-rl" / "config.json").read_text())["model"].endswith("sft/checkpoints/step-000002")


def test_what_rejection_keeps_is_data_for_sft_and_no_held_out_problem_is_in_it(
    config: RunConfig, own: R1Options
) -> None:
    folder = run_r1(config, replace(own, stages=("cold-start", "rl", "rejection"))).parent
    held_out = {p.question for p in load_problems(str(folder / "data" / "held_out.jsonl"))}
    kept = load_problems(str(folder / "rejection" / "rows.jsonl"))
    assert len(held_out) == 10 and kept and not held_out & {p.question for p in kept}
    assert all(len(worked_text(p)) % 2 for p in kept)  # odd lengths are correct here
    assert max(Counter(p.question for p in kept).values()) <= 2


def test_adapters_are_merged_between_stages(config: RunConfig, own: R1Options) -> None:
    """The next stage starts from what the one before it ended with: the same greedy held-out completions, so the same accuracy."""
    folder = run_r1(replace(config, lora_rank=2), replace(own, stages=("cold-start", "rl"))).parent
    assert json.loads((folder / "rl" / "config.json").read_text())["model"] == str(folder / "cold-start" / "merged")
    ends, begins = measured(folder / "cold-start")[-1], measured(folder / "rl")[0]
    assert ends["eval/accuracy"] == begins["eval/accuracy"] and ends["eval/length"] == begins["eval/length"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"stages": ("rl",)}, "stages leaves out cold-start: a later stage begins with it"),
        ({"stages": ("sft",)}, "stages leaves out rejection: a later stage begins with it"),
        ({"cold_start": None}, "cold_start is None: only the built-in arithmetic"),
    ],
)
def test_a_stage_without_what_it_begins_with_is_refused(
    config: RunConfig, own: R1Options, changed: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        run_r1(config, replace(own, **changed))


def test_nothing_correct_to_keep_is_said_with_its_reasons(
    config: RunConfig, own: R1Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_r1(config, replace(own, stages=("cold-start", "rl")))

    def wrong(self: MathVerifier, answers: list[str], references: list[str]) -> list[Score]:
        return [Score(float(a == r), Outcome.CORRECT if a == r else Outcome.WRONG) for a, r in zip(answers, references)]

    monkeypatch.setattr(MathVerifier, "verify_batch", wrong)
    with pytest.raises(
        UserError, match=r"samples is 2: no completion of 50 problems is correct and readable \(100 wrong\)"
    ):
        run_r1(config, own)


def test_several_processes_and_unknown_stages_are_refused(
    config: RunConfig, own: R1Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=r"stages is .*: it must be among zero, cold-start"):
        replace(own, stages=("warm",))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="num_processes is more than 1"):
        run_r1(config, own)


def test_a_checkpoint_of_the_tiny_model_is_trained_with_the_tiny_models_defaults() -> None:
    """Learning rates of adapters are ten times those of all weights."""
    filled = with_model_defaults(RunConfig(algorithm="grpo", lora_rank=4))
    whole = run_defaults(RunConfig(algorithm="grpo"))
    assert (filled.learning_rate, filled.kl_weight, filled.num_steps) == (10 * whole["learning_rate"], 0.001, 72)
    assert filled.gradient_checkpointing is filled.run_dir is None
    assert with_model_defaults(RunConfig(model="m", algorithm="grpo")).kl_weight is None


def test_the_built_in_arithmetic_has_worked_solutions_of_its_own(config: RunConfig, tmp_path: Path) -> None:
    of_task = replace(config, dataset=("arithmetic",), format=("think-answer",), max_tokens=64, num_steps=1)
    folder = run_r1(of_task, R1Options(stages=("cold-start",), sft_steps=1)).parent
    traces = load_problems(str(folder / "data" / COLD_START_FILE))
    assert len(traces) == 1024 and worked_text(traces[0]).startswith("<think>")
