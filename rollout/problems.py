"""Where problems come from: built-in generators, files, hub data sets; and the seeded stream that deals them out."""

from __future__ import annotations

import gzip
import json
import random
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from rewards.errors import UserError
from rewards.extract import reference_answer
from rewards.score import Reference
from rewards.verifiers import VERIFIERS
from rollout.arithmetic import arithmetic_problems
from rollout.program_tasks import asks_for_program, program_task
from rollout.puzzles import PUZZLE_MAKERS, puzzle_problems, reasoning_gym_problems
from rollout.records import WORKED, Message, Problem
from rollout.small_programs import small_programs

BUILT_IN: dict[str, Callable[[], list[Problem]]] = {
    "arithmetic": partial(arithmetic_problems, 20_000, seed=0),
    "small-programs": partial(small_programs, 10_000, seed=0),
    **{name: partial(puzzle_problems, make, 5_000, seed=0) for name, make in PUZZLE_MAKERS.items()},
}
REASONING_GYM = "reasoning-gym:"  # and the name of a task
HUB_NAMES = {"gsm8k": ("openai/gsm8k", "main"), "math": ("DigitalLearningGmbH/MATH-lighteval", "default")}
FILES = (".jsonl", ".json")  # and either with .gz
PROMPT_COLUMNS = ("question", "problem", "prompt")
ANSWER_COLUMNS = ("answer", "solution", "reference")


@dataclass
class ProblemStream:
    """Deals a list of problems in an order fixed by the seed, each once an epoch. Its only state is `cursor`."""

    problems: Sequence[Problem]
    seed: int
    cursor: int = 0
    _epoch: tuple[int, list[int]] = field(default=(-1, []), repr=False)

    def take(self, count: int) -> list[Problem]:
        taken = [self._at(self.cursor + i) for i in range(count)]
        self.cursor += count
        return taken

    def _at(self, index: int) -> Problem:
        epoch, place = divmod(index, len(self.problems))
        if self._epoch[0] != epoch:
            order = list(range(len(self.problems)))
            random.Random(f"{self.seed}/{epoch}").shuffle(order)
            self._epoch = (epoch, order)
        return self.problems[self._epoch[1][place]]


def load_problems(
    dataset: str, *, split: str = "train", prompt_column: str | None = None, answer_column: str | None = None
) -> list[Problem]:
    """The problems of a built-in task, a .jsonl or .json file, or a data set of the hub; of equal prompts the first."""
    if dataset in BUILT_IN:
        return BUILT_IN[dataset]()
    if dataset.startswith(REASONING_GYM):
        return reasoning_gym_problems(dataset.removeprefix(REASONING_GYM), 1_000, seed=0)
    rows = _file_rows(Path(dataset)) if dataset.removesuffix(".gz").endswith(FILES) else _hub_rows(dataset, split)
    what = f"dataset is {dataset!r}"
    if not rows:
        raise UserError(f"{what}: it has no rows; give one with at least two problems")
    prompt_column = _column("prompt_column", prompt_column, PROMPT_COLUMNS, rows[0], dataset)
    if _is_math(rows[0]):
        answer_column = _column("answer_column", answer_column, ANSWER_COLUMNS, rows[0], dataset)
    problems: dict[str, Problem] = {}
    for number, row in enumerate(rows):
        problem = _problem(row, number, prompt_column, answer_column, f"{what}: row {number + 1}")
        problems.setdefault(json.dumps(problem.prompt), problem)
    if len({p.id for p in problems.values()}) < len(problems):
        raise UserError(f"{what}: values of its column 'id' are not unique; make them so or drop the column")
    return list(problems.values())


def _problem(row: Mapping[str, Any], number: int, prompt_column: str, answer_column: str | None, what: str) -> Problem:
    if row.get(prompt_column) is None:
        raise UserError(f"{what} has no {prompt_column!r}: fill it or drop the row")
    prompt = _messages(row[prompt_column])
    verifier, reference = _judged_by(row, answer_column, what)
    worked = row.get(WORKED, row.get(answer_column or ""))
    return Problem(
        id=str(row.get("id", row.get("task_id", number))),
        prompt=prompt,
        reference=reference,
        verifier=verifier,
        metadata={} if worked is None else {WORKED: str(worked)},
    )


def _is_math(row: Mapping[str, Any]) -> bool:
    return "verifier" not in row and not asks_for_program(row)


def _judged_by(row: Mapping[str, Any], answer_column: str | None, what: str) -> tuple[str, Reference]:
    """The verifier that a row asks for, and the reference for it."""
    if "verifier" in row:
        if row["verifier"] not in VERIFIERS:
            raise UserError(
                f"{what}: verifier is {row['verifier']!r}: it must be one of {', '.join(sorted(VERIFIERS))}"
            )
        return row["verifier"], row.get("reference", "")
    if asks_for_program(row):
        return "program", program_task(row)
    answer = row.get(answer_column or "")  # without one it is an empty reference: left out and told of, as any bad one
    return "math", "" if answer is None else reference_answer(str(answer))


def _messages(prompt: Any) -> tuple[Message, ...]:
    if not isinstance(prompt, list):
        return ({"role": "user", "content": str(prompt)},)
    if not prompt or not all(isinstance(m, dict) and {"role", "content"} <= m.keys() for m in prompt):
        raise UserError(f"prompt {str(prompt)[:80]!r} is a list, but not of messages with 'role' and 'content'")
    return tuple(prompt)


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
        text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
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
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{what} is not JSON: {error}; mend it") from None


def _hub_rows(dataset: str, split: str) -> list[dict[str, Any]]:
    import datasets  # half a second, and only hub names need it

    name, config = HUB_NAMES.get(dataset, (dataset, None))
    try:
        loaded = datasets.load_dataset(name, config, split=split)
    except Exception as error:  # noqa: BLE001  the library raises many kinds for a name that is not there
        raise UserError(
            f"dataset is {dataset!r}: it is neither built in ({', '.join((*BUILT_IN, *HUB_NAMES))}, {REASONING_GYM}<task>) nor an existing .jsonl or .json file, and loading {name!r} "
            f"from the hub failed ({type(error).__name__}: {str(error).splitlines()[0]}). Without a network give a file"
        ) from None
    return [dict(row) for row in loaded]


def split_held_out(problems: Sequence[Problem], count: int) -> tuple[list[Problem], list[Problem]]:
    """(training, held out): `count` problems chosen once and for all, whatever the run's seed, so that runs compare."""
    if len(problems) <= count:
        raise UserError(
            f"eval_size is {count}: the dataset has {len(problems)} problems, which leaves none to train on; lower eval_size, or name an eval_dataset"
        )
    order = list(range(len(problems)))
    random.Random("held out").shuffle(order)
    held_out = set(order[:count])
    return [p for i, p in enumerate(problems) if i not in held_out], [problems[i] for i in order[:count]]


def without_overlap(problems: Sequence[Problem], held_out: Sequence[Problem]) -> list[Problem]:
    """The problems whose prompt, white space and case aside, is not among the held-out ones."""
    seen = {_normal(p) for p in held_out}
    return [p for p in problems if _normal(p) not in seen]


def _normal(problem: Problem) -> str:
    return json.dumps([" ".join(message["content"].split()).lower() for message in problem.messages])
