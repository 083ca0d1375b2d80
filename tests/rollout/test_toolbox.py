"""Tools run in killable workers: whatever they do, the call gets an answer and the next one is served."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from rewards.errors import UserError
from rollout.toolbox import JoinedTools, Toolbox

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


def test_a_rollout_calls_the_tools_of_all_sources_by_name(toolbox: Toolbox) -> None:
    other: Any = Mock(schemas=[{"function": {"name": "sub"}}])
    joined = JoinedTools([(source.schemas, source.begin()) for source in (toolbox, other)])
    assert joined.call("add", {"a": 3}) == ("4", False)
    assert joined.call("sub", {"a": 3}) is other.begin().call.return_value
    assert joined.call("mul", {}) == ("Error: there is no tool 'mul'; the tools are add, later, misuse, sub", True)


@pytest.mark.parametrize(
    ("name", "arguments", "text"),
    [
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
        (["positional"], "positional: its argument 'a' has no name in a call; write it without / and"),
        (["variable"], "variable: its argument 'numbers' has no name in a call"),
        (["open_ended"], "open_ended: its argument 'numbers' has no name in a call"),
        (
            ["Library.search"],
            "Library.search: its argument 'self' is an object that no call has; name the method of an object",
        ),
        (["Library"], "Library: it is a class, not a function; name a function"),
        (
            ["library"],
            "library: it is an object of the class Library, not a function; name a function, or a method of an",
        ),
        (["draws"], r"draws: its argument 'point' has the type .*\bPoint, but the model writes JSON .*; use str, int"),
        (["paints"], r"paints: its argument 'colours' has the type .*Colour.*, but the model writes JSON"),
        (["counts"], "counts: it is a generator, .*; return the whole text"),
        (["counts_later"], "counts_later: it is a generator"),
        (
            ["measures"],
            "measures: its types .*'length': 'Fraction'.* cannot be read: name 'Fraction' is not defined.*; import",
        ),
        (["add", "later", "add"], "tools has two that are called 'add'"),
    ],
)
def test_a_tool_that_cannot_be_called_is_refused(names: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Toolbox([f"{FILE}:{name}" for name in names], num_workers=1)


def test_what_json_has_can_be_asked_for_and_methods_of_an_object_can_be_called() -> None:
    with closing(Toolbox([f"{FILE}:chooses", f"{FILE}:library.search"], num_workers=1)) as toolbox:
        assert toolbox.call("chooses", {"of": "b"}) == ("b", False)
        assert toolbox.call("search", {"query": "bees"}) == ("bees", False)


def test_a_file_that_ends_the_worker_at_import_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("raise KeyboardInterrupt")
    with pytest.raises(UserError, match="cannot be loaded: KeyboardInterrupt"):
        Toolbox([f"{tmp_path}/mine.py:f"])


def test_of_a_file_that_forks_at_import_no_child_answers(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        'import os\nos.fork()\ndef parent() -> str:\n    """Names who started it."""\n    return str(os.getppid())'
    )
    with closing(Toolbox([f"{tmp_path}/mine.py:parent"], num_workers=1)) as toolbox:
        assert {toolbox.call("parent", {}).text for _ in range(5)} == {str(os.getpid())}


def test_a_file_that_is_not_there_or_breaks_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"tools is 'absent.py:add': there is no file"):
        Toolbox(["absent.py:add"])
    broken = tmp_path / "broken.py"
    shutil.copy(FILE, broken)
    broken.write_text(broken.read_text() + "\nraise RuntimeError('no key')\n")
    with pytest.raises(UserError, match=r"broken.py:add: it cannot be loaded: RuntimeError: no key"):
        Toolbox([f"{broken}:add"], num_workers=1)
