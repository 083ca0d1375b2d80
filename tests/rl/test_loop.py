"""A run end to end, by the same entry as the recipe: what it writes, how it resumes, and how it ends when something is wrong."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import rl.run.loop
from rewards.errors import UserError
from rewards.math_answer import MathVerifier
from rewards.score import Outcome, Score
from rl.objective.algorithms import ALGORITHMS, GRPO_ITERATIVE
from rl.run.load_data import joined, load_data, require_room
from rl.run.loop import Interrupted, train
from rl.settings.config import RunConfig
from rl.settings.resolve import resolve
from rl.update.step_metrics import Metrics
from rl.view.metrics import METRICS, read_metrics
from rollout.collect import Collector
from rollout.problems import load_problems, split_held_out
from rollout.records import Problem

ROOT = Path(__file__).resolve().parents[2]
GSM8K = ROOT.parent / "shared" / "data" / "gsm8k_train.jsonl"
TIMINGS = {"tokens/per_second", "memory/peak"} | {key for key in METRICS if key.startswith("time/")}


def options(folder: Path, data: Path, run: Path, **changed: object) -> RunConfig:
    usual = {
        "model": str(folder),
        "dataset": str(data),
        "run_dir": run,
        "algorithm": "grpo",
        "num_steps": 3,
        "problems_per_step": 4,
        "group_size": 4,
        "max_tokens": 8,
        "eval_size": 10,
        "eval_every": 2,
        "learning_rate": 1e-3,
        "verifier_workers": 1,
        "prompt_style": "plain",
        "device": "cpu",
    }
    return RunConfig(**{**usual, **changed})  # pyright: ignore[reportArgumentType]


def measured(run_dir: Path) -> list[dict[str, float | None]]:
    """Metrics, timings aside."""
    return [{k: v for k, v in row.items() if k not in TIMINGS} for row in read_metrics(run_dir)]


def final_weights(run_dir: Path, step: int) -> dict[str, torch.Tensor]:
    """The policy's, its value head's and its critic's."""
    folder = run_dir / "checkpoints" / f"step-{step:06d}"
    paths = [*folder.glob("*.safetensors"), *folder.glob("critic/*.safetensors")]
    return {f"{path.name}/{name}": tensor for path in paths for name, tensor in load_file(path).items()}


@pytest.mark.plots
def test_a_run_leaves_what_a_person_needs(model: Path, digits: Path, tmp_path: Path) -> None:
    """Every key that other people's scripts read is there; the saved model opens with plain transformers."""
    run_dir = train(options(model, digits, tmp_path / "run"))
    rows = read_metrics(run_dir)
    assert [row["step"] for row in rows] == [0, 1, 2, 3]
    assert [row.get("eval/accuracy") is not None for row in rows] == [True, False, True, True]
    stays = ("reward/mean", "kl/reference", "kl/sampler", "entropy", "length/mean", "groups/no_signal")
    stays += ("tokens/sampled", "time/step", "time/sample", "time/verify", "time/train")
    assert all(rows[1][key] is not None for key in stays)
    completions = [json.loads(line) for line in (run_dir / "completions.jsonl").read_text().splitlines()]
    assert len(completions) == 3 * 4 * 4
    assert json.loads((run_dir / "config.json").read_text())["group_size"] == 4
    assert "<svg" in (run_dir / "report.html").read_text()
    saved = run_dir / "checkpoints" / "step-000003"
    AutoModelForCausalLM.from_pretrained(saved)
    assert AutoTokenizer.from_pretrained(saved).decode(AutoTokenizer.from_pretrained(saved)("a+b").input_ids) == "a+b"


def odd_lengths(self: MathVerifier, answers: Sequence[str], references: Sequence[str]) -> list[Score]:
    """A reward that an untaught model gets about half of the time, so that there is something to learn from."""
    return [Score(float(len(a) % 2), Outcome.CORRECT if len(a) % 2 else Outcome.WRONG) for a in answers]


def test_a_verifier_that_checks_references_wrongly_is_named_before_anything_is_sampled(
    model: Path, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MathVerifier, "check_references", lambda self, references: [True for _ in references])
    with pytest.raises(UserError, match=r"verifier 'math', problem '.*': it returned True, which is not a Score"):
        train(options(model, digits, tmp_path / "run"))


def test_ppo_runs_with_one_completion_of_each_problem(
    model: Path, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It measures its critic, and claims no advantage within a group. In the first step only the critic learns."""
    monkeypatch.setattr(MathVerifier, "verify_batch", odd_lengths)
    config = options(
        model, digits, tmp_path / "run", algorithm="ppo", group_size=1, critic_warmup_steps=1, save_every=1
    )
    run_dir = train(replace(config, save_total_limit=3))
    rows = read_metrics(run_dir)
    assert all(rows[2][key] is not None for key in ("value/mean", "value/return", "value/grad_norm"))
    assert all(row.get("groups/no_signal") is None for row in rows)
    completions = [json.loads(line) for line in (run_dir / "completions.jsonl").read_text().splitlines()]
    assert len(completions) == 3 * 4 and all(row["advantage"] is None for row in completions)
    weights = [load_file(run_dir / "checkpoints" / f"step-00000{step}" / "model.safetensors") for step in (1, 2)]
    base = load_file(model / "model.safetensors")
    assert all(torch.equal(base[name], tensor) for name, tensor in weights[0].items())
    assert any(not torch.equal(base[name], tensor) for name, tensor in weights[1].items())


def test_options_of_sampling_and_evaluation_reach_the_run(
    model: Path, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine draws at the temperature of the update, or kl/sampler would not be rounding; what is evaluated is held out."""
    monkeypatch.setattr(MathVerifier, "verify_batch", odd_lengths)
    evaluated: list[list[str]] = []
    inner = rl.run.loop.evaluate

    def noted(collector: Collector, problems: Sequence[Problem], *rest: int) -> Metrics:
        evaluated.append([problem.id for problem in problems])
        return inner(collector, problems, *rest)

    monkeypatch.setattr(rl.run.loop, "evaluate", noted)
    changed = {"temperature": 0.5, "eval_samples": 2, "format": ("words:9",), "num_steps": 1, "group_size": 6}
    run_dir = train(options(model, digits, tmp_path / "run", **changed))
    base, step = read_metrics(run_dir)
    assert abs(step["kl/sampler"] or 0.0) < 1e-7 and step["part/words:9"] is not None
    assert base["eval/pass_at_k"] is not None and step["eval/pass_at_k"] is not None
    _, held_out = split_held_out(load_problems(str(digits)), 10)
    assert evaluated == [[problem.id for problem in held_out]] * 2
    rows = [json.loads(line) for line in (run_dir / "completions.jsonl").read_text().splitlines()]
    assert not {row["problem_id"] for row in rows} & {problem.id for problem in held_out}
    for row in rows:
        group = [other["value"] for other in rows if other["problem_id"] == row["problem_id"]]
        better = row["value"] - sum(group) / len(group)
        assert (row["advantage"] > 0, row["advantage"] < 0) == (better > 1e-6, better < -1e-6)


def test_a_prompt_with_a_full_completion_fits_to_the_last_token() -> None:
    """5 + 3 tokens fill a context of 8; the last one is only predicted, so a forward of 7 takes them."""
    renderer = SimpleNamespace(render=lambda problem: (1,) * len(problem.id))
    problems = [Problem(id="a" * n, prompt="", reference="") for n in (2, 5, 4)]

    def room(context: int | None, budget: int | None) -> int:
        return require_room(renderer, problems, 3, context=context, token_budget=budget)  # pyright: ignore

    assert room(8, 7) == room(None, None) == 8
    with pytest.raises(UserError, match=r"prompt of 5 tokens .* the model's context is 7"):
        room(7, 7)
    with pytest.raises(UserError, match=r"token_budget is 6: .* prompt of 5 tokens"):
        room(8, 6)


def test_of_another_data_set_the_first_are_evaluated_and_none_is_trained_on(tmp_path: Path) -> None:
    """Also not those beyond eval_size, on which the model may be evaluated afterwards."""
    for name, numbers in (("train", (1, 2, 3)), ("test", (3, 9, 1))):
        rows = [{"question": f"{n}?", "answer": f"{n}"} for n in numbers]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = {"dataset": str(tmp_path / "train.jsonl"), "eval_dataset": str(tmp_path / "test.jsonl")}
    training, held_out = load_data(resolve(RunConfig(eval_size=2, **files), "cpu"))
    assert [[p.reference for p in part] for part in (joined(training), held_out)] == [["2"], ["3", "9"]]


RESUMED: list[dict[str, object]] = [
    {"algorithm": "grpo-iterative"},
    {"algorithm": "grpo-iterative", "lora_rank": 4},
    {"algorithm": "grpo", "one_step_ahead": True},
    {"algorithm": "dapo"},
    {"algorithm": "dapo", "one_step_ahead": True},
    {"algorithm": "ppo"},
    {"algorithm": "ppo", "lora_rank": 4},
    {"algorithm": "ppo-separate"},
    {"algorithm": "ppo-separate", "lora_rank": 4},
    {"algorithm": "ppo", "group_size": 1, "lam_length": 0.5, "critic_warmup_steps": 1},
    {"algorithm": "ppo-separate", "lam_length": 0.5, "critic_updates": 2, "critic_warmup_steps": 3, "lora_rank": 4},
    {"algorithm": "ppo-separate", "lam_length": 0.5, "critic_updates": 2, "num_minibatches": 2},
    {"algorithm": "rft"},
]


@pytest.mark.parametrize("changed", RESUMED, ids=lambda c: "-".join(map(str, c.values())))
def test_a_resumed_run_equals_one_that_was_not_interrupted(
    changed: dict[str, object], model: Path, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights, metrics and completions, bit for bit: SIGINT in step 2 of 4, then --resume. Optimiser, stream, reference count."""
    monkeypatch.setattr(MathVerifier, "verify_batch", odd_lengths)
    monkeypatch.setitem(ALGORITHMS, "grpo-iterative", replace(GRPO_ITERATIVE, refresh_reference_every=2))
    whole = options(model, digits, tmp_path / "whole", num_steps=4, **changed)
    train(whole)
    parted = replace(whole, run_dir=tmp_path / "parted")
    with pytest.raises(Interrupted, match="saved after step 2"):
        interrupt_at(2, parted)
    for name in (
        "metrics.jsonl",
        "completions.jsonl",
    ):  # as a run leaves them that is killed in step 4, after its checkpoint
        with (tmp_path / "parted" / name).open("a") as file:
            file.write('{"step": 3}\n{"step": 4, "rew')
    train(RunConfig(**{**vars(parted), "resume": True}))
    assert measured(tmp_path / "parted") == measured(tmp_path / "whole")
    texts = [(tmp_path / name / "completions.jsonl").read_text() for name in ("parted", "whole")]
    assert texts[0] == texts[1]
    ours, theirs = (final_weights(tmp_path / name, 4) for name in ("parted", "whole"))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def interrupt_at(step: int, config: RunConfig) -> None:
    """Ctrl-C while the given step is under way."""
    inner = rl.run.loop.train_step

    def interrupted(*args: object, **named: object) -> object:
        if named["step"] == step:
            os.kill(os.getpid(), signal.SIGINT)
        return inner(*args, **named)  # pyright: ignore

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rl.run.loop, "train_step", interrupted)
        train(config)


@pytest.mark.skipif(not GSM8K.exists(), reason="../shared/data/gsm8k_train.jsonl is not here")
def test_gsm8k_from_a_file_with_a_model_from_a_folder(model: Path, tmp_path: Path) -> None:
    """Another model and other data, offline, with bfloat16, gradient checkpointing and a small token budget."""
    run_dir = train(
        options(model, GSM8K, tmp_path / "run", prompt_style="r1", max_tokens=16, num_steps=2, dtype="bfloat16",
                gradient_checkpointing=True, token_budget=1600)
    )  # fmt: skip
    first = json.loads((run_dir / "completions.jsonl").read_text().splitlines()[0])
    assert first["reference"].replace(".", "").isdigit()
    assert read_metrics(run_dir)[1]["kl/sampler"] is not None


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"model": "./nowhere"}, r"model is './nowhere': there is no such folder"),
        ({"dataset": "nowhere.jsonl"}, r"dataset is 'nowhere.jsonl': it cannot be read"),
        ({"prompt_column": "text"}, r"prompt_column: dataset .* has no column 'text'; it has \['answer', 'question'\]"),
        ({"eval_size": 60}, r"eval_size is 60: the dataset has 60 problems"),
        ({"token_budget": 9}, r"token_budget is 9: problem .* raise token_budget"),
        ({"max_tokens": 4000}, r"max_tokens is 4000, together 400\d: the model's context is 2048; lower max_tokens"),
        ({"resume": True}, r"run_dir is .* holds no run to resume; run it without"),
        ({"run_dir": Path("/proc/run")}, r"run_dir is '/proc/run': it cannot be written"),
    ],
)
def test_a_mistake_is_told_before_training(
    changed: dict[str, object], message: str, model: Path, digits: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        train(options(model, digits, tmp_path / "run", **changed))
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_model_without_a_tokenizer_is_told(model: Path, digits: Path, tmp_path: Path) -> None:
    """transformers makes one that knows no token, and every prompt would be empty."""
    shutil.copytree(model, tmp_path / "m", ignore=shutil.ignore_patterns("token*", "chat*", "special*"))
    with pytest.raises(UserError, match=r"model is '.*/m': it has no tokenizer; put one there .*tokenizer.json"):
        train(options(tmp_path / "m", digits, tmp_path / "run"))


@pytest.mark.skipif(find_spec("trackio") is not None, reason="trackio is installed here")
@pytest.mark.filterwarnings("ignore:.*no supported trackers")
def test_a_tracker_that_is_not_installed_is_named(model: Path, digits: Path, tmp_path: Path) -> None:
    """accelerate leaves it out without a word: the run would be logged nowhere."""
    with pytest.raises(UserError, match=r"trackers is \('trackio',\): \['trackio'\] is not installed"):
        train(options(model, digits, tmp_path / "run", trackers=("trackio",)))


def test_references_that_cannot_be_judged_against_are_told(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Dropped with their number and an example where others remain; an error where none does."""
    rows = [{"question": f"{i}", "answer": "" if i % 2 else str(i)} for i in range(60)]
    mixed = tmp_path / "mixed.jsonl"
    mixed.write_text("".join(json.dumps(row) + "\n" for row in rows))
    train(options(model, mixed, tmp_path / "run", num_steps=1))
    assert "problems are left out, their reference cannot be graded: problem '" in capsys.readouterr().out
    empty = tmp_path / "empty.jsonl"
    empty.write_text("".join(json.dumps({**row, "answer": ""}) + "\n" for row in rows))
    with pytest.raises(UserError, match="none of its 50 reference answers can be graded"):
        train(options(model, empty, tmp_path / "other"))


def test_a_run_in_which_answers_cannot_be_judged_stops_with_examples(
    model: Path, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A verifier that always crashes must not look like a hard dataset."""
    crashed = Score(None, Outcome.CRASHED, {}, "the worker died")
    monkeypatch.setattr(MathVerifier, "verify_batch", lambda self, answers, references: [crashed] * len(answers))
    with pytest.raises(UserError, match=r"max_unjudged is 0.5: 16 of 16 answers (.|\n)*crashed: the worker died"):
        train(options(model, digits, tmp_path / "run"))


def test_a_mistake_on_the_command_line_shows_one_message_and_no_trace(tmp_path: Path) -> None:
    command = [sys.executable, "recipes/grpo_math.py", "--group-size", "1", "--run-dir", str(tmp_path / "run")]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert "group_size is 1: it must be at least 2" in " ".join(ended.stderr.split())
    assert "Traceback" not in ended.stderr
    missing = [
        "accelerate",
        "launch",
        "recipes/grpo_math.py",
        "--model",
        "./nowhere",
        "--run-dir",
        str(tmp_path / "run"),
    ]
    ended = subprocess.run(missing, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode != 0
    assert "error: model is './nowhere': there is no such folder" in ended.stderr
    assert "Traceback" not in ended.stderr
    unknown = subprocess.run([*command, "--no-such-option", "1"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert unknown.returncode == 2
    assert "no-such-option" in unknown.stderr + unknown.stdout
    assert "Traceback" not in unknown.stderr
