"""Which tasks of reasoning-gym can be trusted? `python tests/rewards/reasoning_gym_gate.py` prints both tables of
rewards/reasoning_gym_tasks.py.

A task passes if its entries are JSON and the same in every process, its own answers are right, its scorer runs no text
as code, and neither junk nor the question nor two answers at once are right or make it fail. All of it is asked of the
verifier: right means a score of 1.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator, Sequence
from types import CodeType, FunctionType, ModuleType
from typing import Any

import numpy
from reasoning_gym.factory import DATASETS
from test_no_eval import FORBIDDEN

from rewards.reasoning_gym_tasks import ReasoningGymVerifier, make_entries
from rewards.score import Score, Verifier

NUM_ENTRIES = 200
# None of these is an answer to any task. NaN compares unlike any other value, and many scorers read JSON or numbers.
JUNK = (
    *("I do not know.", "zebra zebra", "None", "null", "???", "x" * 3000, "%", "/", "1/0", ",", "=", "-", "+", ".", "A=1,A=2"),
    *("nan", "NaN", "inf", "-inf", "1e999", "-1e999", "123456789", "-123456789", "0.123456789", "9" * 50),
    *("{}", "[[]]", "()", "(((", "[NaN]", '{"a": 1}', '[1, "a"]', "[" * 200, f"[{', '.join(['NaN'] * 10)}]"),
)  # fmt: skip


def code_run(data_set: type) -> str | None:
    """The first function that runs text as code, of all that the scorer may reach, and how; None if there is none."""
    for function in reachable(data_set):
        for name in sorted(names_in(function.__code__) & FORBIDDEN):
            if not is_theirs(getattr(function.__globals__.get(name), "__module__", "")):  # a function of that name
                return f"{function.__qualname__} uses {name}"
    return None


def reachable(data_set: type) -> Iterator[FunctionType]:
    """Yields score_answer, and all functions of the library whose names it uses directly or indirectly."""
    todo: list[Any] = [data_set.score_answer]  # type: ignore[attr-defined]
    seen = set()
    while todo:
        found = todo.pop()
        found = getattr(found, "__func__", found)
        if found in seen or not isinstance(found, type | FunctionType) or not is_theirs(found.__module__):
            continue
        seen.add(found)
        if isinstance(found, type):
            todo += [value for value in vars(found).values() if isinstance(value, FunctionType)]
        else:
            yield found
            known = found.__globals__
            owners = [data_set, *(v for v in known.values() if isinstance(v, ModuleType) and is_theirs(v.__name__))]
            owners += [v for v in known.values() if isinstance(v, type) and is_theirs(v.__module__)]
            for name in sorted(names_in(found.__code__)):
                todo += [known.get(name), *(getattr(owner, name, None) for owner in owners)]


def is_theirs(module: str) -> bool:
    return module.partition(".")[0] == "reasoning_gym"


def names_in(code: CodeType) -> set[str]:
    """All names that a function and its nested functions use."""
    return set(code.co_names).union(*(names_in(part) for part in code.co_consts if isinstance(part, CodeType)))


def made(task: str, count: int) -> list[dict[str, Any]] | str:
    """The entries of a task, or the reason why there are none. Unseeded global generators must not matter."""
    random.seed()
    numpy.random.seed()
    try:
        return make_entries(task, count, seed=0)
    except Exception as error:  # noqa: BLE001  any failure is an answer here
        return f"its entries cannot be made: {error}"


def digest(entries: list[dict[str, Any]] | str) -> str:
    return hashlib.sha256(json.dumps(entries).encode()).hexdigest()


def digests_elsewhere(tasks: Sequence[str], count: int) -> dict[str, str]:
    """By task, the digest of the entries that a process with a different hash seed makes."""
    environment = {**os.environ, "PYTHONHASHSEED": "12345"}
    command = [sys.executable, __file__, "--digests", str(count), *tasks]
    return json.loads(subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True).stdout)


def refusals(tasks: Sequence[str], count: int) -> Iterator[tuple[str, str | None]]:
    """Each task with the reason why it is refused, None if it passes."""
    code = {task: code_run(DATASETS[task][0]) for task in tasks}
    elsewhere = digests_elsewhere([task for task in tasks if not code[task]], count)
    with ReasoningGymVerifier(tasks=tasks, num_workers=1, deadline=20.0) as verifier:
        for task in tasks:
            entries = [] if code[task] else made(task, count)
            if code[task]:
                yield task, f"its scorer runs text as code: {code[task]}"
            elif isinstance(entries, str):
                yield task, entries
            elif digest(entries) != elsewhere[task]:
                yield task, "its entries differ from run to run"
            else:
                yield task, refusal(task, entries, verifier)


def refusal(task: str, entries: Sequence[dict[str, Any]], verifier: Verifier) -> str | None:
    references = [{"task": task, "entry": entry} for entry in entries]
    if bad := [score for score in verifier.check_references(references) if score.value != 1]:
        return f"its own answers do not count: {bad[0].detail}"
    own = [entry["answer"] for entry in entries]
    others = [next((a for a in (*own[i:], *own[:i]) if a != own[i]), "zebra") for i in range(len(own))]
    attempts = [
        *((f"junk such as {text[:20]!r}", text, reference) for text in JUNK for reference in references),
        *(("an empty answer", " ", reference) for reference in references),
        *(("the question", entry["question"], reference) for entry, reference in zip(entries, references)),
        *(("two answers", f"{a} or {b}", reference) for a, b, reference in zip(own, others, references)),
        *(("two answers", f"{b} {a}", reference) for a, b, reference in zip(own, others, references)),
    ]
    for (kind, *_), score in zip(attempts, scores_of([attempt[1:] for attempt in attempts], verifier)):
        if score.value != 0:
            return f"its scorer {'accepts' if score.value else 'fails on'} {kind}"
    accepted = sum(score.value != 0 for score in scores_of(list(zip(others, references)), verifier))
    # If every solution counts, the answer to a different question may be correct by chance.
    return "its scorer accepts the answers to other questions" if accepted > len(others) / 10 else None


def scores_of(pairs: Sequence[Sequence[Any]], verifier: Verifier) -> list[Score]:
    return verifier.verify_batch(
        [f"<answer>{text}</answer>" for text, _ in pairs], [reference for _, reference in pairs]
    )


def main() -> None:
    if sys.argv[1:2] == ["--digests"]:
        count, *tasks = sys.argv[2:]
        print(json.dumps({task: digest(made(task, int(count))) for task in tasks}))
        return
    for task, reason in refusals(sorted(DATASETS), NUM_ENTRIES):
        print(f"    {task!r}: {reason!r},", flush=True)


if __name__ == "__main__":
    main()
