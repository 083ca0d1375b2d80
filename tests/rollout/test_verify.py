"""Grading runs beside sampling, gives every completion its own score, and leaves no thread."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from rewards.errors import UserError
from rewards.math_answer import MathVerifier
from rewards.score import Outcome, Reference, Score
from rollout.records import Completion
from rollout.sampler import Requests, SamplingParams, ScriptedSampler, Stream
from rollout.verify import BackgroundVerifier
from tests.rollout.test_collect import Equal, Noting, collector, encoded, problem, scripted, values

TIMEOUT = 30.0  # seconds that a test waits for what must come


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


class Waiting(Noting):
    """Yields the fourth and last completion only once `go` is set; was_in_time: whether it was set within TIMEOUT."""

    go: threading.Event
    was_in_time = False

    def stream(self, requests: Requests, params: SamplingParams) -> Stream:
        for number, found in enumerate(super().stream(requests, params), 1):
            if number == 4:
                self.was_in_time = self.go.wait(TIMEOUT)
            yield found


class Telling(Equal):
    """Sets `started` at its first batch."""

    def __init__(self) -> None:
        super().__init__()
        self.started = threading.Event()

    def verify_batch(self, answers: Sequence[str], references: Sequence[str]) -> list[Score]:
        self.started.set()
        return super().verify_batch(answers, references)


class Failing(Telling):
    def verify_batch(self, answers: Sequence[str], references: Sequence[str]) -> list[Score]:
        self.started.set()
        raise UserError("this verifier is not installed")


def waiting(go: threading.Event) -> Waiting:
    plain = scripted({"a": ["1", "2"], "b": ["2", "1"]})
    sampler = Waiting(plain.script, plain.texts)
    sampler.go = go
    return sampler


def test_verification_begins_before_the_last_completion_ends() -> None:
    verifier = Telling()
    sampler = waiting(verifier.started)
    groups = collector(sampler, equal=verifier).collect([problem("a"), problem("b")], step=1).groups
    assert sampler.was_in_time
    assert [values(group) for group in groups] == [[1.0, 0.0], [0.0, 1.0]]
    assert sum(map(len, verifier.batches)) == 4


def test_scores_belong_to_their_completions() -> None:
    """In whatever order these end, with several verifiers and ragged groups; each verifier gets only the problems that name it."""
    equal, other = Equal(), Equal()
    problems = [problem("a", reference="1"), problem("b", reference="2", verifier="other"), problem("c", reference="3")]
    answers = {(2, 1): "?", (0, 1): "3", (1, 0): "2", (2, 0): "1", (0, 0): "1", (2, 2): "3"}
    made = ScriptedSampler({}, {encoded(a): a for a in answers.values()})
    with BackgroundVerifier(problems, {"equal": equal, "other": other}, group_size=1) as verifier:
        for (i, j), answer in answers.items():
            verifier.put(i, j, made._completion(encoded(answer), seed=0))
        scores = verifier.scores()
    expected = {(0, 0): 1.0, (0, 1): 0.0, (1, 0): 1.0, (2, 0): 0.0, (2, 1): None, (2, 2): 1.0}
    assert {place: score.value for place, score in scores.items()} == expected
    assert [pair for batch in other.batches for pair in batch] == [("2", "2")]


class Longest:
    """Compares the completions of a group: 1 for the longest ones."""

    compares_group = True

    def __init__(self) -> None:
        self.calls: list[list[tuple[int, str]]] = []

    def verify_batch(
        self,
        answers: Sequence[str],
        references: Sequence[Reference],
        rows: Sequence[Mapping[str, Any]],
        groups: Sequence[int],
    ) -> list[Score]:
        assert [row["colour"] for row in rows] == ["red"] * len(answers)
        self.calls.append(list(zip(groups, answers)))
        longest = {g: max(len(a) for a, of in zip(answers, groups) if of == g) for g in groups}
        return [Score(float(len(a) == longest[g]), Outcome.CORRECT) for a, g in zip(answers, groups)]

    def check_references(self, references: Sequence[Reference]) -> list[Score]:
        return [Score(1.0, Outcome.CORRECT)] * len(references)

    def close(self) -> None:
        pass


def test_a_verifier_that_compares_a_group_gets_it_whole() -> None:
    """However the completions come in, beside a verifier that does not wait. The same problem drawn twice is two groups."""
    red = [replace(problem(name, verifier="longest"), metadata={"colour": "red"}) for name in ("a", "b")]
    problems = [*red, red[0], problem("c", reference="1")]
    longest = Longest()
    lengths = {(0, 0): 1, (1, 1): 4, (2, 0): 3, (1, 0): 2, (3, 0): 1, (2, 1): 3, (0, 1): 2, (3, 1): 1}
    made = ScriptedSampler({}, {encoded("1" * n): "1" * n for n in lengths.values()})
    with BackgroundVerifier(problems, {"equal": Equal(), "longest": longest}, group_size=2) as verifier:
        for (i, j), length in lengths.items():
            verifier.put(i, j, made._completion(encoded("1" * length), seed=0))
            time.sleep(0.05)  # the thread takes it up alone; if it is later than that, the test only checks less
        scores = verifier.scores()
    found = {place: score.value for place, score in scores.items()}
    assert found == {(0, 0): 0, (0, 1): 1, (1, 0): 0, (1, 1): 1, (2, 0): 1, (2, 1): 1, (3, 0): 1, (3, 1): 1}
    for call in longest.calls:
        counts = Counter(group for group, _ in call)
        assert set(counts.values()) == {2}


def test_all_pending_completions_are_one_batch() -> None:
    """Pools are fast with large batches: while one is graded the next one grows."""
    verifier, entered, go = Equal(), threading.Event(), threading.Event()

    class Slow(Equal):
        def verify_batch(self, answers: Sequence[str], references: Sequence[str]) -> list[Score]:
            entered.set()
            assert go.wait(TIMEOUT)
            return verifier.verify_batch(answers, references)

    made = ScriptedSampler({}, {encoded("1"): "1"})
    with BackgroundVerifier([problem("a")], {"equal": Slow()}, group_size=1) as background:
        background.put(0, 0, made._completion(encoded("1"), seed=0))
        assert entered.wait(TIMEOUT)
        for j in range(1, 9):
            background.put(0, j, made._completion(encoded("1"), seed=0))
        go.set()
        assert len(background.scores()) == 9
    assert [len(batch) for batch in verifier.batches] == [1, 8]


def test_an_error_of_the_verifier_is_raised_and_ends_sampling() -> None:
    """Before all is sampled: a step may take an hour."""
    verifier = Failing()
    long, size, given = scripted({"a": ["1"] * 20_000}), 20_000, []
    stream = long.stream
    long.stream = lambda *args: (given.append(found) or found for found in stream(*args))  # pyright: ignore
    with pytest.raises(UserError, match="not installed"):
        collector(long, size=size, equal=verifier).collect([problem("a")], step=1)
    assert 0 < len(given) < size
    with pytest.raises(UserError, match="not installed"):
        collector(waiting(verifier.started), equal=verifier).collect([problem("a"), problem("b")], step=1)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (None, "verifier 'equal' returned None"),
        ([1.0, 1.0], "verifier 'equal', problem 'a': it returned 1.0, which is not a Score"),
        ([Score(float("nan"), Outcome.WRONG)] * 2, "verifier 'equal', problem 'a': value is nan"),
    ],
)
def test_the_scores_of_a_users_verifier_are_checked(returned: object, message: str) -> None:
    class Mine(Equal):
        def verify_batch(self, answers: Sequence[str], references: Sequence[str]) -> list[Score]:
            return returned[: len(answers)] if isinstance(returned, list) else returned  # pyright: ignore

    with pytest.raises(UserError, match=message):
        collector(scripted({"a": ["1", "2"]}), equal=Mine()).collect([problem("a")], step=1)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_a_sampler_that_raises_leaves_no_thread(error: type[BaseException]) -> None:
    """Also Ctrl-C. Pending completions are not graded any more."""
    verifier = Equal()
    sampler = scripted({"a": ["1", "2"]})

    def stream(*_: object) -> Iterator[tuple[int, int, Completion]]:
        yield 0, 0, sampler._completion(encoded("1"), 0)
        raise error

    sampler.stream = stream
    with pytest.raises(error):
        collector(sampler, equal=verifier).collect([problem("a")], step=1)
    assert len(verifier.batches) <= 1


def test_the_worker_pool_works_from_the_thread() -> None:
    """Workers that are replaced in the thread must outlive it: on Linux a child may be bound to the thread that started it."""
    with MathVerifier(num_workers=1) as verifier:
        verifier._pool._workers[0].process.kill()
        made = ScriptedSampler({}, {(1,): "\\boxed{1}"})
        for _ in range(2):
            with BackgroundVerifier([problem("a", verifier="math")], {"math": verifier}, group_size=1) as background:
                background.put(0, 0, made._completion((1,), seed=0))
                assert background.scores()[0, 0].outcome is Outcome.CORRECT
            assert all(worker.process.poll() is None for worker in verifier._pool._workers)
