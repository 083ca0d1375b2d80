"""Loads problems from built-in generators, files and hub data sets."""

from __future__ import annotations

import gzip
import json
import logging
import random
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rewards.errors import UserError, first_line
from rewards.extract import reference_answer
from rewards.score import Reference
from rewards.verifiers import VERIFIERS
from rollout.arithmetic import arithmetic_problems
from rollout.messages import messages_in, read_messages, require_encodable
from rollout.program_tasks import asks_for_program, program_task
from rollout.puzzles import PUZZLE_MAKERS, puzzle_problems, reasoning_gym_problems
from rollout.records import SOLUTION, Problem
from rollout.small_programs import small_programs

BUILT_IN: dict[str, Callable[[], list[Problem]]] = {
    "arithmetic": partial(arithmetic_problems, 20_000, seed=0),
    "small-programs": partial(small_programs, 10_000, seed=0),
    **{name: partial(puzzle_problems, make, 5_000, seed=0) for name, make in PUZZLE_MAKERS.items()},
}
REASONING_GYM = "reasoning-gym:"  # prefix of a task's name
HUB_NAMES = {"gsm8k": ("openai/gsm8k", "main"), "math": ("DigitalLearningGmbH/MATH-lighteval", "default")}
FILES = (".jsonl", ".json")  # each also with .gz
PROMPT_COLUMNS = ("question", "problem", "prompt")
_MAX_DIGITS = 4_300  # of an integer, sys.get_int_max_str_digits()
_WORD = re.compile(r"(?!(?:yes|no|true|false)$)[^\W\d_]{3,}", re.IGNORECASE)
_MANY_ALIKE = 20  # problems; fewer may have the same word as their answer by chance
ANSWER_COLUMNS = ("answer", "solution", "reference")
log = logging.getLogger(__name__)


def is_on_hub(dataset: str) -> bool:
    """Whether the name is that of a hub data set, which may have configurations and splits, and not of a built-in task or a file."""
    is_file = dataset.removesuffix(".gz").endswith(FILES)
    return not is_file and dataset not in BUILT_IN and not dataset.startswith(REASONING_GYM)


def load_problems(
    dataset: str,
    *,
    config: str | None = None,
    split: str = "train",
    prompt_column: str | None = None,
    answer_column: str | None = None,
    report: Callable[[str], None] = log.warning,
) -> list[Problem]:
    """The problems of a built-in task, a .jsonl or .json file, or a hub data set; of rows with equal prompts only the first.

    config, split: the configuration and split of a hub data set. report: called, with an example, about rows that are interpreted or
    left out.
    """
    if dataset in BUILT_IN:
        return BUILT_IN[dataset]()
    if dataset.startswith(REASONING_GYM):
        return reasoning_gym_problems(dataset.removeprefix(REASONING_GYM), 1_000, seed=0)
    rows = _hub_rows(dataset, config, split) if is_on_hub(dataset) else _file_rows(Path(dataset))
    what = f"dataset is {dataset!r}"
    if not rows:
        raise UserError(f"{what}: it has no rows; give one with at least two problems")
    prompt_column = _column("prompt_column", prompt_column, PROMPT_COLUMNS, rows[0], dataset)
    math = next(filter(_is_math, rows), None)
    if math is not None:
        answer_column = _column("answer_column", answer_column, ANSWER_COLUMNS, math, dataset)
    found = [_problem(row, n, prompt_column, answer_column, f"{what}: row {n}") for n, row in enumerate(rows, 1)]
    _report_objects([row[prompt_column] for row in rows], f"{what}: {prompt_column!r}", report)
    problems: dict[str, Problem] = {}
    for problem in found:
        problems.setdefault(json.dumps(problem.prompt), problem)
    _report_contradictions(found, problems, what, report)
    if len({p.id for p in problems.values()}) < len(problems):
        raise UserError(f"{what}: values of its column 'id' are not unique; make them so or drop the column")
    return list(problems.values())


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


def _problem(row: Mapping[str, Any], number: int, prompt_column: str, answer_column: str | None, what: str) -> Problem:
    """The problem of a row. number: the row's, from 1. what: the row's name in errors."""
    prompt = row.get(prompt_column)
    if prompt is None or prompt == "":
        raise UserError(f"{what} has no {prompt_column!r}: fill it or drop the row")
    if isinstance(prompt, str):
        prompt = messages_in(prompt) or prompt
    verifier, reference = _grading(row, answer_column, what)
    solution = row.get(SOLUTION, row.get(answer_column or ""))
    return Problem(
        id=str(row.get("id", row.get("task_id", number - 1))),
        prompt=read_messages(prompt, what),
        reference=reference,
        verifier=verifier,
        metadata={} if solution is None else {SOLUTION: str(solution)},
    )


def _is_math(row: Mapping[str, Any]) -> bool:
    return "verifier" not in row and not asks_for_program(row)


def _grading(row: Mapping[str, Any], answer_column: str | None, what: str) -> tuple[str, Reference]:
    """The name of a row's verifier, and the reference for it."""
    if "verifier" in row:
        if not isinstance(row["verifier"], str) or row["verifier"] not in VERIFIERS:
            raise UserError(
                f"{what}: verifier is {row['verifier']!r}: it must be one of {', '.join(sorted(VERIFIERS))}"
            )
        reference = row.get("reference", "")
        return row["verifier"], _answer(reference, what) if row["verifier"] == "math" else reference
    if asks_for_program(row):
        return "program", program_task(row)
    return "math", _answer(row.get(answer_column or ""), what)


def _answer(value: Any, what: str) -> Reference:
    """The reference in a cell: a list of one item counts as the item, a missing value as empty. Other lists and objects stay as they
    are: the verifier refuses them, and the problem is dropped and reported."""
    if isinstance(value, list) and len(value) == 1:
        (value,) = value
    if value is None or isinstance(value, list | dict):
        return value or ""  # pyright: ignore[reportReturnType]
    return reference_answer(require_encodable(str(value), what))


def repeated_word(problems: Sequence[Problem]) -> str | None:
    """A sentence about the word that is the reference of many problems, as a heading or a placeholder that was taken for the answer is;
    None if there is no such word. yes, no, true and false do not count."""
    words = Counter(str(p.reference).lower() for p in problems if _WORD.fullmatch(str(p.reference)))
    word, count = max(words.items(), key=lambda item: item[1], default=("", 0))
    return f"{count} of {len(problems)} references are the word {word!r}" if count >= _MANY_ALIKE else None


def _column(option: str, named: str | None, usual: Iterable[str], row: Mapping[str, Any], dataset: str) -> str:
    found = next((c for c in ([named] if named is not None else usual) if c in row), None)
    if found is None:
        looked_for = repr(named) if named is not None else " or ".join(map(repr, usual))
        raise UserError(
            f"{option}: dataset {dataset!r} has no column {looked_for}; it has {sorted(row)}: name one with --{option.replace('_', '-')}"
        )
    return found


def _file_rows(path: Path) -> list[dict[str, Any]]:
    what = f"dataset is {str(path)!r}"
    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8-sig")
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{what}: it cannot be read ({reason}); give an existing file") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{what}: it is not UTF-8 text (byte {error.start}); convert it") from None
    if ".json" in path.suffixes:
        rows = _json(text, what)
        if not isinstance(rows, list):
            raise UserError(f"{what}: a .json file must hold one list of objects")
    else:
        lines = [(n, line) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
        rows = [_json(line, f"{what}: line {n}") for n, line in lines]
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise UserError(f"{what}: row {number} is {type(row).__name__}, not an object with columns")
    return rows


def _json(text: str, what: str) -> Any:
    """Parses JSON; integers that are too long for Python to parse stay text."""
    try:
        return json.loads(text, parse_int=lambda digits: int(digits) if len(digits) <= _MAX_DIGITS else digits)
    except json.JSONDecodeError as error:
        raise UserError(f"{what} is not JSON: {error}; fix it") from None
    except RecursionError:
        raise UserError(f"{what} is nested too deeply to be read; fix it") from None


def _hub_rows(dataset: str, config: str | None, split: str) -> list[dict[str, Any]]:
    import datasets  # half a second, and only hub names need it

    name, usual = HUB_NAMES.get(dataset, (dataset, None))
    try:
        loaded = datasets.load_dataset(name, config or usual, split=split)
    except Exception as error:  # noqa: BLE001  the library raises many kinds for a name that is not there
        raise UserError(
            f"dataset is {dataset!r}: it is neither built in ({', '.join((*BUILT_IN, *HUB_NAMES))}, {REASONING_GYM}<task>) nor an existing .jsonl or .json file, and loading {name!r} "
            f"from the hub failed ({type(error).__name__}: {first_line(error)}). Without a network give a file; "
            "a configuration and a split are named with --dataset-config and --dataset-split, of held-out problems with --eval-config and --eval-split"
        ) from None
    return [dict(row) for row in loaded]


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
