"""What the docs name is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.page import PRINTED, filled, load
from rl.objective.algorithms import ALGORITHMS

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
SOURCE = "\n".join(
    p.read_text("utf-8") for room in ("plumbline", "rl", "rollout", "rewards") for p in (ROOT / room).rglob("*.py")
)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)", page.read_text("utf-8"))
    assert not [link for link in links if "://" not in link and not (page.parent / link).exists()]


STEP = ("step.py", "update.py", "loss.py", "learner.py")


def test_the_walk_names_what_there_is() -> None:
    """Files, functions, classes and fields of docs/architecture.md."""
    named = re.findall(r"`([A-Za-z_][\w./]*)`", (ROOT / "docs" / "architecture.md").read_text("utf-8"))
    files = {name for name in named if "/" in name}
    assert not [name for name in files if not (ROOT / name).exists()]
    parts = {part for name in set(named) - files for part in name.split(".")}
    assert len(parts) > 50
    assert not [part for part in parts if not re.search(rf"\b(def|class) {part}\b|\b{part}: |\b{part} = ", SOURCE)]


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_has_its_line_and_the_penalty_that_stands_there(name: str) -> None:
    page, algorithm = (ROOT / "docs" / "algorithms.md").read_text("utf-8"), ALGORITHMS[name]
    (line,) = [line for line in page.splitlines() if line.startswith(f"| `{name}` |")]
    penalty = f"`{algorithm.kl_weight:g} {algorithm.kl_kind}`" if algorithm.kl_weight else "none |"
    assert f" | {penalty}" in line


def test_every_option_that_the_docs_show_is_one() -> None:
    """Of a recipe, of the `plumbline` command, of a benchmark, or of a program that is not ours."""
    ours = SOURCE + "".join(p.read_text("utf-8") for p in (ROOT / "benchmarks").glob("*.py"))
    others = {
        "multi_gpu",
        "num_processes",
        "num_machines",
        "machine_rank",
        "main_process_ip",
        "main_process_port",
        "use_fsdp",
    }
    others |= {"fsdp_version", "fsdp_offload_params", "config_file", "cpu", "enable_lora"}
    others |= {"gpus", "ipc", "build_arg", "output_format"}  # of docker and ruff
    for page in PAGES:
        shown = {o.replace("-", "_") for o in re.findall(r"(?<![\w-])--(?:no-)?([a-z][\w-]*)", page.read_text("utf-8"))}
        missing = [option for option in shown - others if not re.search(rf"\b{option}\b", ours)]
        assert not missing, (page.name, missing)


@pytest.mark.parametrize("page", PRINTED, ids=str)
def test_the_tables_are_those_of_the_result_files(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    written = page.read_text("utf-8")
    assert "begin -->" in written and filled(written) == written


def test_the_readme_says_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    readme = " ".join((ROOT / "README.md").read_text("utf-8").split())
    shapes = {name: of for name, of in load("vs_trl")["shapes"].items() if "configuration" in of}
    speed = {name: of["speed"]["total"]["median"] for name, of in shapes.items()}
    share = {name: of["update_peak_bytes"]["share"] for name, of in shapes.items()}
    apart = ("a", "d")  # where there is little to leave out
    speeds, shares = ([x for name, x in of.items() if name not in apart] for of in (speed, share))
    assert f"takes {min(speeds):.1f} to {max(speeds):.1f} times less than TRL 1.16's" in readme
    assert f"{100 * min(shares):.0f} to {100 * max(shares):.0f} % of its memory" in readme
    assert f"{speed['a']:.1f} times less in the tiny default, {speed['d']:.1f} where no prompt is shared" in readme
    default = load("rollout_throughput")["settings"]["default task"]["ratio_median"]
    assert f"{default:.1f} times as many completions per second" in readme
    memory = load("plan_check")["memory"]
    off = max(abs(row[key] - 1) for row in memory for key in ("formula_over_measured", "dry_run_over_measured"))
    (within,) = re.findall(r"measured peaks of small models within (\d+) %", readme)
    assert off <= int(within) / 100
    seconds = load("default_run")["runs"][0]["whole_command_seconds"]
    (minutes,) = re.findall(r"(\w+) minutes later:", readme)
    assert abs(seconds / 60 - {"Three": 3, "Four": 4, "Five": 5, "Six": 6}[minutes]) <= 0.5
    lines = sum(len((ROOT / "rl/update" / name).read_text().splitlines()) for name in STEP)
    assert f"`rl/update/{{step,update,loss,learner}}.py`, GRPO, PPO and DPO, have {lines} together" in readme
