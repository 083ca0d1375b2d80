"""Tools run in killable workers: whatever they do, the call gets an answer and the next one is served."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from rewards.errors import UserError
from rollout.toolbox import Toolbox

FILE = Path(__file__).with_name("some_tools.py")


@pytest.fixture(scope="module")
def toolbox() -> Iterator[Toolbox]:
    made = Toolbox([f"{FILE}:{name}" for name in ("add", "later", "misuse")], deadline=2.0, max_output=50)
    yield made
    made.close()
    made.close()


def test_schemas_come_from_types_and_docstrings(toolbox: Toolbox) -> None:
    add, *_ = toolbox.schemas
    assert add["function"]["description"] == "Adds two numbers."
    assert add["function"]["parameters"]["properties"]["b"] == {"type": "integer", "description": "The second number."}
    assert add["function"]["parameters"]["required"] == ["a"]


@pytest.mark.parametrize(
    ("name", "arguments", "text"),
    [
        ("add", {"a": 10**30, "b": 2}, f"{10**30 + 2}"),
        ("add", {"a": 3}, "4"),
        ("later", {"text": "soon"}, "soon"),
        ("misuse", {"how": "long"}, "x" * 50 + "\n(9999950 more characters are left out)"),
        ("misuse", {"how": "surrogate"}, "?"),
        ("misuse", {"how": "none"}, "None"),
        ("misuse", {"how": "fork"}, "forked"),
    ],
)
def test_an_answer_is_the_text_of_what_is_returned(
    toolbox: Toolbox, name: str, arguments: dict[str, Any], text: str
) -> None:
    assert toolbox.call(name, arguments) == (text, False)


@pytest.mark.parametrize(
    ("name", "arguments", "text"),
    [
        ("sub", {}, "there is no tool 'sub'; the tools are add, later, misuse"),
        ("add", {"a": 1, "c": 2}, "TypeError: add() got an unexpected keyword argument 'c'"),
        ("add", {}, "TypeError: add() missing 1 required positional argument: 'a'"),
        ("add", {"a": "1"}, 'TypeError: can only concatenate str (not "int") to str'),
        ("misuse", {"how": "bytes"}, "TypeError: the tool returned bytes, not text"),
        ("misuse", {"how": "exit"}, "SystemExit: 3"),
        ("misuse", {"how": "note"}, "ValueError: below"),
        ("misuse", {"how": "die"}, "misuse failed: the worker died twice, last with status 3"),
        ("misuse", {"how": "hang"}, "misuse gave no answer within 2 seconds"),
    ],
)
def test_a_failed_call_is_answered_by_its_error(
    toolbox: Toolbox, name: str, arguments: dict[str, Any], text: str
) -> None:
    assert toolbox.call(name, arguments) == (f"Error: {text}", True)
    assert toolbox.call("add", {"a": 3}) == ("4", False)


def test_a_call_that_hangs_keeps_no_other_from_its_answer(toolbox: Toolbox) -> None:
    with ThreadPoolExecutor(2) as threads:
        hangs = threads.submit(toolbox.call, "misuse", {"how": "hang"})
        time.sleep(0.1)
        started = time.perf_counter()
        assert all(toolbox.call("add", {"a": i}).text == str(i + 1) for i in range(50))
        assert time.perf_counter() - started < 1.5 and not hangs.done()
        assert hangs.result().failed


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["nothing"],
            r"tools has .*some_tools.py:nothing: it cannot be loaded: it has no function 'nothing'; its functions are add",
        ),
        (["untyped"], "untyped: Argument a is missing a type hint.*; a tool is a function with types"),
        (["undocumented"], r"undocumented: .*has no docstring!; a tool is"),
        (["half_documented"], r"half_documented: .*'b'.*; a tool is"),
        (["add", "later", "add"], "tools has two that are called 'add'"),
    ],
)
def test_a_tool_that_cannot_be_called_is_refused(names: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Toolbox([f"{FILE}:{name}" for name in names], num_workers=1)


def test_a_file_that_ends_the_worker_at_import_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("raise KeyboardInterrupt")
    with pytest.raises(UserError, match="cannot be loaded: KeyboardInterrupt"):
        Toolbox([f"{tmp_path}/mine.py:f"])


def test_of_a_file_that_forks_at_import_one_process_answers(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        'import os\nos.fork()\ndef pid() -> str:\n    """Names the process."""\n    return str(os.getpid())'
    )
    with closing(Toolbox([f"{tmp_path}/mine.py:pid"], num_workers=1)) as toolbox:
        assert len({toolbox.call("pid", {}).text for _ in range(5)}) == 1


def test_a_file_that_is_not_there_or_breaks_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"tools is 'absent.py:add': there is no file"):
        Toolbox(["absent.py:add"])
    broken = tmp_path / "broken.py"
    shutil.copy(FILE, broken)
    broken.write_text(broken.read_text() + "\nraise RuntimeError('no key')\n")
    with pytest.raises(UserError, match=r"broken.py:add: it cannot be loaded: RuntimeError: no key"):
        Toolbox([f"{broken}:add"], num_workers=1)
