"""The verifier of a reward function: calls the user's function in worker processes, and tells its failures apart."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rewards.errors import UserError
from rewards.extract import AnswerForm, answer_by_form, own_turn
from rewards.functions.call import Call, Result, call, call_waiting, result_of_error
from rewards.functions.declaration import (
    ENVIRONMENTS,
    GROUP_ARGUMENTS,
    PROMPTS,
    ROW_ARGUMENTS,
    SINGLE_ARGUMENTS,
    Declaration,
)
from rewards.functions.source import NOTEBOOK, Source
from rewards.functions.worker import MAX_RESULTS, MEMORY_LIMIT
from rewards.pool import WorkerPool
from rewards.pooled_verifier import require_one_per_answer
from rewards.score import FinalState, Outcome, Reference, Score
from rewards.verdict import Verdict

_TRIED = 8  # problems that a function is tried on before training
_STATE = "state"  # argument with the final state of a completion's environment
_GRACE = 5.0  # seconds beyond the deadline that an async function has for itself
Row = Mapping[str, Any]


class FunctionVerifier:
    """Scores completions by a function of the user; a `rewards.score.Verifier`.

    The function asks for what it needs by the names of its parameters:

        answer        the final answer where the text states one in the answer form, else the whole text
        completion    the whole text, up to the end of the model's turn
        prompt        the last message of the user
        reference     the problem's reference answer; "" if it has none
        problem       all columns of the problem's row, with its id, prompt and reference
        state         the public attributes of the completion's environment, where the run has environments
        a column      any other column of the row, by its name

    or for `answers`, `completions` or `environments` (objects with these attributes), lists over the whole group, for
    which it returns a list. Without `answers` it is called as TRL does: columns are lists over the group too, and
    `prompts`. It may be async. What it may return: rewards.functions.call.result_of. An exception is CRASHED and a call that is too slow is TIMEOUT.

    spec: its name in messages. has_environment: completions come with final states. answer_form: see rewards.extract.answer_by_form. deadline: seconds for one call, unless
        `rewards.functions.declaration.reward` says others.

    Raises UserError for a function that cannot be imported or called.
    """

    def __init__(
        self,
        spec: str,
        source: Source,
        *,
        answer_form: AnswerForm | None = None,
        num_workers: int = 2,
        deadline: float = 2.0,
        has_environment: bool = False,
    ) -> None:
        self._has_environment = has_environment
        self._spec, self._source, self._num_workers = spec, source, num_workers
        self._form: AnswerForm | None = answer_form
        self._function: Callable[..., Any] | None = None
        self._pool: WorkerPool | None = None
        if source.runs_in_process:
            self._function, self._declaration = self._loaded_here()
        else:
            self._pool = self._started(deadline, Outcome.TIMEOUT)
            self._declaration = self._declared(self._pool.run([("declare",)])[0])
            if self._declaration.in_process:  # marked in a way that reading the file does not show
                self._pool.close()
                self._pool = None
                self._function, self._declaration = self._loaded_here()
        self._deadline = self._declaration.deadline or deadline
        is_async = self._declaration.is_async
        if self._pool is not None and (is_async or self._deadline != deadline):
            self._pool.close()
            late = Outcome.CRASHED if is_async else Outcome.TIMEOUT
            self._pool = self._started(self._deadline + is_async * _GRACE, late)

    @property
    def compares_group(self) -> bool:
        """Whether the function grades the completions of a group together."""
        return self._declaration.takes_group

    def verify_batch(
        self,
        answers: Sequence[str],
        references: Sequence[Reference],
        prompts: Sequence[str] | None = None,
        rows: Sequence[Row] | None = None,
        groups: Sequence[int] | None = None,
        final_states: Sequence[FinalState | None] | None = None,
    ) -> list[Score]:
        """The score of each answer. What else it takes: see rewards.score.verify; without groups all are of one."""
        prompts, rows = prompts or [""] * len(answers), rows or [{}] * len(answers)
        for what, given in (("reference", references), ("prompt", prompts), ("row", rows)):
            require_one_per_answer(what, given, answers)
        offered = [self._row(*one) for one in zip(references, prompts, rows)]
        finals = final_states or [None] * len(answers)
        completions = [self._completion(*one) for one in zip(answers, finals)]
        if not self.compares_group:
            calls = [self._single(completion, row) for completion, row in zip(completions, offered)]
            return [result.score() for (result,) in self._results(calls)]
        members: dict[int, list[int]] = {}
        for index, group in enumerate(groups or [0] * len(answers)):
            members.setdefault(group, []).append(index)
        calls = [self._group([completions[i] for i in of], offered[of[0]]) for of in members.values()]
        results = self._results(calls)
        scores = {i: r.score() for of, found in zip(members.values(), results) for i, r in zip(of, found)}
        return [scores[i] for i in range(len(answers))]

    def check_references(
        self,
        references: Sequence[Reference],
        prompts: Sequence[str] | None = None,
        rows: Sequence[Row] | None = None,
    ) -> list[Score]:
        """CORRECT for each problem that offers the arguments that the function asks for, BAD_REFERENCE for the others.

        The function is also tried on the first problems, with the reference as the answer, unless it asks for the state of an
        environment, which only a rollout has. Raises UserError if no problem
        offers the arguments, if it returns something that is not a reward, or if it fails on all of the tried problems.
        """
        prompts, rows = prompts or [""] * len(references), rows or [{}] * len(references)
        offered = [self._row(*one) for one in zip(references, prompts, rows)]
        lacking = [self._declaration.missing({**row, **dict.fromkeys(self._text_arguments)}) for row in offered]
        good = [row for row, missing in zip(offered, lacking) if not missing]
        if offered and not good:
            has = {*self._text_arguments, *ROW_ARGUMENTS, *rows[0]} - {"id"}
            raise UserError(
                f"reward is {self._spec!r}: it asks for {', '.join(map(repr, lacking[0]))}, which no problem offers; it can ask "
                f"for {', '.join(sorted(has))}"
            )
        if not self._asks_for_state:
            self._try(good[:_TRIED])
        return [
            Score(None, Outcome.BAD_REFERENCE, {}, f"its row has no column {missing[0]!r}, which {self._spec} asks for")
            if missing
            else Score(1.0, Outcome.CORRECT)
            for missing in lacking
        ]

    def close(self) -> None:
        """Ends the worker processes. Safe to call twice."""
        if self._pool is not None:
            self._pool.close()

    @property
    def _text_arguments(self) -> tuple[str, ...]:
        if self.compares_group:
            return (*(GROUP_ARGUMENTS if self._has_environment else GROUP_ARGUMENTS[:-1]), PROMPTS)
        return (*SINGLE_ARGUMENTS, _STATE) if self._has_environment else SINGLE_ARGUMENTS

    @property
    def _asks_for_state(self) -> bool:
        return self._has_environment and any(name in self._declaration.arguments for name in (_STATE, ENVIRONMENTS))

    def _started(self, deadline: float, timeout_outcome: Outcome) -> WorkerPool:
        return WorkerPool(
            "rewards.functions.worker:load",
            {"source": asdict(self._source), "folder": os.getcwd(), "deadline": deadline},
            num_workers=self._num_workers,
            deadline=deadline,
            memory_limit=MEMORY_LIMIT,
            timeout_outcome=timeout_outcome,
            max_reason=MAX_RESULTS,
        )

    def _loaded_here(self) -> tuple[Callable[..., Any], Declaration]:
        try:
            function = self._source.load()
            return function, Declaration.of(function)
        except UserError as error:
            raise UserError(f"reward is {self._spec!r}: it cannot be loaded: {error}") from None
        except (Exception, SystemExit) as error:
            reason = result_of_error(error).detail
            raise UserError(f"reward is {self._spec!r}: it cannot be loaded: {reason}") from error

    def _declared(self, verdict: Verdict) -> Declaration:
        if not verdict.is_correct:
            self.close()
            raise UserError(f"reward is {self._spec!r}: it cannot be loaded: {verdict.reason}")
        return Declaration.from_json(json.loads(verdict.reason))

    def _row(self, reference: Reference, prompt: str, row: Row) -> dict[str, Any]:
        """The arguments that belong to a problem."""
        columns = {"prompt": prompt, "reference": reference}
        return {**row, **columns, "problem": {**row, **columns}}

    def _completion(self, text: str, final: FinalState | None = None) -> Row:
        """The arguments that belong to a completion."""
        completion = own_turn(text)
        texts = {"completion": completion, "answer": answer_by_form(text, self._form) or completion}
        return texts if final is None else {**texts, _STATE: dict(final.state)}

    def _single(self, completion: Row, row: Row) -> Call:
        return self._chosen({**row, **completion}), None

    def _group(self, completions: Sequence[Row], row: Row) -> Call:
        count = len(completions)
        lists = {f"{name}s": [one[name] for one in completions] for name in SINGLE_ARGUMENTS}
        lists[PROMPTS] = [row["prompt"]] * count
        if self._has_environment:
            lists[ENVIRONMENTS] = [one.get(_STATE, {}) for one in completions]
        chosen = self._chosen({**row, **lists})
        if self._declaration.takes_lists:
            chosen = {name: value if name in lists else [value] * count for name, value in chosen.items()}
        return chosen, count

    def _chosen(self, offered: Row) -> dict[str, Any]:
        """The arguments of a call. A worker gets them as JSON; the trainer's process copies them."""
        chosen = self._declaration.chosen(offered)
        if self._function is not None:
            return copy.deepcopy(chosen)
        if "problem" in chosen:
            chosen["problem"] = {name: value for name, value in chosen["problem"].items() if is_json(value)}
        unfit = [name for name, value in chosen.items() if not is_json(value)]
        if unfit and not self._declaration.takes_all:
            raise UserError(
                f"reward is {self._spec!r}: column {unfit[0]!r} holds a {type(chosen[unfit[0]]).__name__}, which a worker "
                "process cannot be sent: it takes text, numbers, lists and objects; convert the column, or mark the function "
                "with @plumbline.reward(in_process=True)"
            )
        return {name: value for name, value in chosen.items() if name not in unfit}

    def _try(self, offered: Sequence[Row]) -> None:
        tried = [(str(row["reference"]), row) for row in offered]
        calls = [
            self._group([self._completion(text) for text in (reference, "")], row)
            if self.compares_group
            else self._single(self._completion(reference), row)
            for reference, row in tried
        ]
        found = [results[0] for results in self._results(calls)]
        refused = [result for result in found if result.refused]
        failed = [result for result in found if result.outcome in (Outcome.CRASHED.value, Outcome.TIMEOUT.value)]
        if refused or (found and len(failed) == len(found)):
            result = (refused or failed)[0]
            what = "" if refused else f"it fails on each of the first {len(found)} problems: "
            has_file = self._source.module != NOTEBOOK
            advice = f". Try it with plumbline try-reward {self._spec} --dataset ..." if has_file else ""
            raise UserError(f"reward is {self._spec!r}: {what}{result.detail}{advice}")

    def _results(self, calls: Sequence[Call]) -> list[list[Result]]:
        """The results of each call, in order."""
        if self._function is not None:
            if self._declaration.is_async:
                concurrency = self._declaration.concurrency
                return call_waiting(self._function, calls, deadline=self._deadline, concurrency=concurrency)
            return [call(self._function, arguments, count) for arguments, count in calls]
        assert self._pool is not None
        at_once = max(1, self._declaration.concurrency // self._num_workers) if self._declaration.is_async else 1
        items = [calls[i : i + at_once] for i in range(0, len(calls), at_once)]
        verdicts = self._pool.run([("call", item) for item in items])
        return [results for item, verdict in zip(items, verdicts) for results in _of_item(item, verdict)]


def _of_item(item: Sequence[Call], verdict: Verdict) -> list[list[Result]]:
    if not verdict.is_correct:  # killed, or no worker
        result = Result(verdict.outcome.value, 0.0 if verdict.outcome.gradable else None, {}, verdict.reason)
        return [[result] * (count or 1) for _, count in item]
    return [[Result(*result) for result in results] for results in json.loads(verdict.reason)]


def is_json(value: Any) -> bool:
    """Whether the value can be written as JSON."""
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True
