"""Rows with tests become tasks that rewards.program grades."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rewards.errors import UserError
from rewards.program import ProgramVerifier
from rewards.programs.task import parse_task
from rewards.score import Outcome
from rewards.verdict import BadReference
from rollout.problems import load_problems

ASSERTS = ["assert set([add(1, 2)]) == {3}", "assert set([add(0, 0)]) == {0}"]
COUNTED = ["assert Counter([add(1, 2)]) == Counter([3])"]
CALLS = [{"args": [1, 2], "expected": 3}]
SCRIPT = [{"stdin": "1 2", "stdout": "3"}]
LCB = [
    {"input": '[1, 2]\n"a"', "output": '[1, "a"]', "testtype": "functional"},
    {"input": "null\n1.5\n", "output": "true", "testtype": "functional"},
]
LCB_CALLS = [{"args": [[1, 2], "a"], "expected": [1, "a"]}, {"args": [None, 1.5], "expected": True}]


def loaded(folder: Path, **columns: Any) -> dict[str, Any]:
    """The task of a file with one row."""
    path = folder / "data.jsonl"
    path.write_text(json.dumps({"prompt": "Add.", **columns}) + "\n")
    problem = load_problems(str(path))[0]
    assert problem.verifier == "program"
    assert isinstance(problem.reference, dict)
    parse_task(problem.reference)  # raises if the tests cannot grade any program
    return problem.reference


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"tests": ASSERTS}, {"type": "asserts", "entry_point": "add", "asserts": ASSERTS}),
        ({"tests": ASSERTS, "entry_point": "plus"}, {"entry_point": "plus"}),
        ({"tests": json.dumps(ASSERTS)}, {"asserts": ASSERTS}),
        ({"test_list": ASSERTS, "test_setup_code": "import math"}, {"asserts": ASSERTS, "setup": "import math"}),
        ({"test_list": COUNTED, "test_setup_code": "from collections import Counter"}, {"entry_point": "add"}),
        ({"tests": [f"from collections import Counter\n{test}" for test in COUNTED]}, {"entry_point": "add"}),
        ({"tests": [f"def Counter(x): return x\n{test}" for test in COUNTED]}, {"entry_point": "add"}),
        ({"tests": CALLS, "fn_name": "add"}, {"type": "function", "fn_name": "add", "tests": CALLS}),
        ({"tests": CALLS, "fn_name": "add", "float_tol": 1e-6}, {"float_tol": 1e-6}),
        ({"tests": SCRIPT}, {"type": "stdin", "tests": SCRIPT}),
        ({"tests": [{"input": "1 2", "output": "3"}]}, {"type": "stdin", "tests": SCRIPT}),
        ({"tests": LCB, "fn_name": "add"}, {"type": "function", "fn_name": "add", "tests": LCB_CALLS}),
        ({"tests": json.dumps(LCB), "metadata": '{"func_name": "add"}'}, {"fn_name": "add", "tests": LCB_CALLS}),
        (
            {"tests": [{**test, "metadata": {"func_name": "add"}} for test in LCB]},
            {"fn_name": "add", "tests": LCB_CALLS},
        ),
        ({"tests": [{"input": "1 2", "output": "3", "testtype": "stdin"}]}, {"type": "stdin"}),
        ({"tests": {"inputs": ["1 2"], "outputs": ["3"]}}, {"type": "stdin", "tests": SCRIPT}),
        ({"tests": '{"inputs": [["1 2"]], "outputs": [["3"]]}'}, {"type": "stdin", "tests": SCRIPT}),
        ({"tests": {"fn_name": "add", "inputs": [[1, 2]], "outputs": [3]}}, {"fn_name": "add", "tests": CALLS}),
        ({"tests": {"inputs": [[1, 2]], "outputs": [[3]]}, "fn_name": "add"}, {"type": "function", "tests": CALLS}),
        ({"tests": [{"input": "1 2", "output": 3}]}, {"type": "stdin", "tests": SCRIPT}),
    ],
)
def test_every_format_of_tests_is_read(columns: dict[str, Any], expected: dict[str, Any], tmp_path: Path) -> None:
    if expected.get("entry_point") == "plus":
        columns = {**columns, "tests": [text.replace("add", "plus") for text in ASSERTS]}
    task = loaded(tmp_path, **columns)
    assert {key: task[key] for key in expected} == expected


def test_a_humaneval_row_is_graded_as_a_beginning_with_its_helpers(tmp_path: Path) -> None:
    prompt = "def helper(x):\n    return x\n\ndef f(x):\n    '''Twice x.'''\n"
    test = "def check(candidate):\n    assert candidate(helper(2)) == 4\n"
    row = {"prompt": prompt, "test": test, "entry_point": "f", "canonical_solution": "    return 2 * x\n"}
    task = loaded(tmp_path, **row)
    assert task["asserts"] == [test, "check(f)"]
    assert task["setup"] == task["prefix"] == prompt
    assert task["solution"] == row["canonical_solution"]


def test_humaneval_as_published_is_solved_by_its_own_solutions(shared_file: Callable[[str], Path]) -> None:
    """Each canonical solution continues its prompt, as a base model would; none of the 164 stubs passes."""
    problems = load_problems(str(shared_file("data/HumanEval.jsonl.gz")))
    references = [problem.reference for problem in problems]
    with ProgramVerifier(completions=True) as verifier:
        assert {score.outcome for score in verifier.check_references(references)} == {Outcome.CORRECT}
        fenced = [f"So:\n```python\n{r['prefix']}{r['solution']}\n```\nDone." for r in references]  # type: ignore[index]
        assert {score.value for score in verifier.verify_batch(fenced, references)} == {1.0}
        assert {score.value for score in verifier.verify_batch(["    return None\n"] * 164, references)} == {0.0}


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"tests": []}, "at least one test"),
        ({"tests": "assert"}, "at least one test"),
        ({"tests": {"a": 1}}, "at least one test"),
        ({"tests": [{"stdin": "", "stdout": ""}, "assert f(1)"]}, "test 2 must be an object"),
        ({"tests": CALLS}, "fn_name is None"),
        ({"tests": LCB}, "fn_name is None"),
        (
            {"tests": [{"input": "1,", "output": "3", "testtype": "functional"}], "fn_name": "f"},
            "test 1 must be an object with args",
        ),
        ({"tests": {"inputs": ["1"], "outputs": []}}, "at least one test"),
        ({"tests": [{"stdin": "1", "stdout": True}]}, "must be text"),
        ({"tests": ["assert f(1) == g(1)"]}, "entry_point is None"),
        ({"tests": ["assert 1"]}, "entry_point is None"),
        ({"tests": ["assert f(1"]}, "entry_point is None"),
    ],
)
def test_tests_that_cannot_be_used_make_a_bad_reference_and_end_nothing(
    columns: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(BadReference, match=message):
        loaded(tmp_path, **columns)


def test_a_row_may_name_its_verifier_itself(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    row = {"prompt": "Add.", "verifier": "program", "reference": {"type": "stdin", "tests": SCRIPT}}
    path.write_text(json.dumps(row))
    problem = load_problems(str(path))[0]
    assert (problem.verifier, problem.reference) == ("program", row["reference"])
    path.write_text(json.dumps({**row, "verifier": "guess"}))
    with pytest.raises(UserError, match=r"row 1.*'guess'.*math.*program"):
        load_problems(str(path))
