"""The pages about rewards: every command and every function that they show, run as a reader would run it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from rewards.function_verifier import FunctionVerifier
from rewards.functions.source import Source
from rl.view.metrics import read_metrics

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"```(python)?\n(.*?)\n```", re.DOTALL)
NAME = re.compile(r"# (\w+\.py)\n")


def blocks(page: str) -> list[tuple[bool, str]]:
    """(is Python, text) of the page's blocks, in order."""
    text = (ROOT / "docs" / page).read_text("utf-8")
    return [(kind == "python", block) for kind, block in BLOCK.findall(text)]


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the recipes, in which commands find this environment's programs and the code under test."""
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_files(folder: Path, page: str) -> None:
    for is_python, text in blocks(page):
        named = NAME.match(text)
        if is_python and named:
            (folder / named[1]).write_text(text + "\n")


def run(command: str, folder: Path) -> str:
    done = subprocess.run(command, shell=True, cwd=folder, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout


def test_the_first_reward_line_by_line(reader: Path) -> None:
    write_files(reader, "first-reward.md")
    commands = [text for is_python, text in blocks("first-reward.md") if not is_python]
    printed = [run(command, reader) for command in commands]
    assert len(commands) == 4
    assert "samples of the model" in printed[1] and "warning" not in printed[1]
    assert "greedy reward" in printed[3]
    (*_, last) = read_metrics(reader / "runs" / "first")
    assert {"part/right", "part/brief", "eval/accuracy"} <= last.keys()
    recorded = (reader / "runs" / "first" / "completions.jsonl").read_text().splitlines()
    assert {"right", "brief"} <= json.loads(recorded[-1])["parts"].keys()


def test_the_program_of_the_page_on_python(reader: Path) -> None:
    ((_, program),) = [block for block in blocks("python.md") if block[0]]
    (reader / "program.py").write_text(program)
    (*_, last) = run(f"{sys.executable} program.py", reader).strip().splitlines()
    reward, accuracy = map(float, last.split())
    assert 0 <= reward <= 1 and 0 <= accuracy <= 1


class Judge(BaseHTTPRequestHandler):
    """A server that pays for the prompt in the completion."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"reward": float(asked["prompt"] in asked["completion"])}).encode())

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def judge() -> Iterator[None]:
    server = HTTPServer(("127.0.0.1", 9000), Judge)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield
    server.shutdown()
    thread.join()
    server.server_close()


CODE = "```python\nx = y\n```"  # one finding: y is undefined


@pytest.mark.usefixtures("judge")
@pytest.mark.parametrize(
    ("spec", "answers", "expected"),
    [
        ("keyword_reward.py:reward", ["an Apple", "a pear"], [1, 0]),
        ("short.py:short", ["x" * 1000, "x" * 8000], [-0.25, -1]),
        ("json_form.py:reward", ['{"b": 1, "a": 2}', '{"a": 2}', "no JSON"], [1, 0, 0]),
        ("shortest.py:reward", ["apple", "so \\boxed{apple}", "pear"], [1, 0.5, 0]),
        ("style.py:style", ["```python\nx = 1\n```", CODE], [1, 0.5]),
        ("judge.py:reward", ["Which fruit? An apple", "pear"], [1, 0]),
        ("with_options.py:slow_but_sure", ["x", "x" * 100], [1, 0]),
    ],
)
def test_the_examples_pay_as_their_text_says(
    reader: Path, spec: str, answers: list[str], expected: list[float]
) -> None:
    write_files(reader, "rewards.md")
    row = {"id": "1", "fields": ["a", "b"]}
    verifier = FunctionVerifier(spec, Source.parse(spec), num_workers=1, deadline=20)
    try:
        count = len(answers)
        scores = verifier.verify_batch(answers, ["apple"] * count, ["Which fruit?"] * count, [row] * count)
        assert [s.value for s in scores] == expected, [s.detail for s in scores]
    finally:
        verifier.close()
