"""Completions are verified while others are still being sampled."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from types import TracebackType
from typing import Self

from rewards.errors import UserError
from rewards.score import Score, Verifier, verify
from rewards.verifier_contract import checked_scores
from rewards.verifiers import VERIFIERS
from rollout.records import Completion, Problem
from rollout.steps import Steps


class BackgroundVerifier:
    """One thread that verifies all that waits, again and again, and lives as long as the `with` block.

    It costs the sampler little: verifiers judge in processes of their own, the thread waits for them. What fails in it is
    raised by the next `put` or by `scores`. An exception in the block ends it after the batch it is at.

    steps_of: also called there, for each completion and the index of its problem. steps: what it gave, once `scores` is done.
    """

    def __init__(
        self,
        problems: Sequence[Problem],
        verifiers: Mapping[str, Verifier],
        steps_of: Callable[[int, Completion], Steps] | None = None,
    ) -> None:
        self._problems, self._verifiers = problems, {p.verifier: chosen_verifier(p, verifiers) for p in problems}
        self._steps_of, self.steps = steps_of, dict[tuple[int, int], Steps]()
        self._waiting: SimpleQueue[tuple[int, int, Completion] | None] = SimpleQueue()
        self._is_abandoned = threading.Event()

    def __enter__(self) -> Self:
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="verify")
        self._judged = self._executor.submit(self._judge_all)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._is_abandoned.set()
        self._waiting.put(None)
        self._executor.shutdown()

    def put(self, problem_index: int, sample_index: int, completion: Completion) -> None:
        if self._judged.done():
            self._judged.result()
        self._waiting.put((problem_index, sample_index, completion))

    def scores(self) -> dict[tuple[int, int], Score]:
        """Of all that was put, once the last of it is judged."""
        self._waiting.put(None)
        return self._judged.result()

    def _judge_all(self) -> dict[tuple[int, int], Score]:
        scores: dict[tuple[int, int], Score] = {}
        is_last = False
        while not is_last and not self._is_abandoned.is_set():
            taken = [self._waiting.get()]
            while not self._waiting.empty():
                taken.append(self._waiting.get())
            is_last = None in taken
            batch = [item for item in taken if item is not None]
            scores |= self._judge([(i, j, completion.text) for i, j, completion in batch])
            if self._steps_of is not None:
                self.steps |= {(i, j): self._steps_of(i, completion) for i, j, completion in batch}
        return scores

    def _judge(self, batch: Sequence[tuple[int, int, str]]) -> dict[tuple[int, int], Score]:
        """One call per kind of verifier: pools are fast with large batches."""
        scores: dict[tuple[int, int], Score] = {}
        for name, verifier in self._verifiers.items():
            asking = [item for item in batch if self._problems[item[0]].verifier == name]
            if asking:
                problems = [self._problems[i] for i, _, _ in asking]
                texts, references = [text for _, _, text in asking], [p.reference for p in problems]
                verdicts = verify(verifier, texts, references, [p.question for p in problems])
                checked = checked_scores(verdicts, verifier=name, problems=[p.id for p in problems])
                scores |= {(i, j): score for (i, j, _), score in zip(asking, checked, strict=True)}
        return scores


def chosen_verifier(problem: Problem, verifiers: Mapping[str, Verifier]) -> Verifier:
    try:
        return verifiers[problem.verifier]
    except KeyError:
        known = sorted({*VERIFIERS, *verifiers})
        raise UserError(f"a problem asks for verifier {problem.verifier!r}: there are {known}") from None
