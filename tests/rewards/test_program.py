"""Hostile programs score 0, honest ones 1, and a failure of the verifier is not graded."""

from __future__ import annotations

import gzip
import json
import os
import random
import resource
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from processes import children, descendants, no_process_left
from program_attacks import ASSERTS, ESCAPE, ESCAPES, FUNCTION, FUNCTIONS, HONEST, SCRIPTS, STDIN, TESTED
from program_honest import OTHERS

from rewards.program import ProgramVerifier, SandboxUnavailable
from rewards.programs.grader import ProgramGrader
from rewards.sandbox.child import Limits
from rewards.sandbox.client import ChildResult
from rewards.sandbox.isolation import measure
from rewards.score import Outcome, Score

Item = tuple[dict[str, Any], str]  # task, program

ATTACKS: dict[str, Item] = {
    **{f"escape: {name}": (STDIN, ESCAPE.replace("{attempt}", attempt)) for name, attempt in ESCAPES.items()},
    **{f"script: {name}": (STDIN, program) for name, program in SCRIPTS.items()},
    **{f"function: {name}": item for name, item in FUNCTIONS.items()},
    **{f"asserts: {name}": item for name, item in TESTED.items()},
}
WITHOUT_NAMESPACES = [name for name in ATTACKS if name.startswith("escape") or "too many" in name]


def _verifier(**options: Any) -> ProgramVerifier:
    try:
        return ProgramVerifier(**options)
    except SandboxUnavailable as error:
        pytest.skip(str(error))


def _verify(verifier: ProgramVerifier, items: dict[str, Item]) -> dict[str, Score]:
    tasks, programs = [task for task, _ in items.values()], [program for _, program in items.values()]
    return dict(zip(items, verifier.verify_batch(programs, tasks), strict=True))


def _attacked(names: list[str], **options: Any) -> dict[str, Score]:
    """The scores of attacks, and of an honest program that is graded after each. Checks that no process is left."""
    items: dict[str, Item] = {}
    for name in names:
        items[name] = ATTACKS[name]
        task, program = HONEST[ATTACKS[name][0]["type"]]
        items[f"after {name}"] = task, f"{program}  # after {name}"
    with no_process_left(), _verifier(cpu_seconds=1, wall_seconds=1.5, **options) as verifier:
        return _verify(verifier, items)


@pytest.fixture(scope="module")
def attacked() -> dict[str, Score]:
    return _attacked(list(ATTACKS))


@pytest.fixture(scope="module")
def attacked_without_namespaces() -> dict[str, Score]:
    return _attacked(WITHOUT_NAMESPACES, without=["namespaces"])


@pytest.fixture(scope="module")
def honest() -> dict[str, Score]:
    with _verifier() as verifier:
        return _verify(verifier, OTHERS)


@pytest.fixture(scope="module")
def verifier() -> Iterator[ProgramVerifier]:
    with _verifier(num_workers=1, cpu_seconds=1, wall_seconds=2.0) as made:
        yield made


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_scores_0_and_the_next_program_is_graded(attacked: dict[str, Score], name: str) -> None:
    assert (attacked[name].value, attacked[f"after {name}"].value) == (0.0, 1.0), attacked[name]


@pytest.mark.parametrize("name", WITHOUT_NAMESPACES)
def test_the_other_layers_hold_alone(attacked_without_namespaces: dict[str, Score], name: str) -> None:
    found = attacked_without_namespaces
    assert (found[name].value, found[f"after {name}"].value) == (0.0, 1.0), found[name]


@pytest.mark.parametrize("name", OTHERS)
def test_an_honest_program_is_right(honest: dict[str, Score], name: str) -> None:
    assert honest[name].value == 1.0, honest[name]


@pytest.mark.parametrize("without", [[], ["namespaces"]], ids=["all layers", "no namespaces"])
def test_the_development_cases_get_their_reward_with_and_without_namespaces(
    shared_file: Callable[[str], Path], without: list[str]
) -> None:
    cases = [json.loads(line) for line in shared_file("cases/code_attacks_dev.jsonl").read_text().splitlines()]
    with no_process_left(), _verifier(without=without, cpu_seconds=1, wall_seconds=2.0) as verifier:
        scores = verifier.verify_batch([case["program"] for case in cases], [case["task"] for case in cases])
    wrong = [(c["name"], s) for c, s in zip(cases, scores, strict=True) if (s.value or 0.0) != c["expect"]["reward"]]
    assert not wrong


def test_human_evals_solutions_pass_and_stubs_do_not(shared_file: Callable[[str], Path]) -> None:
    with gzip.open(shared_file("data/HumanEval.jsonl.gz"), "rt") as file:
        rows = [json.loads(line) for line in file]
    tasks = [
        {
            "type": "asserts",
            "entry_point": row["entry_point"],
            "setup": row["prompt"],
            "asserts": [row["test"], f"check({row['entry_point']})"],
            "prefix": row["prompt"],
        }
        for row in rows
    ]
    with _verifier() as verifier:
        right = verifier.verify_batch([row["canonical_solution"] for row in rows], tasks)
        stubs = verifier.verify_batch(["    return None\n"] * len(rows), tasks)
    assert len(rows) == 164
    assert [score for score in right if score.value != 1.0] == []
    assert [score for score in stubs if score.value != 0.0] == []


def _with(task: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {**task, **more}


BAD_TASKS: dict[str, Any] = {
    "nothing": None,
    "a text": "stdin",
    "no object": [STDIN],
    "no type": {"tests": STDIN["tests"]},
    "an unknown type": _with(STDIN, type="shell"),
    "a type that is a list": _with(STDIN, type=["stdin"]),
    "no tests": _with(STDIN, tests=[]),
    "tests that are an object": _with(STDIN, tests={}),
    "a test without output": _with(STDIN, tests=[{"stdin": ""}]),
    "output that is a number": _with(STDIN, tests=[{"stdin": "", "stdout": 3}]),
    "no output expected": _with(STDIN, tests=[{"stdin": "", "stdout": " \n"}]),
    "half a character": _with(STDIN, tests=[{"stdin": "", "stdout": "\ud800"}]),
    "no name": _with(FUNCTION, fn_name=None),
    "a name that is none": _with(FUNCTION, fn_name="a.b"),
    "a name that nobody can define": _with(FUNCTION, fn_name="class"),
    "arguments by name": _with(FUNCTION, tests=[{"args": {"a": 1}, "expected": 1}]),
    "NaN": _with(FUNCTION, tests=[{"args": [], "expected": [1, float("nan")]}]),
    "deeper than any result": _with(FUNCTION, tests=[{"args": [], "expected": json.loads("[" * 60 + "]" * 60)}]),
    "larger than any result": _with(FUNCTION, tests=[{"args": [], "expected": "x" * 2_000_000}]),
    "a set": _with(FUNCTION, tests=[{"args": [], "expected": {1}}]),
    "bytes": _with(FUNCTION, tests=[{"args": [], "expected": b""}]),
    "digits that no reader takes": _with(FUNCTION, tests=[{"args": [], "expected": 10**5000}]),
    "a tolerance of one": _with(FUNCTION, float_tol=1.0),
    "a tolerance that is text": _with(FUNCTION, float_tol="1e-6"),
    "a prefix that is a list": _with(FUNCTION, prefix=["x"]),
    "no asserts": _with(ASSERTS, asserts=[]),
    "an assert that is a number": _with(ASSERTS, asserts=[1]),
    "an assert that is no Python": _with(ASSERTS, asserts=["assert add("]),
    "an assert with a null byte": _with(ASSERTS, asserts=["add\0"]),
    "an assert too deep to read": _with(ASSERTS, asserts=["assert add(" + "-" * 100_000 + "1)"]),
    "a setup that is no Python": _with(ASSERTS, setup="def"),
    "asserts of something else": _with(ASSERTS, asserts=["assert sub(1, 2) == -1"]),
    "asserts that do not call": _with(ASSERTS, asserts=["assert add is not None"]),
    "asserts that raise before": _with(ASSERTS, setup="1 / 0"),
    "asserts that exit": _with(ASSERTS, setup="raise SystemExit"),
    "asserts of what cannot be handed over": _with(ASSERTS, asserts=["try: add(1, object())\nexcept Exception: pass"]),
    "asserts that hand over a function": _with(ASSERTS, asserts=["assert add(lambda: 1, 2) == 3"]),
    "asserts that hand over one later": _with(
        ASSERTS, asserts=["def check(f):\n    assert f(1, 2) == 3\n    assert f(abs, 2) == 3", "check(add)"]
    ),
    "asserts whose prefix raises": _with(ASSERTS, prefix="1 / 0"),
    "names that are no list": _with(ASSERTS, also_defines="sub"),
}
BAD_TASKS["itself"] = BAD_TASKS["cycle"] = cycle = {"type": "stdin"}
cycle["tests"] = [cycle]


def test_an_invalid_task_is_a_bad_reference(verifier: ProgramVerifier) -> None:
    programs = ["def add(a, b): return a + b"] * len(BAD_TASKS)
    scores = dict(zip(BAD_TASKS, verifier.verify_batch(programs, list(BAD_TASKS.values())), strict=True))
    assert {name: s for name, s in scores.items() if s.outcome is not Outcome.BAD_REFERENCE} == {}
    assert not [name for name, score in scores.items() if not score.detail]


DECIDED_BY_THE_PROGRAM = {
    "a module": "assert xp.allclose(add(1, 2), 3.0)",
    "a comparison": "assert almost(add(1, 2), 3.0)",
    "an expected value": "assert add(Node(1), Node(2)) == Node(3)",
    "an expected value in a list": "assert [add(1, 2)] == [approx(3, abs=0.1)]",
    "a difference": "assert abs(add(1, 2) - exact(3)) < 1e-6",
    "a length": "assert len(result(add(1, 2))) == 1",
    "a text": "assert str(shown(add(1, 2))) == '3'",
    "an order": "assert lower() <= add(1, 2)",
    "an element": "assert add(1, 2) in results(3)",
    "a class": "assert isinstance(add(1, 2), Node)",
    "a name": "assert add(1, 2) == expected",
    "a bound": "assert abs(add(1, 2) - 3) < lower",
    "cases": "for a, b, c in results: assert add(a, b) == c",
    "a handler": "try: add(1, 2)\nexcept BaseException: pass\nassert almost(3, 3)",
}
FAKES = """
def add(a, b): return 0
class xp:
    allclose = lambda *a: True
class Node:
    def __new__(cls, x): return 0
almost = lambda *a: True
approx = exact = lambda *a, **k: 0
result = lambda x: [0]
shown = lambda x: '3'
lower = lambda: -1
results = lambda x: [0]
"""


@pytest.mark.parametrize("name", DECIDED_BY_THE_PROGRAM)
def test_names_that_the_program_defines_do_not_decide_its_tests(verifier: ProgramVerifier, name: str) -> None:
    task = _with(ASSERTS, asserts=[DECIDED_BY_THE_PROGRAM[name]])
    (checked,), (graded,) = verifier.check_references([task]), verifier.verify_batch([FAKES], [task])
    assert checked.outcome is graded.outcome is Outcome.BAD_REFERENCE, (checked, graded)
    assert "program's to define" in checked.detail


def test_asserts_that_no_program_can_pass_are_rejected_before_training(verifier: ProgramVerifier) -> None:
    tasks = {name: task for name, task in BAD_TASKS.items() if name.startswith("asserts")}
    scores = dict(zip(tasks, verifier.check_references(list(tasks.values())), strict=True))
    assert {name: score for name, score in scores.items() if score.outcome is not Outcome.BAD_REFERENCE} == {}


def test_asserts_that_programs_can_pass_are_accepted_before_training(verifier: ProgramVerifier) -> None:
    tasks = {name: task for name, (task, _) in OTHERS.items() if task["type"] == "asserts"}
    scores = dict(zip(tasks, verifier.check_references(list(tasks.values())), strict=True))
    assert {name: score for name, score in scores.items() if score.outcome is not Outcome.CORRECT} == {}


def test_tests_that_end_their_process_are_not_graded(verifier: ProgramVerifier) -> None:
    (score,) = verifier.verify_batch([HONEST["asserts"][1]], [_with(ASSERTS, asserts=["import os; add; os._exit(0)"])])
    assert (score.value, score.outcome) == (None, Outcome.CRASHED)


def test_a_solution_must_pass_its_own_tests(verifier: ProgramVerifier) -> None:
    tasks = [_with(FUNCTION, solution=program) for program in (HONEST["function"][1], "def add(a, b): return a - b")]
    assert [s.outcome for s in verifier.check_references(tasks)] == [Outcome.CORRECT, Outcome.BAD_REFERENCE]


@pytest.mark.parametrize("program", [None, 3, b"def add(a, b): return a + b", ["x"]], ids=repr)
def test_a_program_must_be_text(verifier: ProgramVerifier, program: Any) -> None:
    (score,) = verifier.verify_batch([program], [FUNCTION])
    assert (score.value, score.outcome) == (0.0, Outcome.UNPARSED)


def test_an_empty_program_is_no_answer(verifier: ProgramVerifier) -> None:
    assert verifier.verify_batch([" \n"], [FUNCTION])[0].outcome is Outcome.NO_ANSWER


def test_completions_are_searched_for_their_program() -> None:
    completion = (
        "<think>```python\nx\n```</think>Here:\n```python\ndef add(a, b): return a + b\n```\nprints\n```\n3\n```"
    )
    with _verifier(completions=True, num_workers=1) as verifier:
        assert verifier.verify_batch([completion], [FUNCTION])[0].value == 1.0


def test_a_detail_is_one_line_that_can_be_shown(verifier: ProgramVerifier) -> None:
    program = 'import os; os.write(3, b\'{"error": "\\\\ud800\\\\n\\\\u001b[2J"}\\n\')'
    (score,) = verifier.verify_batch([program], [FUNCTION])
    assert score.detail.isprintable(), score


def test_all_tests_of_a_script_share_a_bound_of_time(verifier: ProgramVerifier) -> None:
    """Each test takes less than its limit of 2 s; all together may take twice that."""
    task = {"type": "stdin", "tests": [{"stdin": "", "stdout": "1"}] * 20}
    start = time.monotonic()
    (score,) = verifier.verify_batch(["import time; time.sleep(1.2); print(1)"], [task])
    assert score.outcome is Outcome.TIMEOUT
    assert time.monotonic() - start < 2 * 2.0 + 2.0


MANY: list[Item] = [
    (_with(STDIN, tests=STDIN["tests"] * 2), HONEST["stdin"][1]),
    (FUNCTION, "import time\ndef add(a, b):\n    time.sleep(0.01)\n    return a + b"),
    HONEST["asserts"],
]


@pytest.mark.parametrize("depth", [1, 2, 3, 4], ids=["workers", "zygotes", "what they start", "what that starts"])
def test_kills_from_outside_leave_few_programs_ungraded(depth: int) -> None:
    """An item is tried twice and a kill ends one try, which bounds the number of ungraded items. None is ever wrong."""
    items = {str(i): (MANY[i % 3][0], f"{MANY[i % 3][1]}  # {i}") for i in range(200)}
    chance, over, num_kills = random.Random(depth), threading.Event(), 6
    with no_process_left(), _verifier() as verifier:

        def kill() -> None:
            for _ in range(num_kills):
                if over.wait(chance.uniform(0.1, 0.3)):
                    return
                tree, level = children(), [os.getpid()]
                for _ in range(depth):
                    level = [child for parent in level for child in tree.get(parent, [])]
                if level:
                    with suppress(ProcessLookupError):
                        os.kill(chance.choice(level), signal.SIGKILL)

        killer = threading.Thread(target=kill)
        killer.start()
        outcomes = Counter(score.outcome for score in _verify(verifier, items).values())
        over.set()
        killer.join()
        again = {name: (task, f"{program} again") for name, (task, program) in items.items()}
        assert {score.outcome for score in _verify(verifier, again).values()} == {Outcome.CORRECT}
    assert outcomes.keys() <= {Outcome.CORRECT, Outcome.CRASHED}, outcomes
    assert outcomes[Outcome.CRASHED] <= num_kills // 2, outcomes


@pytest.mark.parametrize(("again", "expected"), [("passes", Outcome.CORRECT), ("hangs up", Outcome.WRONG)])
def test_a_program_that_the_tests_lose_before_it_has_ended_is_run_once_more(again: str, expected: Outcome) -> None:
    """It may have been about to be killed from outside; one that closes the connection each time is wrong."""

    def ended(by: str, result: str) -> ChildResult:
        return ChildResult(
            status=-9, cpu=0.0, ended_by=by, overflowed=False, stdout=b"", stderr=b"", result=result.encode()
        )

    lost = ended("exit", json.dumps({"failed": 1, "gone": True})), ended("grader", "")
    passed = ended("exit", json.dumps({"num_calls": 1})), ended("grader", "")
    runs = iter([lost, {"passes": passed, "hangs up": lost}[again]])
    grader = object.__new__(ProgramGrader)
    grader._limits = {"cpu_seconds": 2}  # pyright: ignore
    grader._run_tests = lambda *_: next(runs)  # pyright: ignore
    task = SimpleNamespace(entry_point="f", asserts=["assert f() == 1"])
    assert grader._run_asserts("", task)[0] is expected  # pyright: ignore


@pytest.mark.parametrize(
    ("kind", "least"), [(resource.RLIMIT_NOFILE, 5), (resource.RLIMIT_FSIZE, 0)], ids=["files", "size"]
)
def test_a_failure_of_the_machine_is_not_graded_and_does_not_last(kind: int, least: int) -> None:
    item = {"": HONEST["asserts"]}
    with _verifier(num_workers=1) as verifier:
        assert _verify(verifier, item)[""].value == 1.0
        pids = descendants()
        hard = resource.getrlimit(kind)[1]
        for pid in pids:
            resource.prlimit(pid, kind, (least, hard))
        score = _verify(verifier, item)[""]
        assert (score.value, score.outcome) == (None, Outcome.CRASHED), score
        for pid in descendants():
            resource.prlimit(pid, kind, (hard, hard))
        assert _verify(verifier, item)[""].value == 1.0


def test_a_sandbox_that_fails_to_start_is_retried_and_not_graded() -> None:
    limits: Limits = {"cpu_seconds": 1, "wall_seconds": 1.0, "memory": 1 << 30, "output": 1 << 20}
    grader = ProgramGrader(completions=False, limits=limits, layers=[], packages=["no_such_package"], readable=[])
    outcome, detail = grader.grade(HONEST["function"][1], FUNCTION)
    assert outcome is Outcome.CRASHED
    assert detail == "the sandbox failed twice: No module named 'no_such_package'"


@pytest.fixture
def unmeasured() -> Iterator[None]:
    measure.cache_clear()
    yield
    measure.cache_clear()


@pytest.mark.usefixtures("unmeasured")
def test_a_machine_without_a_temporary_folder_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nothing"))
    with pytest.raises(SandboxUnavailable, match="temporary folder"):
        ProgramVerifier()


@pytest.mark.usefixtures("unmeasured")
def test_a_machine_where_no_process_can_be_started_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nothing")
    with pytest.raises(SandboxUnavailable, match="no process can be started: No such file"):
        ProgramVerifier()


def test_below_the_minimum_level_programs_run_only_if_allowed() -> None:
    without = ["namespaces", "landlock"]
    with pytest.raises(SandboxUnavailable, match=r"L[01] \(seccomp\); missing: .*landlock \(switched off\)"):
        ProgramVerifier(without=without)
    with ProgramVerifier(without=without, allow_unsafe_code=True, num_workers=1) as verifier:
        assert verifier.isolation.rank < 2
        assert verifier.verify_batch([HONEST["function"][1]], [FUNCTION])[0].value == 1.0


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"cpu_seconds": 0}, "cpu_seconds=0"),
        ({"cpu_seconds": 1.5}, "cpu_seconds=1.5"),
        ({"wall_seconds": float("nan")}, "wall_seconds=nan"),
        ({"memory_limit": 1 << 20}, "memory_limit=1048576"),
        ({"without": ["network"]}, "no layer 'network'"),
        ({"packages": ["no_such_package"]}, "no_such_package"),
    ],
)
def test_invalid_options_are_rejected_by_name(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        ProgramVerifier(**options)


def test_requested_packages_can_be_imported() -> None:
    program = "import numpy as np\ndef add(a, b): return np.add(a, b)"
    asserts = _with(
        ASSERTS, setup="import numpy as np", asserts=["assert np.allclose(add(np.array([1, 2]), 1), [2, 3])"]
    )
    with _verifier(num_workers=1, packages=["numpy"]) as verifier:
        assert [s.value for s in verifier.verify_batch([program] * 2, [FUNCTION, asserts])] == [1.0, 1.0]
