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
from rewards.functions.declaration import GROUP_ARGUMENTS, ROW_ARGUMENTS, SINGLE_ARGUMENTS, Declaration
from rewards.functions.source import NOTEBOOK, Source
from rewards.functions.worker import MAX_RESULTS, MEMORY_LIMIT
from rewards.pool import WorkerPool
from rewards.pooled_verifier import require_one_per_answer
from rewards.score import Outcome, Reference, Score
from rewards.verdict import Verdict

_TRIED = 8  # problems that a function is tried on before training
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
        a column      any other column of the row, by its name

    or for `answers` or `completions`, lists over the whole group, for which it returns a list. It may be async. What it
    may return: rewards.functions.call.result_of. An exception is CRASHED and a call that is too slow is TIMEOUT.

    spec: its name in messages. answer_form: see rewards.extract.answer_by_form. deadline: seconds for one call, unless
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
    ) -> None:
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
    ) -> list[Score]:
        """The score of each answer. prompts, rows, groups: see rewards.score.verify; without groups all are of one."""
        prompts, rows = prompts or [""] * len(answers), rows or [{}] * len(answers)
        for what, given in (("reference", references), ("prompt", prompts), ("row", rows)):
            require_one_per_answer(what, given, answers)
        offered = [self._row(*one) for one in zip(references, prompts, rows)]
        if not self.compares_group:
            calls = [self._single(text, row) for text, row in zip(answers, offered)]
            return [result.score() for (result,) in self._results(calls)]
        members: dict[int, list[int]] = {}
        for index, group in enumerate(groups or [0] * len(answers)):
            members.setdefault(group, []).append(index)
        calls = [self._group([answers[i] for i in of], offered[of[0]]) for of in members.values()]
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

        The function is also tried on the first problems, with the reference as the answer. Raises UserError if no problem
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
        return GROUP_ARGUMENTS if self.compares_group else SINGLE_ARGUMENTS

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

    def _single(self, text: str, row: Row) -> Call:
        return self._chosen({**row, **_texts(text, self._form)}), None

    def _group(self, texts: Sequence[str], row: Row) -> Call:
        both = [_texts(text, self._form) for text in texts]
        lists = {f"{name}s": [one[name] for one in both] for name in SINGLE_ARGUMENTS}
        return self._chosen({**row, **lists}), len(texts)

    def _chosen(self, offered: Row) -> dict[str, Any]:
        """The arguments of a call. A worker gets them as JSON; the trainer's process copies them."""
        chosen = self._declaration.chosen(offered)
        if self._function is not None:
            return copy.deepcopy(chosen)
        if "problem" in chosen:
            chosen["problem"] = {name: value for name, value in chosen["problem"].items() if _is_json(value)}
        unfit = [name for name, value in chosen.items() if not _is_json(value)]
        if unfit and not self._declaration.takes_all:
            raise UserError(
                f"reward is {self._spec!r}: column {unfit[0]!r} holds a {type(chosen[unfit[0]]).__name__}, which a worker "
                "process cannot be sent: it takes text, numbers, lists and objects; convert the column, or mark the function "
                "with @plumbline.reward(in_process=True)"
            )
        return {name: value for name, value in chosen.items() if name not in unfit}

    def _try(self, offered: Sequence[Row]) -> None:
        tried = [(str(row["reference"]), row) for row in offered]
        calls = [self._group([a, ""], row) if self.compares_group else self._single(a, row) for a, row in tried]
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


def _texts(text: str, form: AnswerForm | None) -> dict[str, str]:
    completion = own_turn(text)
    return {"completion": completion, "answer": answer_by_form(text, form) or completion}


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True
