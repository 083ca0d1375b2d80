"""Options from a YAML file, and the file by which a run repeats itself."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rewards.errors import UserError
from rewards.math_answer import MathVerifier
from rl.objective.algorithms import ALGORITHMS
from rl.run.loop import train
from rl.settings.checks import without_effect
from rl.settings.command_line import run_options
from rl.settings.config import OF_ALGORITHM, RunConfig
from rl.settings.config_file import CONFIG_FILE, NOT_REPEATED, read_options, repeating
from rl.settings.resolve import resolve
from tests.rl.test_loop import ROOT, final_weights, measured, odd_lengths, options
from tests.rl.test_processes import LAUNCH, free_port

PRESETS = sorted((ROOT / "recipes").glob("*.yaml"))


def written(folder: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def run_of(path: Path, *arguments: str, **defaults: Any) -> RunConfig:
    return run_options(["--config", str(path), *arguments], "", defaults)


def test_the_command_line_wins_over_the_file_and_the_file_over_the_recipe(tmp_path: Path) -> None:
    path = written(tmp_path, "algorithm: dapo\ngroup-size: 4\nmax_tokens: 50\n")
    config = run_of(path, "--max-tokens", "60", algorithm="ppo", group_size=2, max_tokens=40, num_steps=3)
    assert (config.algorithm, config.group_size, config.max_tokens, config.num_steps) == ("dapo", 4, 60, 3)


def test_rules_between_options_hold_for_the_whole_and_not_for_the_file_alone(tmp_path: Path) -> None:
    path = written(tmp_path, "lam: 0.95")
    assert run_of(path, "--algorithm", "ppo").lam == 0.95
    with pytest.raises(UserError, match=r"lam is 0\.95: grpo has no critic"):
        run_of(path)


def test_values_of_every_kind_are_read_as_on_the_command_line(tmp_path: Path) -> None:
    """YAML itself takes 1e-6 for text and yes for true."""
    text = """
        learning_rate: 1e-6
        token_budget: auto
        sampler_rows: 7
        whiten: yes
        gradient_checkpointing: null
        value_clip: ~
        run_dir: a/b
        stop_strings: ["---", "no"]
        trackers: wandb
        format: []
        model: 2024
        system_prompt: |
          two
          lines
    """
    assert read_options(written(tmp_path, text)) == {
        "learning_rate": 1e-6,
        "token_budget": "auto",
        "sampler_rows": 7,
        "whiten": True,
        "gradient_checkpointing": None,
        "value_clip": None,
        "run_dir": Path("a/b"),
        "stop_strings": ("---", "no"),
        "trackers": ("wandb",),
        "format": (),
        "model": "2024",
        "system_prompt": "two\nlines\n",
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: 1\ngruop_size: 4", r"run.yaml', line 2: 'gruop_size' is not an option; did you mean group_size\?"),
        ("xyzzy: 4", "line 1: 'xyzzy' is not an option; --help lists the options"),
        ("seed: 1\n\nseed: 2", "line 3: seed is given a second time"),
        ("group-size: 4\ngroup_size: 4", "line 2: group_size is given a second time"),
        ("seed: 1\nnum_steps: many", "line 2: num_steps is 'many': it must be a whole number or null"),
        ("num_steps: 1.5", r"line 1: num_steps is '1\.5': it must be a whole number or null"),
        ("num_steps: true", "line 1: num_steps is 'true': it must be a whole number or null"),
        ("num_steps: [1, 2]", "line 1: num_steps is a list: it must be a whole number"),
        ("num_steps: []", "line 1: num_steps is a list: it must be a whole number"),
        ("device: gpu", "line 1: device is 'gpu': it must be auto or cpu"),
        ("gate_format: 'yes'", "line 1: gate_format is 'yes': it must be true or false"),
        ("model: no", "line 1: model is 'no': it must be text"),
        ("model:", "line 1: model is '': it must be text"),
        ("model: !secret x", "line 1: model is 'x': it must be text"),
        ("trackers: {wandb: 1}", "line 1: trackers is a mapping: it must be a value or a list of values"),
        ("stop_strings: [no]", "line 1: stop_strings is a list: .* texts such as true or null need quotes"),
        ("stop_strings: [[a]]", "line 1: stop_strings is a list: it must be a value or a list"),
        ("seed: 1\nnum_steps: 0", "line 2: num_steps is 0: it must be at least 1"),
        ("algorithm: gppo", "line 1: algorithm is 'gppo': it must be one of cispo"),
        ("grading: [comma=true]", "line 1: grading is 'comma=true': it must be option=value"),
        ("seed: 1\n\tnum_steps: 3", r"run.yaml', line 2: it is not YAML .*replace the tab by spaces"),
        ("seed:\t1", "line 1: it is not YAML .*replace the tab by spaces"),
        ("seed: [1", "line 1: it is not YAML .*write one 'option: value' in each line"),
        ("seed: 1\n---\nseed: 2", "line 2: it is not YAML .*write one 'option: value' in each line"),
        ("- seed", "it must be a mapping"),
        ("seed", "it must be a mapping"),
        ("", "it must be a mapping"),
        ("? [a]\n: 1", "it must be a mapping"),
        ("seed: \x01", "it is not YAML"),
    ],
)
def test_a_file_that_is_wrong_is_told_with_its_line(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as told:
        read_options(written(tmp_path, text))
    assert str(told.value).startswith("config ") and "run.yaml" in str(told.value)


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config is .*run.yaml': it cannot be read \(No such file or directory\)"):
        run_of(tmp_path / "run.yaml")
    with pytest.raises(UserError, match=r"it cannot be read \(Is a directory\)"):
        run_of(tmp_path)
    (tmp_path / "run.yaml").write_bytes(b"model: \xff")
    with pytest.raises(UserError, match=r"it cannot be read \(it is not text in UTF-8\)"):
        run_of(tmp_path / "run.yaml")


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_file_of_a_run_gives_its_settings_again_whatever_the_defaults_are(
    algorithm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other defaults of the options stand for those of a later version, and so does another algorithm of the same name."""
    teacher = "t" if algorithm == "distill" else None
    options = RunConfig(
        algorithm=algorithm, teacher=teacher, model="m", stop_strings=("null", "a: b"), prompt_style="plain"
    )
    settings = resolve(options, "cpu")
    path, chosen = written(tmp_path, repeating(settings)), settings.chosen_algorithm()
    idle = {name for names, _ in without_effect(settings) for name in names}
    of_algorithm = {"kl_weight": 0.5, "entropy_weight": 0.5}
    monkeypatch.setitem(ALGORITHMS, algorithm, replace(ALGORITHMS[algorithm], **of_algorithm))
    later: dict[str, Any] = {
        "temperature": 0.7,
        "max_tokens": 9,
        "seed": 3,
        "eval_every": 1,
        "top_p": 0.5,
        "save_every": 9,
    }
    later |= {name: 0.9 for name in ("gamma", "lam", "clip_low") if name not in idle}
    again = resolve(run_of(path, **later), "cpu")
    assert again.chosen_algorithm() == chosen
    filled = {*NOT_REPEATED, *OF_ALGORITHM, "value"}
    assert all(vars(again)[name] == value for name, value in vars(settings).items() if name not in filled)


@pytest.mark.parametrize("changed", [{"algorithm": "dapo"}, {"algorithm": "ppo", "lora_rank": 2}], ids=str)
def test_a_run_is_repeated_to_the_bit_by_its_file(
    changed: dict[str, object], model: Path, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MathVerifier, "verify_batch", odd_lengths)
    first = train(options(model, digits, tmp_path / "first", num_steps=2, **changed))
    config = run_of(first / CONFIG_FILE, "--run-dir", str(tmp_path / "second"), temperature=0.5, learning_rate=1.0)
    second = train(config)
    assert measured(second) == measured(first)
    assert (second / "completions.jsonl").read_bytes() == (first / "completions.jsonl").read_bytes()
    ours, theirs = final_weights(second, 2), final_weights(first, 2)
    assert all(ours[name].equal(tensor) for name, tensor in theirs.items())
    lines = [(folder / CONFIG_FILE).read_text().splitlines()[1:] for folder in (first, second)]
    assert lines[0] == lines[1] and not any(line.startswith(NOT_REPEATED) for line in lines[0])


def test_a_resumed_run_has_the_options_of_its_folder_but_for_those_of_the_file_and_the_command_line(
    model: Path, digits: Path, tmp_path: Path
) -> None:
    first = train(options(model, digits, tmp_path / "run", num_steps=1, max_grad_norm=0.5, save_total_limit=3))
    path = written(tmp_path, "num_steps: 2\nmax_grad_norm: 0.25\nsave_every: 7\n")
    resuming = ("--run-dir", str(first), "--resume")
    config = run_of(path, *resuming, "--save-every", "8", temperature=0.5)
    assert (config.num_steps, config.max_grad_norm, config.save_total_limit) == (2, 0.25, 3)
    assert (config.save_every, config.temperature, config.resume) == (8, 1.0, True)
    same = run_of(first / CONFIG_FILE, *resuming)
    assert vars(same) == {**vars(run_options(resuming, "", {})), **read_options(first / CONFIG_FILE)}
    train(replace(config, eval_every=5))
    assert [row["step"] for row in measured(first)] == [0, 1, 2]


def test_two_launched_processes_read_the_file(model: Path, digits: Path, tmp_path: Path) -> None:
    config = resolve(options(model, digits, tmp_path / "run", num_steps=1), "cpu")
    path = written(tmp_path, repeating(config))
    command = [*LAUNCH, "--multi_gpu", "--num_processes", "2", "--main_process_port", str(free_port())]
    command += ["recipes/grpo_math.py", "--config", str(path)]
    done = subprocess.run(
        [*command, "--run-dir", str(tmp_path / "run")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert [row["step"] for row in measured(tmp_path / "run")] == [0, 1]


def test_help_names_the_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run_options(["--help"], "", {})
    assert "--config {None}|PATH" in capsys.readouterr().out


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_every_preset_is_a_run(path: Path) -> None:
    assert resolve(run_of(path), "cpu").run_dir.parent == Path("runs")
