"""Loads problems from built-in generators, files and hub data sets."""

from __future__ import annotations

import json
import logging
import random
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rewards.errors import UserError
from rollout.arithmetic import arithmetic_problems
from rollout.dataset_names import is_file
from rollout.dataset_rows import HUB_NAMES, Rows, file_rows, hub_rows
from rollout.games import guessing_games, large_products
from rollout.messages import messages_in
from rollout.number_programs import number_programs
from rollout.puzzles import PUZZLE_MAKERS, puzzle_problems, reasoning_gym_problems
from rollout.records import SOLUTION, Problem
from rollout.row_problem import Columns, read_row
from rollout.searches import searches
from rollout.small_programs import small_programs
from rollout.theorems import theorems

BUILT_IN: dict[str, Callable[[], list[Problem]]] = {
    "arithmetic": partial(arithmetic_problems, 20_000, seed=0),
    "small-programs": partial(small_programs, 10_000, seed=0),
    "searches": partial(searches, 5_000, seed=0),
    "number-programs": partial(number_programs, 10_000, seed=0),
    "large-products": partial(large_products, 20_000, seed=0),
    "guess-number": partial(guessing_games, 5_000),
    "theorems": partial(theorems, 5_000, seed=0),
    "episodes": lambda: [Problem(id=str(n), prompt="", reference="", metadata={"seed": n}) for n in range(2_000)],
    **{name: partial(puzzle_problems, make, 5_000, seed=0) for name, make in PUZZLE_MAKERS.items()},
}
REASONING_GYM = "reasoning-gym:"  # prefix of a task's name
_WORD = re.compile(r"(?!(?:yes|no|true|false)$)[^\W\d_]{3,}", re.IGNORECASE)
_MANY_ALIKE = 20  # problems; fewer may have the same word as their answer by chance
log = logging.getLogger(__name__)


def is_on_hub(dataset: str) -> bool:
    """Whether the name is that of a hub data set, which may have configurations and splits, and not of a built-in task or a file."""
    return not is_file(dataset) and dataset not in BUILT_IN and not dataset.startswith(REASONING_GYM)


def load_problems(
    dataset: str,
    *,
    config: str | None = None,
    split: str = "train",
    prompt_column: str | None = None,
    answer_column: str | None = None,
    system_column: str | None = None,
    needs_reference: bool = True,
    has_environment: bool = False,
    keeps_solutions: bool = False,
    report: Callable[[str], None] = log.warning,
) -> list[Problem]:
    """The problems of a built-in task, a file, or a hub data set; of rows with equal prompts only the first. With an environment rows may
    differ in other columns, and need no prompt.

    config, split: the configuration and split of a hub data set whose name does not have them. needs_reference: without it rows need no
    answer, and the reference is empty where they have none. keeps_solutions: rows with equal prompts stay where their worked solutions
    differ. report: called, with an example, about rows that are interpreted or left out.
    """
    if dataset in BUILT_IN:
        return BUILT_IN[dataset]()
    if dataset.startswith(REASONING_GYM):
        return reasoning_gym_problems(dataset.removeprefix(REASONING_GYM), 1_000, seed=0)
    rows = _rows(dataset, config, split)
    what = f"dataset is {dataset!r}"
    if not rows:
        raise UserError(f"{what}: it has no rows; give one with at least two problems")
    named = {"prompt_column": prompt_column, "answer_column": answer_column, "system_column": system_column}
    columns = Columns.found(rows, dataset, **named, needs_reference=needs_reference, needs_prompt=not has_environment)
    found = [read_row(row, n, columns, f"{what}: row {n}") for n, row in enumerate(rows, 1)]
    if columns.prompt is not None:
        _report_objects([row[columns.prompt] for row in rows], f"{what}: {columns.prompt!r}", report)
    first: dict[str, Problem] = {}
    problems: dict[str, Problem] = {}
    for problem in found:
        prompt = json.dumps(dict(problem.metadata) if has_environment else problem.prompt, default=str)
        first.setdefault(prompt, problem)
        worked = json.dumps(problem.metadata.get(SOLUTION), default=str) if keeps_solutions else ""
        problems.setdefault(prompt + worked, problem)
    if not has_environment:
        _report_contradictions(found, first, what, report)
    if len({p.id for p in problems.values()}) < len(problems):
        raise UserError(f"{what}: values of its column 'id' are not unique; make them so or drop the column")
    return list(problems.values())


def _rows(dataset: str, config: str | None, split: str) -> Rows:
    if is_file(dataset):
        return file_rows(Path(dataset))
    return hub_rows(dataset, config, split, built_in=f"{', '.join((*BUILT_IN, *HUB_NAMES))}, {REASONING_GYM}<task>")


def _report_objects(prompts: Sequence[Any], what: str, report: Callable[[str], None]) -> None:
    """Reports prompts whose text is an object in JSON or Python notation."""
    written = [p.strip() for p in prompts if isinstance(p, str) and p.strip()[:1] in ("{", "[")]
    read = [text for text in written if messages_in(text) is not None]
    left = [text for text in written if messages_in(text) is None and text[-1:] in ("}", "]")]
    for texts, how in (
        (read, "are read as the chat messages that they contain"),
        (left, "go to the model as they are"),
    ):
        if texts:
            report(
                f"{what}: {len(texts)} of {len(prompts)} prompts are the text of an object and {how}, such as {texts[0][:120]!r}"
            )


def _report_contradictions(
    found: Sequence[Problem], first: Mapping[str, Problem], what: str, report: Callable[[str], None]
) -> None:
    """Reports rows that are left out because an earlier row has their prompt, but whose answer differs from that row's."""
    pairs = [(first[json.dumps(problem.prompt)], problem) for problem in found]
    other = [(kept, problem) for kept, problem in pairs if kept.reference != problem.reference]
    if other:
        kept, problem = other[0]
        report(
            f"{what}: {len(other)} rows repeat an earlier prompt with another answer and are left out, such as "
            f"{problem.messages[-1]['content'][:120]!r} with {str(problem.reference)[:60]!r}, which has {str(kept.reference)[:60]!r} before"
        )


def repeated_word(problems: Sequence[Problem]) -> str | None:
    """A sentence about the word that is the reference of many problems, as a heading or a placeholder that was taken for the answer is;
    None if there is no such word. yes, no, true and false do not count."""
    words = Counter(str(p.reference).lower() for p in problems if _WORD.fullmatch(str(p.reference)))
    word, count = max(words.items(), key=lambda item: item[1], default=("", 0))
    return f"{count} of {len(problems)} references are the word {word!r}" if count >= _MANY_ALIKE else None


def split_held_out(problems: Sequence[Problem], count: int) -> tuple[list[Problem], list[Problem]]:
    """(training, held-out) problems. The `count` held-out ones do not depend on the run's seed, so that runs are comparable."""
    if len(problems) <= count:
        raise UserError(
            f"eval_size is {count}: the dataset has {len(problems)} problems, which leaves none to train on; lower eval_size, or name an eval_dataset"
        )
    order = list(range(len(problems)))
    random.Random("held out").shuffle(order)
    held_out = set(order[:count])
    return [p for i, p in enumerate(problems) if i not in held_out], [problems[i] for i in order[:count]]


def without_overlap(problems: Sequence[Problem], held_out: Sequence[Problem]) -> list[Problem]:
    """The problems whose prompt, apart from white space and case, is not among the held-out ones."""
    seen = {_normal(p) for p in held_out}
    return [p for p in problems if _normal(p) not in seen]


def _normal(problem: Problem) -> str:
    return json.dumps([" ".join(message["content"].split()).lower() for message in problem.messages])
