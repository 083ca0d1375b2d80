"""Published test sets: rows in their published shape, with invented contents, become the problems that they ask for."""

from __future__ import annotations

import base64
import gzip
import json
import pickle
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import pytest

from rewards.errors import UserError
from rewards.score import Outcome, check_references, verify
from rewards.verifiers import VerifierOptions, Verifiers
from rollout.problems import load_problems
from rollout.published.load import NotThere, load_set
from rollout.published.rows import gpqa, live_code_bench, private_tests
from rollout.published.scores import SCORES
from rollout.published.sets import GROUPS, SETS, named_sets

EVALPLUS = """import numpy as np

def is_floats(x) -> bool:
    if isinstance(x, float):
        return True
    if isinstance(x, (list, tuple)):
        return all(isinstance(i, float) for i in x)
    if isinstance(x, np.ndarray):
        return x.dtype == np.float64 or x.dtype == np.float32
    return False

def assertion(out, exp, atol):
    exact_match = out == exp
    if atol == 0 and is_floats(exp):
        atol = 1e-6
    if not exact_match and atol != 0:
        assert np.allclose(out, exp, rtol=1e-07, atol=atol)
    else:
        assert exact_match
"""
HALVES = """
def check(candidate):
    inputs = [[3], [0], [7.0]]
    results = [1.5, 0.0, 3.5]
    for i, (inp, exp) in enumerate(zip(inputs, results)):
        assertion(candidate(*inp), exp, 0)
"""
TRIPLES = """
inputs = [[1], [4]]
results = [3, 12]
for i, (inp, exp) in enumerate(zip(inputs, results)):
    assertion(triple(*inp), exp, 0)
"""
HEAD = 'def half(x):\n    """Half of x."""\n'
OF_HUMAN_EVAL = {
    "task_id": "HumanEval/0",
    "prompt": HEAD,
    "canonical_solution": "    return x / 2\n",
    "entry_point": "half",
}
OF_MBPP = {
    "task_id": 11,
    "code": "def triple(n):\n    return 3 * n",
    "test_list": ["assert triple(1) == 3", "assert triple(2) == 6"],
}
OF_LCB = {
    "question_title": "Sum",
    "question_content": "Add the two numbers.",
    "platform": "atcoder",
    "question_id": "a",
    "contest_id": "c",
    "contest_date": "2025-01-01T00:00:00",
    "starter_code": "",
    "difficulty": "easy",
    "metadata": "{}",
}
OF_GPQA = {
    "Record ID": "rec0",
    "Question": "Which of these is a prime?\n",
    "Correct Answer": "97",
    "Incorrect Answer 1": "91",
    "Incorrect Answer 2": "87\n",
    "Incorrect Answer 3": "51",
}
NO_ARGUMENTS = {"num_words": None, "relation": None, "keywords": None, "end_phrase": None}


def pickled(tests: list[dict[str, str]]) -> str:
    return base64.b64encode(zlib.compress(pickle.dumps(json.dumps(tests)))).decode()


def scripts(*pairs: tuple[str, str]) -> list[dict[str, str]]:
    return [{"input": given, "output": printed, "testtype": "stdin"} for given, printed in pairs]


def calls(*pairs: tuple[str, str]) -> list[dict[str, str]]:
    return [{"input": given, "output": returned, "testtype": "functional"} for given, returned in pairs]


def fenced(program: str) -> str:
    return f"Here it is.\n```python\n{program}\n```"


class Case(NamedTuple):
    """A row, what its prompt must contain, its reference (None: see the grades), a right completion and a wrong one."""

    row: dict[str, Any]
    asked: str
    reference: Any
    right: str
    wrong: str


CASES: list[tuple[str, Case]] = [
    ("gsm8k", Case({"question": "Ann has 3 bags of 4 pears.", "answer": "3*4=<<3*4=12>>12\n#### 12"}, "pears", "12", "\\boxed{12}", "\\boxed{7}")),
    ("gsm8k", Case({"question": "A car costs 1000 twice.", "answer": "So\n#### 2,000"}, "car", "2,000", "\\boxed{2000}", "2000")),
    ("hendrycks-math", Case({"problem": "Halve 1.", "level": "Level 1", "type": "Algebra", "solution": "It is $\\boxed{\\frac12}$."}, "Halve", "\\frac12", "\\boxed{0.5}", "\\boxed{2}")),
    ("math-500", Case({"problem": "Solve $x=3$.", "solution": "$\\boxed{3}$", "answer": "3", "subject": "Algebra", "level": 1, "unique_id": "a"}, "Solve", "3", "\\boxed{3}", "\\boxed{4}")),
    ("aime24", Case({"id": 60, "problem": "Find N.", "solution": "x", "answer": "025", "url": "u", "year": "2024"}, "Find N", "025", "\\boxed{25}", "\\boxed{250}")),
    ("aime25", Case({"problem_idx": 1, "problem": "Find M.", "answer": 70, "problem_type": ["Algebra"]}, "Find M", "70", "\\boxed{070}", "\\boxed{71}")),
    ("aime26", Case({"problem_idx": 2, "problem": "Find K.", "answer": 277}, "Find K", "277", "\\boxed{277}", "no idea")),
    ("amc23", Case({"id": 0, "question": "How many?", "answer": 27.0, "url": "u"}, "How many", "27.0", "\\boxed{27}", "\\boxed{28}")),
    ("olympiadbench", Case({"id": 1, "question": "All x?", "solution": ["..."], "final_answer": ["$1$", "$\\sqrt{2}$"], "is_multiple_answer": True}, "All x", "$1$, $\\sqrt{2}$", "\\boxed{\\sqrt2, 1}", "\\boxed{1}")),
    ("olympiadbench", Case({"id": 2, "question": "One x?", "solution": ["..."], "final_answer": ["$\\frac{3}{4}$"], "is_multiple_answer": False}, "One x", "$\\frac{3}{4}$", "\\boxed{0.75}", "\\boxed{0.7}")),
    ("minerva", Case({"question": "What mass?", "answer": "2e33"}, "mass", "2e33", "\\boxed{2 \\times 10^{33}}", "\\boxed{2 \\times 10^{32}}")),
    ("humaneval", Case({**OF_HUMAN_EVAL, "test": "def check(candidate):\n    assert candidate(3) == 1.5\n"}, HEAD, None, fenced(HEAD + "    return x / 2"), fenced(HEAD + "    return x // 2"))),
    ("humaneval+", Case({**OF_HUMAN_EVAL, "test": EVALPLUS + HALVES}, HEAD, None, "    return x * 0.5 + 1e-9\n", "    return x // 2\n")),
    ("mbpp", Case({**OF_MBPP, "text": "Write a function that triples.", "test_setup_code": "", "challenge_test_list": []}, "triples.\n\nYour code should pass these tests:\n\nassert triple(1) == 3\nassert triple(2) == 6", None, fenced("def triple(n): return n + n + n"), fenced("def triple(n): return n + 2"))),
    ("mbpp+", Case({**OF_MBPP, "prompt": "Write a function that triples.", "source_file": "f", "test_imports": ["import math"], "test": EVALPLUS + TRIPLES}, "triples.\n\nYour code should", None, fenced("def triple(n): return 3 * n"), fenced("def triple(n): return n + 2"))),
    ("livecodebench", Case({**OF_LCB, "public_test_cases": json.dumps(scripts(("1 2\n", "3\n"))), "private_test_cases": pickled(scripts(("5 6\n", "11\n")))}, "Add the two numbers.\n\nRead the input", None, fenced("print(sum(map(int, input().split())))"), fenced("input()\nprint(3)"))),
    ("livecodebench", Case({**OF_LCB, "starter_code": "class Solution:\n    def add(self, a: int, b: int) -> int:\n        ", "metadata": '{"func_name": "add"}', "public_test_cases": json.dumps(calls(("1\n2", "3"))), "private_test_cases": json.dumps(calls(("5\n6", "11")))}, "def add(self, a: int", None, fenced("class Solution:\n    def add(self, a, b): return a + b"), fenced("class Solution:\n    def add(self, a, b): return 3"))),
    ("ifeval", Case({"key": 1, "prompt": "Say hello. No commas.", "instruction_id_list": ["punctuation:no_comma", "length_constraints:number_words"], "kwargs": [NO_ARGUMENTS, {**NO_ARGUMENTS, "num_words": 3, "relation": "at least"}]}, "Say hello", {"instruction_id_list": ["punctuation:no_comma", "length_constraints:number_words"], "kwargs": [{}, {"num_words": 3, "relation": "at least"}]}, "hello my friend", "hello, my friend")),
]  # fmt: skip


@pytest.fixture(scope="module")
def verifiers() -> Iterator[Verifiers]:
    found = Verifiers(VerifierOptions(num_workers=1, packages=("numpy",)))
    yield found
    found.close()


def written(folder: Path, name: str, *rows: dict[str, Any]) -> Path:
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.mark.parametrize(("name", "case"), CASES, ids=[f"{name}-{i}" for i, (name, _) in enumerate(CASES)])
def test_a_row_in_its_published_shape_is_asked_and_graded(
    name: str, case: Case, tmp_path: Path, verifiers: Verifiers
) -> None:
    (problem,) = load_set(name, written(tmp_path, name, case.row), None).problems
    assert problem.id == f"{name}/0" and case.asked in problem.question
    assert case.reference in (None, problem.reference)
    verifier = verifiers[problem.verifier]
    (usable,) = check_references(verifier, [problem.reference], [problem.question], [{}])
    assert usable.outcome is Outcome.CORRECT, usable.detail
    right, wrong = verify(verifier, [case.right, case.wrong], [problem.reference] * 2, [problem.question] * 2)
    assert right.outcome is Outcome.CORRECT, right.detail
    assert wrong.value == 0, wrong.detail


def test_every_set_has_a_case_and_belongs_to_a_group() -> None:
    """The whole of MATH stands alone: MATH-500 is a part of it."""
    assert {name for name, _ in CASES} | {"gpqa-diamond"} == set(SETS)
    assert set(GROUPS["all"]) == set(SETS) - {"hendrycks-math"}
    assert set(SCORES) <= set(SETS)


@pytest.mark.parametrize("name", SETS)
def test_the_page_says_where_a_set_is_and_how_often_it_is_sampled(name: str) -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "evaluate.md").read_text("utf-8")
    (line,) = [line for line in page.splitlines() if line.startswith(f"| `{name}` |")]
    cells, published = [cell.strip() for cell in line.split("|")], SETS[name]
    assert cells[2].startswith(published.source) and cells[4:6] == [str(published.samples), published.licence]


def test_the_choices_of_a_question_stand_in_an_order_that_tells_nothing_and_stays(verifiers: Verifiers) -> None:
    """Over 400 questions each letter is right about 100 times; 5 standard deviations of a binomial are 43."""
    asked = gpqa(OF_GPQA)
    assert asked == gpqa(dict(reversed(OF_GPQA.items())))
    letter = str(asked.reference)
    other = "ABCD".replace(letter, "")[0]
    assert f"({letter}) 97" in asked.question and asked.question.startswith("Which of these is a prime?\n\n(A) ")
    texts = [
        f"\\boxed{{{letter}}}",
        f"\\boxed{{({letter})}}",
        f"\\boxed{{{other}}}",
        "\\boxed{}",
    ]
    found = verify(verifiers["math"], texts, [letter] * 4, [asked.question] * 4)
    assert [score.value for score in found] == [1, 1, 0, 0]
    letters = Counter(str(gpqa({**OF_GPQA, "Question": f"Which is prime, {n}?"}).reference) for n in range(400))
    assert set(letters) == set("ABCD") and all(abs(count - 100) < 43 for count in letters.values())


class Opens:
    def __reduce__(self) -> tuple[Any, ...]:
        return open, ("never-written", "w")


def test_private_tests_are_read_without_unpickling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tests = scripts(("é" * 300, "x"), ("1", "2"))
    for protocol in (2, 3, 4, 5):
        text = base64.b64encode(zlib.compress(pickle.dumps(json.dumps(tests), protocol))).decode()
        assert private_tests(text) == tests
    for value in (Opens(), ["a", "b"], {"a": "b"}):
        with pytest.raises(UserError, match="pickle of something else than one text"):
            private_tests(base64.b64encode(zlib.compress(pickle.dumps(value))).decode())
    assert not (tmp_path / "never-written").exists()


def test_all_tests_of_a_program_count() -> None:
    row = {
        **OF_LCB,
        "public_test_cases": json.dumps(scripts(("1", "1"))),
        "private_test_cases": pickled(scripts(("2", "2"))),
    }
    task = live_code_bench(row).reference
    assert task == {"type": "stdin", "tests": [{"stdin": n, "stdout": n, "testtype": "stdin"} for n in ("1", "2")]}


def test_names_are_those_of_sets_and_groups_each_once() -> None:
    assert named_sets(["aime24", "code", "humaneval"]) == ["aime24", *GROUPS["code"]]
    for names in ((), ("gsm8k", "gsm9k")):
        with pytest.raises(
            UserError, match=r"suite is '.*': it must name sets, gsm8k, .*, or a group of them, math, code, all"
        ):
            named_sets(names)


def test_a_local_file_is_read_in_any_format_and_cut_to_the_size(tmp_path: Path) -> None:
    rows = [{"question": f"{n}?", "answer": f"#### {n}"} for n in range(3)]
    (tmp_path / "gsm8k.json.gz").write_bytes(gzip.compress(json.dumps(rows).encode()))
    loaded = load_set("gsm8k", tmp_path, 2)
    assert [(p.id, p.reference) for p in loaded.problems] == [("gsm8k/0", "0"), ("gsm8k/1", "1")]
    assert loaded.source == str(tmp_path / "gsm8k.json.gz")


def test_a_row_of_another_shape_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        UserError,
        match=r"suite: row 2 of '.*' has no 'answer'; it has \['question'\], and gsm8k is published with question, answer",
    ):
        load_set("gsm8k", written(tmp_path, "gsm8k", {"question": "a", "answer": "1"}, {"question": "b"}), None)


def test_the_hub_is_asked_by_published_names(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load(*args: Any, **options: Any) -> list[dict[str, Any]]:
        asked.append((args, options))
        return [{"question": "a", "answer": "1"}] if args[0] != "json" else []

    monkeypatch.setattr(datasets, "load_dataset", load)
    loaded = load_set("gsm8k", None, None)
    assert loaded.source == "openai/gsm8k:main/test" and len(loaded.problems) == 1
    load_set("livecodebench", None, None)
    hub = "hf://datasets/livecodebench/code_generation_lite/"
    assert asked[0] == (("openai/gsm8k", "main"), {"split": "test"})
    assert asked[1][0] == ("json",) and asked[1][1]["data_files"][:2] == [hub + "test.jsonl", hub + "test2.jsonl"]


def test_a_set_that_the_hub_does_not_give_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(*args: Any, **options: Any) -> Any:
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(NotThere, match=r"loading Idavidrein/gpqa:gpqa_diamond/train from the hub failed .*no network"):
        load_set("gpqa-diamond", tmp_path, None)


def test_published_files_are_read_as_they_are(
    shared_file: Callable[[str], Path], tmp_path: Path, verifiers: Verifiers
) -> None:
    """GSM8K and HumanEval; the canonical solutions are right, and what the suite asks is what --dataset asks."""
    gsm8k, human_eval = shared_file("data/gsm8k_test.jsonl"), shared_file("data/HumanEval.jsonl.gz")
    (tmp_path / "gsm8k.jsonl").symlink_to(gsm8k)
    (tmp_path / "humaneval.jsonl.gz").symlink_to(human_eval)
    for name, path, count in (("gsm8k", gsm8k, 1319), ("humaneval", human_eval, 164)):
        ours, theirs = load_set(name, tmp_path, None).problems, load_problems(str(path))
        assert [(p.question, p.reference) for p in ours] == [(p.question, p.reference) for p in theirs]
        assert len(ours) == count
    programs = load_set("humaneval", tmp_path, 10).problems
    references: list[Any] = [problem.reference for problem in programs]
    found = verifiers["program"].verify_batch([r["solution"] for r in references], references)
    assert {score.outcome for score in found} == {Outcome.CORRECT}
