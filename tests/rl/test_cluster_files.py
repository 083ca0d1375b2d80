"""The files of recipes/cluster and the Dockerfile, as far as they can be tried without a cluster."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from pathlib import Path

import yaml
from accelerate.commands.launch import launch_command_parser

from rl.settings.config_file import repeating
from rl.settings.resolve import resolve
from tests.rl.test_loop import ROOT, measured, options
from tests.rl.test_processes import free_port

# It writes on after its first line, which a reader that wants no more must not make an error of.
SCONTROL = "#!/bin/bash\necho 127.0.0.1\nsleep 0.2\necho another\n"
SRUN = '#!/bin/bash\nSLURM_NODEID=0 "$@" &\nSLURM_NODEID=1 "$@" || exit 1\nwait $!\n'


def test_the_slurm_script_starts_one_run_on_two_nodes(model: Path, digits: Path, tmp_path: Path) -> None:
    """Both nodes are this machine, and srun and scontrol are stand-ins."""
    for name, text in (("scontrol", SCONTROL), ("srun", SRUN)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    config = tmp_path / "run.yaml"
    config.write_text(repeating(resolve(options(model, digits, tmp_path / "run", num_steps=1), "cpu")))
    slurm = {"SLURM_JOB_NODELIST": "n[1-2]", "SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "1"}
    slurm["MAIN_PORT"] = str(free_port())  # other tests launch processes at the same time
    done = subprocess.run(
        ["bash", "recipes/cluster/slurm.sh", "--config", str(config), "--run-dir", str(tmp_path / "my run")],
        env={**os.environ, **slurm, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert [row["step"] for row in measured(tmp_path / "my run")] == [0, 1]
    assert done.stdout.count("run folder:") == 1


def test_the_skypilot_task_launches_a_preset_with_options_that_accelerate_has() -> None:
    task = yaml.safe_load((ROOT / "recipes/cluster/skypilot.yaml").read_text())
    (command,) = re.findall(r"accelerate launch (.*)", task["run"].replace("\\\n", " "))
    node = {"NUM_NODES": "1", "NUM_GPUS_PER_NODE": "8", "NODE_RANK": "0", "NODE_IPS": "10.0.0.1\n10.0.0.2"}
    environment = {**{f"SKYPILOT_{name}": value for name, value in node.items()}, **task["envs"]}
    words = subprocess.run(
        ["bash", "-c", f"printf '%s\\n' {command}"],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    given = launch_command_parser().parse_args(words.stdout.splitlines())
    assert (given.num_processes, given.machine_rank, given.main_process_ip) == (8, 0, "10.0.0.1")
    assert (ROOT / given.training_script).exists() and (ROOT / given.training_script_args[1]).exists()


def test_the_dockerfile_installs_extras_and_a_python_that_the_project_has() -> None:
    text = (ROOT / "Dockerfile").read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = {name for listed in re.findall(r"-e \"?\.\[([\w,-]+)\]", text) for name in listed.split(",")}
    assert extras and extras <= set(project["optional-dependencies"])
    assert "python:3.11-" in text and project["requires-python"].startswith(">=3.11")
    assert re.findall(r'"(torch[^"]*)"', text)[0].removeprefix("torch") in project["dependencies"][0]
