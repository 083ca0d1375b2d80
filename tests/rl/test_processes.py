"""Several processes make the step of one: the same draws, the same gradient, the same files."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import psutil
import pytest
import torch

import rl.processes.runtime
import rl.view.report
from rewards.errors import UserError
from rewards.math_answer import MathVerifier
from rl.objective.algorithms import ALGORITHMS
from rl.processes.launch_settings import require_supported
from rl.processes.runtime import Runtime
from rl.run.loop import train
from rl.settings.config import RunConfig
from tests.rl.conftest import draw_nothing
from tests.rl.test_checkpoint import in_a_child
from tests.rl.test_loop import ROOT, final_weights, measured, odd_lengths, options
from tests.rl.test_thinking_budget import THINKING

LAUNCH = [str(Path(sys.executable).with_name("accelerate")), "launch"]
CLOSE = 1e-6  # weights near 1, sums over processes in another order; a step of AdamW is 1e-4 here
ROUNDING = {"delivery/error", "mismatch/max", "mismatch/mean", "kl/sampler", "loss", "kl/reference"}  # near zero


OFTEN = {
    "grpo-iterative": replace(ALGORITHMS["grpo-iterative"], refresh_reference_every=1),
    "grpo-iterative-2": replace(ALGORITHMS["grpo-iterative"], refresh_reference_every=2),
}

# As accelerate launch sets it by --use_fsdp --fsdp_version 2.
FSDP2 = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}

OFFLOADED = {**FSDP2, "FSDP_OFFLOAD_PARAMS": "true"}  # and by --fsdp_offload_params true


def be(rank: int, port: int, count: int = 2) -> None:
    """One of several processes, as accelerate launch starts it."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


def one_of(count: int, rank: int, port: int, config: RunConfig, environment: Mapping[str, str]) -> None:
    os.environ |= environment
    be(rank, port, count)
    MathVerifier.verify_batch = odd_lengths
    rl.view.report.svg_of = draw_nothing
    ALGORITHMS.update(OFTEN)
    train(config)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def train_in_two(target: Callable[[int, int, RunConfig], None], config: RunConfig) -> None:
    """The target in two processes, each with its rank, a port that both know, and the run."""
    port = free_port()
    children = [in_a_child(target, rank, port, config) for rank in range(2)]
    for child in children:
        child.join(200)
    assert [child.exitcode for child in children] == [0, 0]


def run_two(target: Callable[[int, int, Path], None], folder: Path) -> None:
    port = free_port()
    children = [in_a_child(target, rank, port, folder) for rank in range(2)]
    for child in children:
        child.join(60)


def train_by(count: int, config: RunConfig, environment: Mapping[str, str] | None = None) -> None:
    if count == 1:
        train(config)
        return
    port = free_port()
    children = [in_a_child(one_of, count, rank, port, config, environment or {}) for rank in range(count)]
    for child in children:
        child.join(300)
    assert [child.exitcode for child in children] == [0] * count


def assert_same_run(ours: Path, theirs: Path, step: int) -> None:
    assert (ours / "completions.jsonl").read_text() == (theirs / "completions.jsonl").read_text()
    for a, b in zip(measured(ours), measured(theirs), strict=True):
        assert a.keys() == b.keys()
        for key in a:
            assert a[key] == pytest.approx(b[key], rel=1e-3, abs=1e-4 if key in ROUNDING else 1e-7), key
    x, y = final_weights(ours, step), final_weights(theirs, step)
    assert max((x[key] - y[key]).abs().max() for key in y) < CLOSE


AHEAD: dict[str, object] = {"algorithm": "dapo", "one_step_ahead": True}
# Completions of several lengths. Of equal ones the mean reward, where a critic's bias starts, is the best bias: its gradient is the rounding
# of a sum, which AdamW makes a whole step of.
RAGGED: dict[str, object] = {"stop_strings": ("1", "2", "3")}
CRITIC_FIRST: dict[str, object] = {"algorithm": "ppo", "critic_warmup_steps": 2, **RAGGED}
SHARED_OUT: list[dict[str, object]] = [
    {"algorithm": "grpo", "num_minibatches": 2, "num_epochs": 2},
    {"algorithm": "dapo"},
    {"algorithm": "ppo", "lora_rank": 4, **RAGGED},
    AHEAD,
    {"algorithm": "ppo-separate", "whiten": True, "critic_warmup_steps": 1, **RAGGED},
    {"algorithm": "ppo", "lora_rank": 4, **THINKING},
    {"algorithm": "ppo-separate", "group_size": 1, "lam_length": 0.5, "critic_updates": 2, **RAGGED},
]


@pytest.mark.parametrize(
    ("changed", "environment"),
    [*((changed, {}) for changed in SHARED_OUT), (AHEAD, FSDP2), (CRITIC_FIRST, FSDP2)],
    ids=lambda of: "-".join(map(str, of.values())),
)
def test_two_processes_make_the_run_of_one(
    changed: dict[str, object],
    environment: dict[str, str],
    model: Path,
    digits: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Five problems: the shares are unequal, and in dynamic sampling and mini-batches sometimes empty."""
    monkeypatch.setattr(MathVerifier, "verify_batch", odd_lengths)
    one = options(model, digits, tmp_path / "one", problems_per_step=5, learning_rate=1e-4, **changed)
    train(one)
    train_by(2, RunConfig(**{**vars(one), "run_dir": tmp_path / "two"}), environment)
    assert_same_run(tmp_path / "two", tmp_path / "one", 3)


FIRST_TWO, FIRST_ONE = (2, 3, 1), (1, 2, 3)  # processes that make the first step, go on, and go on again
IN_PIECES = {"algorithm": "grpo", "num_minibatches": 2, "num_epochs": 2, "token_budget": 60}
ITERATIVE = {"algorithm": "grpo-iterative"}
# The last step goes on from a policy that is no longer its own reference.
OLDER = {"algorithm": "grpo-iterative-2", "lora_rank": 4, "num_steps": 4, "kl_weight": 1.0, "learning_rate": 1e-2}


@pytest.mark.parametrize(
    ("environment", "counts", "changed"),
    [
        pytest.param({}, FIRST_ONE, {"algorithm": "grpo"}, id="whole"),
        pytest.param(FSDP2, FIRST_TWO, IN_PIECES, id="fsdp2-grpo"),
        pytest.param(FSDP2, FIRST_TWO, {"algorithm": "dapo"}, id="fsdp2-dapo"),
        pytest.param(FSDP2, FIRST_TWO, ITERATIVE, id="fsdp2-iterative"),
        pytest.param(FSDP2, FIRST_TWO, {**ITERATIVE, "lora_rank": 4}, id="fsdp2-iterative-lora"),
        pytest.param(FSDP2, (2, 2, 3, 2), OLDER, id="fsdp2-older-reference-lora"),
        pytest.param(FSDP2, FIRST_TWO, {"algorithm": "ppo", **RAGGED}, id="fsdp2-ppo"),
        pytest.param(OFFLOADED, FIRST_ONE, IN_PIECES, id="fsdp2-offloaded"),
    ],
)
def test_a_run_goes_on_with_another_number_of_processes(
    environment: dict[str, str],
    counts: tuple[int, ...],
    changed: dict[str, object],
    model: Path,
    digits: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With whole weights, or with weights that several processes spread over themselves: it is the run of one process."""
    for name, often in OFTEN.items():
        monkeypatch.setitem(ALGORITHMS, name, often)
    monkeypatch.setattr(MathVerifier, "verify_batch", odd_lengths)
    usual = {"eval_every": 1, "schedule": "constant", "learning_rate": 1e-4, "problems_per_step": 5, **changed}
    whole = options(model, digits, tmp_path / "whole", **usual)
    train(whole)
    for step, count in enumerate(counts, start=1):
        part = {"run_dir": tmp_path / "parted", "num_steps": step, "resume": step > 1}
        train_by(count, RunConfig(**{**vars(whole), **part}), environment if count > 1 else {})
    assert_same_run(tmp_path / "parted", tmp_path / "whole", len(counts))


def test_a_process_that_dies_ends_the_others(model: Path, digits: Path, tmp_path: Path) -> None:
    """By the recipe and accelerate's own launcher, in the midst of a run."""
    run = tmp_path / "run"
    command = [*LAUNCH, "--multi_gpu", "--num_processes", "2", "recipes/grpo_math.py", "--model", str(model)]
    command += ["--dataset", str(digits), "--device", "cpu", "--eval-size", "10", "--max-tokens", "8"]
    command += ["--num-steps", "100000", "--problems-per-step", "4", "--run-dir", str(run), "--prompt-style", "plain"]
    command += ["--max-unjudged", "1"]
    with (tmp_path / "log").open("w") as log:
        launched = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 120
        while not (run / "metrics.jsonl").exists() or len((run / "metrics.jsonl").read_text().splitlines()) < 3:
            assert launched.poll() is None and time.monotonic() < deadline, (tmp_path / "log").read_text()[-2000:]
            time.sleep(0.2)
        workers = [p for p in psutil.Process(launched.pid).children() if "grpo_math" in " ".join(p.cmdline())]
        assert len(workers) == 2
        workers[1].kill()
        assert launched.wait(60) != 0
        psutil.wait_procs(workers, timeout=10)
        assert not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in workers)
        said = (tmp_path / "log").read_text()
        assert "another process has ended" in said or "Signal 9 (SIGKILL)" in said
    finally:
        launched.kill()


def test_the_shipped_configuration_shards_what_every_process_has_loaded(
    model: Path, digits: Path, tmp_path: Path
) -> None:
    """By accelerate's own launcher, which asks transformers to load weights in the first process only; the others' would be random."""
    one = options(model, digits, tmp_path / "one", num_steps=1, max_unjudged=1.0, seed=3)
    train(one)
    command = [*LAUNCH, "--config_file", "recipes/accelerate/fsdp2.yaml", "--num_processes", "2"]
    command += ["recipes/grpo_math.py"]
    command += arguments(one)
    done = run_command([*command, "--run-dir", str(tmp_path / "two")])
    assert done.returncode == 0, done.stderr[-2000:]
    assert_same_run(tmp_path / "two", tmp_path / "one", 1)


def arguments(config: RunConfig) -> list[str]:
    """The options of a small run as they are given on a command line."""
    names = "algorithm dataset eval_every eval_size group_size learning_rate max_tokens max_unjudged model num_steps problems_per_step"
    values = {name: getattr(config, name) for name in [*names.split(), "prompt_style", "seed"]}
    words = {name: value if isinstance(value, tuple) else (value,) for name, value in values.items()}
    return [x for name, given in words.items() for x in ("--" + name.replace("_", "-"), *map(str, given))]


def run_command(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """As on a machine without GPUs."""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=environment)


def test_the_documented_command_starts_one_run_of_two_processes(model: Path, digits: Path, tmp_path: Path) -> None:
    """docs/scale.md, word for word: every step stands once in its metrics, and is that of one process."""
    one = options(model, digits, tmp_path / "one", num_steps=2, max_unjudged=1.0, eval_every=1)
    train(one)
    line = next(
        x for x in (ROOT / "docs" / "scale.md").read_text().splitlines() if x.startswith("| two processes on a CPU")
    )
    documented = line.split("`")[1].split()
    assert documented[:2] == ["accelerate", "launch"]
    done = run_command([*LAUNCH, *documented[2:], *arguments(one), "--run-dir", str(tmp_path / "two")])
    assert done.returncode == 0, done.stderr[-2000:]
    assert_same_run(tmp_path / "two", tmp_path / "one", 2)


def test_processes_that_accelerate_does_not_join_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine with an accelerator it does not, unless it has started them itself."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(UserError, match="WORLD_SIZE is 3: accelerate counts 1 processes"):
        Runtime.start(dtype="float32")


@pytest.mark.parametrize(
    ("variable", "value", "name"),
    [
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4", "gradient_accumulation_steps"),
        ("ACCELERATE_MIXED_PRECISION", "fp16", "mixed_precision"),
        ("ACCELERATE_MIXED_PRECISION", "bf16", "mixed_precision"),  # of a run that computes in float32
        ("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR", "dynamo_backend"),
        ("ACCELERATE_USE_MEGATRON_LM", "true", "use_megatron_lm"),
        ("ACCELERATE_USE_DEEPSPEED", "true", "use_deepspeed"),
    ],
)
def test_settings_of_accelerate_that_would_be_ignored_or_half_applied_are_refused_by_name(
    variable: str, value: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(UserError, match=f"{name} is '{value}' in accelerate's configuration"):
        Runtime.start(dtype="float32", device="cpu")


def test_settings_of_fsdp_are_refused_by_name_too() -> None:
    fsdp = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "ACCELERATE_MIXED_PRECISION": "bf16"}
    require_supported(fsdp, "bfloat16", shards=True)
    for variable, value in (
        ("FSDP_VERSION", "1"),
        ("FSDP_RESHARD_AFTER_FORWARD", "false"),
    ):
        with pytest.raises(UserError, match=f"{variable.lower()} is '{value}'"):
            require_supported({**fsdp, variable: value}, "bfloat16", shards=True)
    require_supported({**fsdp, "FSDP_VERSION": "1"}, "bfloat16", shards=False)


PLUMBLINE = [sys.executable, "-c", "from rl.cli import main; main()"]


@pytest.mark.parametrize("mistake", [["--group-size", "0"], ["--no-such-option"], ["--model", "/nowhere"]], ids=str)
@pytest.mark.parametrize("processes", [["--num_processes", "1"], ["--multi_gpu", "--num_processes", "2"]], ids=str)
def test_a_mistake_ends_the_launch_with_status_2_and_no_trace(processes: list[str], mistake: list[str]) -> None:
    done = run_command([*PLUMBLINE, "launch", *processes, "recipes/grpo_math.py", *mistake])
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert mistake[0].strip("-").replace("-", "_") in (done.stdout + done.stderr).replace("-", "_")


def test_a_mistake_under_accelerates_own_launcher_shows_no_trace() -> None:
    done = run_command([*LAUNCH, "--num_processes", "1", "recipes/grpo_math.py", "--group-size", "0"])
    assert done.returncode != 0 and "group_size is 0" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def different_weights(rank: int, port: int, folder: Path) -> None:
    be(rank, port)
    runtime = Runtime.start(dtype="float32", device="cpu")
    torch.manual_seed(rank)
    made = torch.nn.Linear(3, 3)
    try:
        runtime.require_equal(made, "some/model")
    except UserError as error:
        (folder / f"{rank}").write_text(str(error))


def test_processes_with_different_weights_are_told(tmp_path: Path) -> None:
    run_two(different_weights, tmp_path)
    for rank in range(2):
        assert (
            "model is 'some/model': the 2 processes have loaded different weights" in (tmp_path / f"{rank}").read_text()
        )


@pytest.mark.parametrize(("patience", "told"), [(1, "another process has ended or does not answer"), (60, "both")])
def test_a_slow_verifier_is_waited_for_as_long_as_patience_lasts(patience: int, told: str, tmp_path: Path) -> None:
    (tmp_path / "patience").write_text(str(patience))
    run_two(one_is_slow, tmp_path)
    assert told in (tmp_path / "0").read_text()


def one_is_slow(rank: int, port: int, folder: Path) -> None:
    be(rank, port)
    rl.processes.runtime.TIMEOUT = timedelta(seconds=int((folder / "patience").read_text()))
    runtime = Runtime.start(dtype="float32", device="cpu")
    runtime.wait()
    time.sleep(2 * rank)
    try:
        said = "both" if runtime.gather([rank]) == [0, 1] else "one"
    except UserError as error:
        said = str(error)
    (folder / f"{rank}").write_text(said)


def test_processes_that_accelerate_does_not_start_are_told(tmp_path: Path) -> None:
    """Without a GPU it starts one, and the run would take twice as long as its user thinks."""
    command = [*LAUNCH, "--num_processes=2", "--cpu", "recipes/grpo_math.py", "--run-dir", str(tmp_path / "run")]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode != 0
    assert "num_processes is 2: accelerate has started 1" in ended.stderr


def test_gradients_are_summed_in_buckets(tmp_path: Path) -> None:
    """A parameter that only one process has a gradient for, and buckets smaller than a parameter."""
    run_two(sums_gradients, tmp_path)
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt")
        assert [g.tolist() for g in found] == [[3.0] * 5, [10.0] * 7, [3.0] * 2]


def sums_gradients(rank: int, port: int, folder: Path) -> None:
    be(rank, port)
    rl.processes.runtime.BUCKET = 6
    runtime = Runtime.start(dtype="float32", device="cpu")
    parameters = [torch.nn.Parameter(torch.zeros(n)) for n in (5, 7, 2)]
    for n, parameter in enumerate(parameters):
        if n != 1:
            parameter.grad = torch.full_like(parameter, rank + 1.0)
        elif rank == 1:
            parameter.grad = torch.full_like(parameter, 10.0)
    runtime.sum_gradients(parameters)
    torch.save([p.grad for p in parameters], folder / f"{rank}.pt")
    runtime.close()
