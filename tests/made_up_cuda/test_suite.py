"""The GPU suite runs through on a made-up GPU, goes on where it was stopped, and keeps what fails."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu_suite
from benchmarks.gpu_parts import PARTS, Bench
from benchmarks.gpu_suite import Clock, Results, run_parts
from tests.made_up_cuda import needs_compiler, run


@needs_compiler
def test_every_part_runs_through_and_takes_the_fast_paths(tmp_path: Path) -> None:
    found = run("tests.made_up_cuda.check_suite", str(tmp_path), seconds=600)
    assert json.loads((tmp_path / "gpu_suite.json").read_text()) == found
    assert list(found) == list(PARTS)
    assert not {name: part for name, part in found.items() if "failed" in part}
    taken = found["paths"]["qwen2.5-0.5b"]
    assert "ragged attention by torch" in taken["update"]
    assert taken["sampling"].startswith("embedded engine, bfloat16: fused layers")
    assert {error["mean"] for error in taken["errors"].values()} == {0.0}  # none failed
    assert set(found["step"]) >= {"full", "LoRA"} and found["step"]["full"]["GiB_by_plan"] > 0


def test_a_second_call_does_what_is_missing_and_what_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    def part_of(name: str) -> Any:
        def part(bench: Bench) -> dict[str, int]:
            done.append(name)
            if name == "b" and done.count("b") == 1:
                raise RuntimeError("out of memory")
            return {"number": len(done)}

        return part

    monkeypatch.setattr(gpu_suite, "PARTS", {name: (part_of(name), 10) for name in "abc"} | {"d": (part_of("d"), 900)})
    bench = Bench(torch.device("cpu"), Clock())
    run_parts(bench, Results(tmp_path / "gpu_suite.json"), 100.0, list("abcd"))
    first = json.loads((tmp_path / "gpu_suite.json").read_text())
    assert done == ["a", "b", "c"] and "out of memory" in first["b"]["failed"]
    run_parts(bench, Results(tmp_path / "gpu_suite.json"), 1000.0, list("abcd"))
    second = json.loads((tmp_path / "gpu_suite.json").read_text())
    assert done == ["a", "b", "c", "b", "d"] and second["b"]["number"] == 4 and second["a"] == first["a"]
