"""A row's columns: all are kept for a reward, a conversation is a question and its worked solution, a system message is the row's own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rewards.errors import UserError
from rollout.problems import load_problems
from rollout.records import SOLUTION, Message, Problem

SYSTEM, USER = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1?"}
ANSWER = {"role": "assistant", "content": "One and one.\n#### 2"}


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., list[Problem]]:
    """The problems of rows."""

    def load_rows(*rows: dict[str, Any], **options: Any) -> list[Problem]:
        (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return load_problems(str(tmp_path / "data.jsonl"), **options)

    return load_rows


Load = Callable[..., list[Problem]]


def test_a_problem_keeps_every_column_of_its_row(load: Load) -> None:
    """And its worked solution: a column of that name, else the answer's cell before the answer is read from it."""
    row = {"question": "1+1?", "answer": "so #### 2", "keywords": ["two"], "schema": {"type": "object"}, "level": 3}
    (problem,) = load(row)
    assert problem.metadata == {**row, SOLUTION: "so #### 2"} and problem.reference == "2"
    assert load({**row, "worked": "1+1 is 2"})[0].metadata == {**row, SOLUTION: "1+1 is 2"}


@pytest.mark.parametrize(
    ("messages", "prompt"),
    [
        ([USER, ANSWER], (USER,)),
        ([SYSTEM, USER, ANSWER], (SYSTEM, USER)),
        (
            [USER, {"role": "assistant", "content": "?"}, USER, ANSWER],
            (USER, {"role": "assistant", "content": "?"}, USER),
        ),
    ],
)
def test_a_conversation_is_a_question_and_the_assistants_last_word(
    load: Load, messages: list[Message], prompt: tuple[Message, ...]
) -> None:
    """The last word is the worked solution, and has the answer where no column does."""
    (problem,) = load({"messages": messages})
    assert (problem.prompt, problem.reference) == (prompt, "2")
    assert problem.metadata[SOLUTION] == ANSWER["content"] and problem.metadata["messages"] == messages
    (graded,) = load({"messages": messages, "answer": "3"})
    assert (graded.reference, graded.metadata[SOLUTION]) == ("3", ANSWER["content"])
    (named,) = load({"messages": messages, "key": "4"}, answer_column="key")
    assert (named.prompt, named.reference) == (prompt, "4")


def test_a_conversation_that_ends_with_the_user_is_the_whole_prompt(load: Load) -> None:
    (problem,) = load({"messages": [USER, ANSWER, USER], "answer": "2"})
    assert problem.prompt == (USER, ANSWER, USER) and problem.metadata[SOLUTION] == "2"


def test_a_prompt_that_ends_with_the_assistant_is_still_continued(load: Load) -> None:
    """Only a column named messages is a whole conversation."""
    (problem,) = load({"prompt": [USER, ANSWER], "answer": "2"})
    assert problem.prompt == (USER, ANSWER)


def test_a_conversation_without_a_question_is_refused(load: Load) -> None:
    with pytest.raises(UserError, match=r"row 1: its messages have no question before the assistant's answer"):
        load({"messages": [ANSWER]})


@pytest.mark.parametrize("column", ["system", "system_prompt", "role_text"])
def test_a_row_has_a_system_message_of_its_own(load: Load, column: str) -> None:
    """Where the cell is empty, the run's own remains; a conversation that begins with a system message keeps it."""
    own, user = {"role": "system", "content": "Answer in French."}, {**USER, "content": "2+2?"}
    rows = [{"prompt": "1+1?", "answer": "2", column: own["content"]}, {"prompt": "2+2?", "answer": "4", column: None}]
    rows.append({"prompt": [SYSTEM, {**USER, "content": "3+3?"}], "answer": "6", column: own["content"]})
    named = {} if column.startswith("system") else {"system_column": column}
    prompts = [problem.prompt for problem in load(*rows, **named)]
    assert prompts == [(own, USER), (user,), (SYSTEM, {**USER, "content": "3+3?"})]


def test_a_system_message_that_is_not_there_or_is_no_text_is_refused(load: Load) -> None:
    row = {"prompt": "1+1?", "answer": "2"}
    with pytest.raises(
        UserError, match=r"system_column: dataset .* has no column 'persona'; it has \['answer', 'prompt'\]"
    ):
        load(row, system_column="persona")
    with pytest.raises(UserError, match=r"row 1: its system message is \['x'\]: it must be text; .*--system-column"):
        load({**row, "system": ["x"]})


def test_rows_need_an_answer_only_where_a_reference_is_needed(load: Load) -> None:
    """Without that need they may lack it; a column that is named must still be there."""
    rows = [{"prompt": "Name a fruit."}, {"prompt": "1+1?", "answer": "so #### 2"}, {"prompt": "2+2?", "answer": None}]
    problems = load(*rows, needs_reference=False)
    assert [p.reference for p in problems] == ["", "2", ""]
    assert problems[1].metadata["answer"] == "so #### 2" and SOLUTION not in problems[0].metadata
    assert [p.reference for p in load(rows[0], needs_reference=False)] == [""]
    assert [
        p.reference for p in load(rows[0], {"prompt": "x", "key": 5}, needs_reference=False, answer_column="key")
    ] == ["", "5"]
    with pytest.raises(UserError, match=r"answer_column: dataset .* has no column 'kee'"):
        load(*rows, needs_reference=False, answer_column="kee")
    with pytest.raises(UserError, match=r"answer_column: dataset .* has no column 'answer' or"):
        load(*rows)


def test_an_empty_cell_is_no_verifier_and_no_id(load: Load) -> None:
    """A table has a cell in every column, also for rows that lack the value."""
    rows = [{"prompt": f"{n}?", "answer": "1", "id": "", "task_id": None, "verifier": None} for n in range(2)]
    assert [(p.id, p.verifier) for p in load(*rows)] == [("0", "math"), ("1", "math")]
