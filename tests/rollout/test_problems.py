"""Problems are dealt in a resumable order, and an unusable data set gives an error that says why."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import datasets
import pytest

from rewards.equation_steps import score_steps
from rewards.errors import UserError
from rewards.extract import reference_answer
from rewards.verifiers import VerifierOptions, Verifiers
from rl.run.load_data import gradable
from rl.view.progress import Progress
from rollout.arithmetic import arithmetic_problems
from rollout.problem_memory import ProblemMemory
from rollout.problem_stream import ProblemStream
from rollout.problems import load_problems, split_held_out, without_overlap
from rollout.records import Problem


def numbered(count: int) -> list[Problem]:
    return [Problem(id=str(i), prompt=f"problem {i}", reference=str(i)) for i in range(count)]


def ids(problems: list[Problem]) -> list[str]:
    return [problem.id for problem in problems]


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., str]:
    """Writes lines (text as it is, anything else as JSON) to a file. -> its name."""

    def write(*lines: Any, name: str = "data.jsonl") -> str:
        texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
        (tmp_path / name).write_text("\n".join(texts) + "\n", encoding="utf-8")
        return str(tmp_path / name)

    return write


def test_every_epoch_deals_each_problem_once_in_an_order_of_its_own() -> None:
    stream = ProblemStream.of(numbered(7), seed=3)
    dealt = ids(stream.take(5)) + ids(stream.take(5)) + ids(stream.take(11))
    epochs = [dealt[i : i + 7] for i in (0, 7, 14)]
    assert all(sorted(epoch) == ids(numbered(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_the_cursor_alone_takes_the_stream_up_again() -> None:
    """Checkpoints stored nothing else before there were mixes: a resumed run must get the same problems as one that was not interrupted."""
    stream = ProblemStream.of(numbered(7), seed=3)
    dealt = [ids(stream.take(3)) for _ in range(9)]
    for done in range(9):
        again = ProblemStream.of(numbered(7), seed=3)
        again.load_state(3 * done, ProblemMemory())
        assert [ids(again.take(3)) for _ in range(done, 9)] == dealt[done:]
    back = ProblemStream.of(numbered(7), seed=3)
    back.take(20)
    back.load_state(3, ProblemMemory())  # as when a checkpoint is loaded into a used stream
    assert ids(back.take(3)) == dealt[1]


def test_the_seed_decides_the_order() -> None:
    orders = {tuple(ids(ProblemStream.of(numbered(9), seed=seed).take(9))) for seed in range(6)}
    assert len(orders) == 6


def test_held_out_problems_are_not_trained_on() -> None:
    """They are chosen from the whole file, as files are often sorted."""
    training, held_out = split_held_out(numbered(50), 10)
    assert sorted(ids(training) + ids(held_out)) == sorted(ids(numbered(50)))
    assert len(held_out) == 10
    assert any(int(problem.id) > 25 for problem in held_out)
    assert any(int(problem.id) < 25 for problem in held_out)
    with pytest.raises(UserError, match=r"eval_size is 50.*50 problems.*lower eval_size"):
        split_held_out(numbered(50), 50)


def test_a_training_problem_that_is_evaluated_on_is_left_out() -> None:
    """White space, new lines and case do not count, as copies of a data set differ in them; the order of messages does."""

    def problem(*texts: str) -> Problem:
        return Problem(id="".join(texts), prompt=tuple({"role": "user", "content": t} for t in texts), reference="1")

    held_out = [problem("What is  2+2?\nSay it."), Problem(id="text", prompt="Plain text", reference="1")]
    copies = [problem(" what IS 2+2?\tsay it.\r\n"), problem("plain  text ")]
    others = [problem("What is 2+3? Say it."), problem("What is 2+2?", "Say it.")]
    assert without_overlap([*copies, *others], held_out) == others


def test_gsm8k_rows_become_problems(written: Callable[..., str]) -> None:
    """The reference is the text behind ####, without the reasoning."""
    rows = [
        {"question": "Janet has 3 eggs and buys 1,000 more.", "answer": "3+1000 = <<3+1000=1003>>1003\n#### 1,003"},
        {"question": "Zoë owes 5€.", "answer": "#### -5"},
    ]
    problems = load_problems(written(rows[0], "", rows[1]))
    assert [p.reference for p in problems] == ["1,003", "-5"]
    assert problems[1].prompt == ({"role": "user", "content": "Zoë owes 5€."},)
    assert len({p.id for p in problems}) == 2


def test_columns_of_other_names_are_found_or_named(written: Callable[..., str]) -> None:
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1?"}]
    (problem,) = load_problems(written({"prompt": chat, "solution": r"so \boxed{2}", "id": "a"}))
    assert (problem.id, problem.prompt, problem.reference) == ("a", tuple(chat), "2")
    path = written({"q": "1+1?", "a": 2, "question": "not this"})
    (problem,) = load_problems(path, prompt_column="q", answer_column="a")
    assert (problem.prompt[0]["content"], problem.reference) == ("1+1?", "2")
    path = written([{"question": "1+1?", "answer": "2"}], name="data.json")
    assert load_problems(path)[0].reference == "2"


def test_a_problems_id_is_the_rows_id_or_task_id_or_number(written: Callable[..., str]) -> None:
    """HumanEval and MBPP name their rows by task_id."""
    named = [{"id": "a", "task_id": "b"}, {"task_id": "HumanEval/0"}, {}]
    rows = [{"question": f"{n}+1?", "answer": str(n + 1), **names} for n, names in enumerate(named)]
    assert ids(load_problems(written(*rows))) == ["a", "HumanEval/0", "2"]


def test_of_equal_prompts_the_first_is_kept(written: Callable[..., str]) -> None:
    """A repeated prompt would be dealt twice an epoch, and could be both held out and trained on."""
    rows = [{"question": q, "answer": a} for q, a in (("1+1?", "2"), ("2+2?", "4"), ("1+1?", "3"))]
    assert [p.reference for p in load_problems(written(*rows))] == ["2", "4"]


ROW = {"question": "1+1?", "answer": "2"}
UNUSABLE = {
    "no prompt column": (
        [{"text": "1+1?", "answer": "2"}],
        r"prompt_column: .*'question' or .*\['answer', 'text'\].*--prompt-column",
    ),
    "no answer column": (
        [{"question": "1+1?", "label": "2"}],
        r"answer_column: .*'answer' or .*\['label', 'question'\].*--answer-column",
    ),
    "no rows": ([""], r"dataset is '.*data.jsonl': it has no rows; give one"),
    "broken line": ([ROW, "", '{"question": '], r"dataset is '.*data.jsonl': line 3 is not JSON: .*; fix it"),
    "no object": ([ROW, [1, 2]], r"dataset is '.*data.jsonl': row 2 is list, not an object"),
    "an empty cell": (
        [ROW, {"question": None, "answer": "4"}],
        r"dataset is '.*': row 2 has no 'question': fill it or drop",
    ),
    "an empty question": ([{"question": "", "answer": "4"}], r"row 1 has no 'question': fill it or drop"),
    "deep JSON": (
        ['{"question": "?", "answer": ' + "[" * 100_000 + "]" * 100_000 + "}"],
        r"line 1 is nested too deeply",
    ),
    "an object as a question": (
        [{"question": {"text": "1+1?"}, "answer": "2"}],
        r"row 1: prompt .* is neither text nor a list of messages",
    ),
    "a message without content": (
        [{"prompt": [{"role": "user", "content": None}], "answer": "2"}],
        r"row 1: the content of a message is None",
    ),
    "half of a character": (
        ['{"question": "half \\ud83d", "answer": "2"}'],
        r"row 1: its text has half of a surrogate pair",
    ),
    "half of a character in an answer": (
        ['{"question": "1+1?", "answer": "\\ud83d"}'],
        r"row 1: its text has half of a surrogate pair",
    ),
    "a verifier that is a list": ([{**ROW, "verifier": ["math"]}], r"verifier is \['math'\]: it must be one of"),
    "ids that are not unique": (
        [{**ROW, "id": 1}, {"question": "2+2?", "answer": "4", "id": 1}],
        r"dataset is '.*': values of its column 'id' are not unique; make them so or drop",
    ),
}


@pytest.mark.parametrize("case", UNUSABLE)
def test_the_error_of_an_unusable_file_says_what_to_fix(written: Callable[..., str], case: str) -> None:
    lines, message = UNUSABLE[case]
    with pytest.raises(UserError, match=message):
        load_problems(written(*lines))


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, written: Callable[..., str]) -> None:
    with pytest.raises(UserError, match=r"dataset is '.*absent.jsonl': .*No such file.*; give an existing file"):
        load_problems(str(tmp_path / "absent.jsonl"))
    (tmp_path / "latin.jsonl").write_bytes('{"question": "é", "answer": "2"}'.encode("latin-1"))
    with pytest.raises(UserError, match=r"dataset is '.*latin.jsonl': it is not UTF-8 .*byte 14.*; convert it"):
        load_problems(str(tmp_path / "latin.jsonl"))
    with pytest.raises(UserError, match=r"dataset is '.*one.json': .*one list of objects"):
        load_problems(written(ROW, name="one.json"))
    with pytest.raises(UserError, match=r"prompt_column: dataset '.*' has no column 'q';"):
        load_problems(written(ROW), prompt_column="q")


def test_a_row_without_an_answer_is_a_problem_with_an_empty_reference(written: Callable[..., str]) -> None:
    """MATH has four such rows, which must not make the whole file unusable. The run drops such problems and reports them."""
    problems = load_problems(written(ROW, {"question": "2+2?", "answer": None}))
    assert [p.reference for p in problems][1] == ""


def test_messages_are_read_in_each_way_that_data_sets_write_them(written: Callable[..., str]) -> None:
    """One message, parts of text, a number, JSON text of messages; never Python's repr of an object. Interpretations are reported."""
    user, said = {"role": "user", "content": "1+1?"}, []
    parts = {"role": "user", "content": [{"type": "text", "text": "1+"}, {"type": "text", "text": "1?"}]}
    for prompt in ("1+1?", [user], user, [parts], json.dumps([user])):
        (problem,) = load_problems(written({"prompt": prompt, "answer": ["2"]}), report=said.append)
        assert problem.prompt == (user,) and problem.reference == "2"
    (number,) = load_problems(written({"prompt": 5, "answer": 5}), report=said.append)
    assert number.prompt == ({"role": "user", "content": "5"},)
    assert len(said) == 1 and "1 of 1 prompts are the text of an object and are read as the chat messages" in said[0]
    load_problems(
        written({"prompt": "[1, 2]: sort it in\n[]", "answer": "2"}, {"prompt": "x", "answer": "2"}), report=said.append
    )
    assert "1 of 2 prompts are the text of an object and go to the model as they are, such as '[1, 2]" in said[1]


def test_a_prompt_that_comes_again_with_another_answer_is_reported(written: Callable[..., str]) -> None:
    said: list[str] = []
    rows = [{"question": q, "answer": a} for q, a in (("1+1?", "2"), ("1+1?", "3"), ("1+1?", "2"), ("2+2?", "4"))]
    load_problems(written(*rows), report=said.append)
    (report,) = said
    assert (
        "1 rows repeat an earlier prompt with another answer and are left out, such as '1+1?' with '3', which has '2' before"
        in report
    )
    load_problems(written(*rows[2:]), report=said.append)
    assert len(said) == 1


def test_rows_of_another_verifier_do_not_hide_the_answer_column(written: Callable[..., str]) -> None:
    rows = [{"question": "a", "verifier": "math", "reference": "1"}, ROW]
    assert [p.reference for p in load_problems(written(*rows))] == ["1", "2"]


def test_a_byte_order_mark_is_no_part_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "bom.jsonl").write_text(json.dumps(ROW), encoding="utf-8-sig")
    assert [p.reference for p in load_problems(str(tmp_path / "bom.jsonl"))] == ["2"]


def test_a_configuration_and_a_split_of_a_data_set_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder as on the hub, with two configurations: without a name the library's error lists them, and ours names the option."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    names = [(config, split) for config in ("main", "socratic") for split in ("train", "test")]
    for config, split in names:
        (tmp_path / f"{config}-{split}.jsonl").write_text(
            json.dumps({"question": f"{config} {split}", "answer": "2"}) + "\n"
        )
    listed = "".join(
        f"- config_name: {config}\n  data_files:\n  - split: train\n    path: {config}-train.jsonl\n  - split: test\n    path: {config}-test.jsonl\n"
        for config in ("main", "socratic")
    )
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n{listed}---\n")
    for config, split in names:
        (problem,) = load_problems(str(tmp_path), config=config, split=split)
        assert problem.prompt == ({"role": "user", "content": f"{config} {split}"},)
    with pytest.raises(UserError, match=r"Config name is missing.*--dataset-config and --dataset-split.*--eval-config"):
        load_problems(str(tmp_path))


def test_gsm8k_itself_is_read_completely(shared_file: Callable[[str], Path]) -> None:
    """7,473 different questions, each with an integer as its reference."""
    problems = load_problems(str(shared_file("data/gsm8k_train.jsonl")))
    assert len({p.id for p in problems}) == len(problems) == 7473
    assert all(re.fullmatch(r"-?\d[\d,]*(\.\d+)?", p.reference) for p in problems)


def equations(worked: str) -> Iterator[tuple[int, int]]:
    """Both sides of each line a+b=c or a-b=c."""
    for left, sign, right, result in re.findall(r"^(-?\d+)([+-])(\d+)=(-?\d+)$", worked, re.MULTILINE):
        yield int(left) + (int(right) if sign == "+" else -int(right)), int(result)


def test_arithmetic_problems_differ_and_their_solutions_are_true() -> None:
    """The warm start trains on the solutions, and process supervision scores their lines: each must be a true step."""
    problems = arithmetic_problems(3000, seed=0)
    assert len({p.id for p in problems}) == len({str(p.prompt) for p in problems}) == 3000
    for problem in problems:
        a, b, c = map(int, re.split(r"[+-]", problem.prompt[0]["content"]))
        worked = problem.metadata["worked"]
        assert int(problem.reference) == a + b - c
        assert [left == right for left, right in equations(worked)] == [True, True]
        assert worked.endswith(f"\n\\boxed{{{problem.reference}}}")
        assert [step.value for step in score_steps(worked)] == [1.0, 1.0]
    assert arithmetic_problems(100, seed=0) == problems[:100]
    assert arithmetic_problems(100, seed=1) != problems[:100]


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        (7, "7"),
        (0.25, "0.25"),
        (["$\\frac12$"], "$\\frac12$"),  # a list of one
        ("#### Solution\nHalf of 10 is\n\\boxed{5}", "5"),  # a heading of Markdown
        ("It is \\boxed{4}, and so\n#### 5\n", "5"),  # GSM8K's mark, which ends the text
        (None, ""),
    ],
)
def test_an_answer_is_text_a_number_or_a_list_of_one(
    written: Callable[..., str], answer: object, reference: str
) -> None:
    for row in ({"question": "q", "answer": answer}, {"prompt": "q", "verifier": "math", "reference": answer}):
        assert reference_answer(str(load_problems(written(row))[0].reference)) == reference


def test_a_value_that_is_no_answer_is_left_to_the_verifier_to_refuse(written: Callable[..., str]) -> None:
    answers = ["NaN", '{"text": "5"}', '["1", "2"]', "9" * 5_000, '"N/A"', '"#### Solution\\nIt is plain."']
    problems = load_problems(
        written(*(f'{{"question": "q{i}", "answer": {answer}}}' for i, answer in enumerate(answers)))
    )
    told: list[str] = []
    progress = SimpleNamespace(message=told.append)
    good = [replace(p, id=f"good {p.id}") for p in numbered(30)]
    verifiers = Verifiers(VerifierOptions(num_workers=1))
    try:
        assert gradable([*problems, *good], "training", verifiers, cast(Progress, progress)) == good
        assert f"{len(answers)} of {len(answers) + 30} training problems are left out" in told[0]
        same = [Problem(id=f"w{i}", prompt=str(i), reference="Method") for i in range(25)]
        assert gradable([*good, *same], "training", verifiers, cast(Progress, progress)) == [*good, *same]
        assert "25 of 55 references are the word 'method'" in told[1]
        gradable([*good, *(replace(p, reference="yes") for p in same)], "training", verifiers, cast(Progress, progress))
        assert len(told) == 2  # yes and no answer many questions
    finally:
        verifiers.close()


def test_json_that_python_cannot_parse_is_named_by_its_line(written: Callable[..., str]) -> None:
    with pytest.raises(UserError, match=r"line 2 is nested too deeply"):
        load_problems(written({"question": "q", "answer": 1}, "[" * 100_000 + "]" * 100_000))
    with pytest.raises(UserError, match=r"verifier is \['math'\]: it must be one of"):
        load_problems(written({"prompt": "q", "verifier": ["math"], "reference": "1"}))
