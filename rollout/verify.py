"""Grades completions in the background while others are still being sampled."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Self

from rewards.errors import UserError
from rewards.score import FinalState, Outcome, Score, Verifier, compares_group, verify
from rewards.verifier_contract import checked_scores
from rewards.verifiers import VERIFIERS
from rollout.records import Completion, Problem
from rollout.steps import Steps

Graded = tuple[int, int, Completion]  # with the indices of problem and sample


class BackgroundVerifier:
    """A thread that repeatedly grades all pending completions as one batch; it lives as long as the `with` block.

    It takes little time from the sampler: verifiers work in processes of their own, for which the thread waits. The next `put`, or
    `scores`, raises an exception of the thread. An exception in the `with` block ends the thread after its current batch.

    group_size: completions of each problem, for which a verifier that compares them waits.
    steps_of: also called in the thread, with the index of each completion's problem and the completion. steps: its results, complete
        once `scores` has returned.
    """

    def __init__(
        self,
        problems: Sequence[Problem],
        verifiers: Mapping[str, Verifier],
        *,
        group_size: int,
        steps_of: Callable[[int, Completion], Steps] | None = None,
    ) -> None:
        self._problems, self._verifiers = problems, {p.verifier: chosen_verifier(p, verifiers) for p in problems}
        self._group_size = group_size
        self._steps_of, self.steps = steps_of, dict[tuple[int, int], Steps]()
        self._pending: SimpleQueue[tuple[int, int, Completion] | None] = SimpleQueue()
        self._is_abandoned = threading.Event()

    def __enter__(self) -> Self:
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="verify")
        self._graded = self._executor.submit(self._grade_all)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._is_abandoned.set()
        self._pending.put(None)
        self._executor.shutdown()

    def put(self, problem_index: int, sample_index: int, completion: Completion) -> None:
        if self._graded.done():
            self._graded.result()
        self._pending.put((problem_index, sample_index, completion))

    def scores(self) -> dict[tuple[int, int], Score]:
        """Waits for the last completion that was put and returns all scores, by the indices of problem and sample."""
        self._pending.put(None)
        return self._graded.result()

    def _grade_all(self) -> dict[tuple[int, int], Score]:
        scores: dict[tuple[int, int], Score] = {}
        incomplete: dict[int, list[Graded]] = {}  # the completions of groups that wait for their last one
        is_last = False
        while not is_last and not self._is_abandoned.is_set():
            taken = [self._pending.get()]
            while not self._pending.empty():
                taken.append(self._pending.get())
            is_last = None in taken
            batch = [item for item in taken if item is not None]
            scores |= self._grade(self._ready(batch, incomplete))
            if self._steps_of is not None:
                self.steps |= {(i, j): self._steps_of(i, completion) for i, j, completion in batch}
        return scores

    def _ready(self, arrived: Sequence[Graded], incomplete: dict[int, list[Graded]]) -> list[Graded]:
        """The completions that can be graded now; the others are kept in `incomplete`."""
        ready: list[Graded] = []
        for item in arrived:
            problem_index, _, _ = item
            if not compares_group(self._verifiers[self._problems[problem_index].verifier]):
                ready.append(item)
                continue
            group = incomplete.setdefault(problem_index, [])
            group.append(item)
            if len(group) == self._group_size:
                ready += sorted(incomplete.pop(problem_index), key=lambda item: item[:2])
        return ready

    def _grade(self, batch: Sequence[Graded]) -> dict[tuple[int, int], Score]:
        """Calls each verifier once for the whole batch: pools are fast with large batches. What an environment failed is not graded."""
        failed = [(i, j, c.final_state.failure) for i, j, c in batch if c.final_state and c.final_state.failure]
        scores = {(i, j): Score(None, Outcome.CRASHED, {}, failure) for i, j, failure in failed}
        for name, verifier in self._verifiers.items():
            items = [item for item in batch if self._problems[item[0]].verifier == name and item[:2] not in scores]
            if items:
                problems, groups = [self._problems[i] for i, _, _ in items], [i for i, _, _ in items]
                texts, finals = zip(*((c.text, c.final_state) for _, _, c in items), strict=True)
                returned = grade(verifier, texts, problems, groups, finals)
                checked = checked_scores(returned, verifier=name, problems=[p.id for p in problems])
                scores |= {(i, j): score for (i, j, _), score in zip(items, checked, strict=True)}
        return scores


def grade(
    verifier: Verifier,
    texts: Sequence[str],
    problems: Sequence[Problem],
    groups: Sequence[int] | None = None,
    final_states: Sequence[FinalState | None] | None = None,
) -> list[Score]:
    """The verifier's score of each text. groups, final_states: see rewards.score.verify."""
    references, questions = [p.reference for p in problems], [p.question for p in problems]
    return verify(verifier, texts, references, questions, [row_of(p) for p in problems], groups, final_states)


def row_of(problem: Problem) -> dict[str, Any]:
    """The columns of the problem's row, and its id, as a verifier gets them."""
    return {**problem.metadata, "id": problem.id}


def chosen_verifier(problem: Problem, verifiers: Mapping[str, Verifier]) -> Verifier:
    try:
        return verifiers[problem.verifier]
    except KeyError:
        known = sorted({*VERIFIERS, *verifiers})
        raise UserError(f"a problem names verifier {problem.verifier!r}: the verifiers are {known}") from None
