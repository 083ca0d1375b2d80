"""The commands as a user types them: one clear answer, or one clear message."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import rl.command.doctor
import rl.run.loop
from rl.cli import run_recipe
from rl.forward import cpu_kernels
from rl.forward.micro_batch import MicroBatch
from rl.objective.tokens import TokenScores
from rl.policy.policy import Policy
from rl.run.run_files import write_config
from rl.settings.config import RunConfig
from rl.settings.resolve import resolve
from rl.view.audit import audit
from rollout.engine import kernels

TASK = {"type": "function", "fn_name": "f", "tests": [{"args": [1], "expected": 2}]}


def plumbline(*arguments: str) -> tuple[int, str, str]:
    command = [sys.executable, "-c", "from rl.cli import main; main()", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("gold", "answer", "score", "outcome"),
    [
        (r"\frac12", "0.5", "1", "correct"),  # bare, so it is the answer itself
        ("11", r"first 10, so \boxed{11}", "1", "correct"),  # a completion, so its box is
        ("10", r"first 10, so \boxed{11}", "0", "wrong"),
        ("", "5", "none: not gradable", "bad_reference"),
    ],
)
def test_verify_math_prints_score_outcome_and_reason(gold: str, answer: str, score: str, outcome: str) -> None:
    status, out, _ = plumbline("verify", "math", "--gold", gold, "--answer", answer)
    lines = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert (status, lines["score"], lines["outcome"]) == (0, score, outcome)
    assert lines["reason"]


def test_verify_math_reads_the_question() -> None:
    given = ("verify", "math", "--gold", r"5\sqrt3", "--answer", r"\sqrt{75}")
    assert "outcome  correct" in plumbline(*given)[1]
    assert "outcome  wrong" in plumbline(*given, "--question", r"Simplify $\sqrt{75}$.")[1]


def test_verify_math_compares_as_the_grading_says() -> None:
    given = ("verify", "math", "--gold", "3.14", "--answer", "3,14", "--grading")
    assert "outcome  correct" in plumbline(*given, "decimal_comma=true")[1]
    assert plumbline(*given, "comma=true")[2].startswith("error: grading is 'comma=true': it must be option=value")


@pytest.mark.parametrize(
    ("program", "task", "said"),
    [
        ("def f(x): return x + 1", json.dumps(TASK), "outcome  correct"),
        ("def f(x): return x", json.dumps(TASK), "returned 1, expected 2"),
        ("def f(x): return x + 1", json.dumps({"type": "function", "fn_name": "f", "tests": []}), "outcome  bad_reference"),
        ("def f(x): return x + 1", "{", "error: task"),
        (b"\xff\xfe", json.dumps(TASK), "error: program"),
    ],
)  # fmt: skip
def test_verify_program_prints_score_outcome_and_reason(
    program: str | bytes, task: str, said: str, tmp_path: Path
) -> None:
    source = tmp_path / "p.py"
    source.write_bytes(program if isinstance(program, bytes) else program.encode())
    (tmp_path / "t.json").write_text(task)
    status, out, err = plumbline("verify", "program", "--task", str(tmp_path / "t.json"), "--program", str(source))
    assert said in out + err
    assert (status, "Traceback" in err) == (2 if said.startswith("error") else 0, False)


def test_the_doctor_tells_the_level_and_what_is_missing() -> None:
    status, out, _ = plumbline("doctor")
    found = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert status == 0
    assert "isolation L" in found["programs"]
    assert {"machine", "memory", "disk,", "torch", "gpu", "vllm", "bitsandbytes"} <= found.keys()
    missing = [part.WITHOUT for part in (kernels, cpu_kernels) if part.compiled is None]
    assert all(without in found["compiled"] for without in missing)
    assert found["compiled"].endswith("install Plumbline again" if missing else " built")
    assert found["self-test"].startswith("agree: sampler and trainer differ by ")


def test_the_doctor_sees_a_sampler_that_disagrees(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of another temperature than it says, as when log-probs are taken before it."""
    monkeypatch.setattr(rl.command.doctor, "Policy", SharperPolicy)
    assert rl.command.doctor.self_test().startswith("DISAGREE (bound 0.001): no run on this machine")


class SharperPolicy(Policy):
    def score(self, micro: MicroBatch, temperature: float) -> TokenScores:
        return super().score(micro, temperature=1.0)


def test_the_audit_prints_what_the_two_engines_judge_differently(tmp_path: Path) -> None:
    """math-verify 0.9 cannot read 1e3 and computes an integral that was to be computed; on the rest they agree."""
    rows = [
        ("1000", r"so \boxed{1e3}", "correct"),
        ("1000", r"or \boxed{1e3}", "correct"),
        ("42", r"\boxed{42}", "correct"),
        ("42", r"\boxed{41}", "wrong"),
        ("1", r"\boxed{\int_0^1 2x dx}", "wrong"),
        ("5", "nothing", "no_answer"),
        ("5", r"\boxed{6}", "crashed"),
        ({"type": "stdin"}, "print(1)", "wrong"),  # not compared by an answer
    ]
    columns = ("reference", "completion", "outcome")
    lines = [json.dumps({"step": 1, "detail": "because", **dict(zip(columns, row, strict=True))}) for row in rows]
    (tmp_path / "completions.jsonl").write_text("\n".join(lines) + '\n{"step": 2, "refer')  # and a kill
    num_answers, found = audit(tmp_path)
    assert num_answers == 4
    assert [(d.reference, d.ours, d.theirs, d.count) for d in found] == [
        ("1000", "correct", "wrong", 2),
        ("1", "wrong", "correct", 1),
    ]


def test_the_audit_reads_answers_where_the_run_had_them(tmp_path: Path) -> None:
    """By its config.json; math-verify agrees on the last number, which nothing marks."""
    row = {"step": 1, "detail": "", "reference": "42", "completion": "6*7 is 42", "outcome": "correct"}
    (tmp_path / "completions.jsonl").write_text(json.dumps(row) + "\n")
    assert [d.answer for d in audit(tmp_path)[1]] == [""]
    (tmp_path / "config.json").write_text('{"answer_form": "last-number"}')
    assert audit(tmp_path) == (1, [])


def test_an_audit_of_nothing_says_so(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        status, _, err = plumbline("verify", "audit", str(folder))
        assert status == 2 and err.startswith("error: run folder") and "Traceback" not in err


def test_a_resumed_run_has_the_options_it_was_started_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that are not given again, of every kind; one that is given stands."""
    monkeypatch.chdir(tmp_path)
    started = RunConfig(run_dir=tmp_path / "r", group_size=4, lora_rank=2, lora_targets=("q_proj",), algorithm="dapo")
    settings = resolve(started, "cpu")
    (tmp_path / "r").mkdir()
    write_config(tmp_path / "r", settings.as_json())
    started = replace(RunConfig.from_json(settings.as_json()), run_dir=tmp_path / "r")
    trained: list[RunConfig] = []
    monkeypatch.setattr(rl.run.loop, "train", trained.append)
    for more in ([], ["--num-steps", "900"]):
        monkeypatch.setattr(sys, "argv", ["recipe", "--run-dir", str(tmp_path / "r"), "--resume", *more])
        run_recipe("")
    assert trained == [replace(started, resume=True), replace(started, resume=True, num_steps=900)]
