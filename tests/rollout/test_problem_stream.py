"""Draws from several sources by weight, and passes over problems by their pass rates."""

from __future__ import annotations

import json
import random
from collections import Counter
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.errors import UserError
from rewards.score import Outcome, Score
from rollout.problem_memory import ProblemMemory, Record, Selection, parse_difficulty
from rollout.problem_stream import ProblemStream, Source
from rollout.records import Problem, RolloutGroup
from tests.rollout.test_collect import collector, scripted

CORRECT, WRONG, CRASHED = Score(1.0, Outcome.CORRECT), Score(0.0, Outcome.WRONG), Score(None, Outcome.CRASHED)


def problems(name: str, count: int, **metadata: Any) -> list[Problem]:
    return [Problem(id=f"{name}{i}", prompt=f"{name}{i}", reference="1", metadata=metadata) for i in range(count)]


def mix(*weights: float, size: int = 7, selection: Selection | None = None, seed: int = 3) -> ProblemStream:
    """Sources a, b, c ... with these weights."""
    named = zip("abcdefgh", weights, strict=False)
    return ProblemStream(
        [Source(name=name, problems=problems(name, size), weight=weight) for name, weight in named], seed, selection
    )


def names(drawn: list[Problem]) -> list[str]:
    return [problem.id for problem in drawn]


def visit(problem: Problem, marks: str) -> RolloutGroup:
    """The group of a visit. marks: r is a correct completion, w a wrong one, - one that could not be graded."""
    script = scripted({problem.id: ["1" if mark == "r" else "?" if mark == "-" else "2" for mark in marks]})
    asked = Problem(id=problem.id, prompt=({"role": "user", "content": problem.id},), reference="1", verifier="equal")
    (group,) = collector(script, size=len(marks)).collect([asked], step=1).groups
    return group


def test_one_source_is_drawn_in_the_order_of_earlier_versions() -> None:
    """Runs from before there were mixes resume in the midst of an epoch. The expected order is computed as they computed it."""
    expected = []
    for epoch in range(3):
        order = list(range(7))
        random.Random(f"3/{epoch}").shuffle(order)
        expected += [f"a{i}" for i in order]
    assert names(ProblemStream.of(problems("a", 7), 3).take(21)) == expected
    assert names(mix(0.2).take(21)) == expected  # whatever its name and weight
    later = mix(1.0)
    later.load_state(9, ProblemMemory())  # a checkpoint of earlier versions
    assert names(later.take(12)) == expected[9:]


@given(st.lists(st.floats(0.001, 1000), min_size=1, max_size=6), st.integers(1, 300))
def test_after_each_draw_the_count_of_each_source_is_its_share_rounded_up_or_down(
    weights: list[float], count: int
) -> None:
    drawn = names(mix(*weights).take(count))
    for number in range(1, count + 1):
        counts = Counter(name[0] for name in drawn[:number])
        for name, weight in zip("abcdefgh", weights, strict=False):
            assert abs(counts[name] - number * weight / sum(weights)) < 1 + 1e-9  # of the division in this test


def test_the_weights_are_met_over_a_long_run() -> None:
    counts = Counter(name[0] for name in names(mix(0.7, 0.2, 0.1).take(1000)))
    assert counts == {"a": 700, "b": 200, "c": 100}


def test_each_source_of_a_mix_has_epochs_of_its_own() -> None:
    drawn = names(mix(2, 1).take(42))
    orders = {name: [x[1:] for x in drawn if x[0] == name] for name in "ab"}
    epochs = {name: [order[i : i + 7] for i in range(0, len(order), 7)] for name, order in orders.items()}
    assert (len(epochs["a"]), len(epochs["b"])) == (4, 2)
    assert all(sorted(epoch) == sorted(epochs["a"][0]) for of in epochs.values() for epoch in of)
    assert len({tuple(epoch) for of in epochs.values() for epoch in of}) == 6
    assert drawn != names(mix(2, 1, seed=4).take(42))


def test_a_mix_with_memory_continues_from_its_state_after_any_draw() -> None:
    """The state passes through JSON, as in a checkpoint."""
    selection = Selection(drop_mastered=1.0)

    def step(stream: ProblemStream) -> list[str]:
        drawn = stream.take(3)
        stream.remember([visit(p, "rr" if p.id[1] in "135" else "rw") for p in drawn])
        return names(drawn)

    whole = mix(2, 1, selection=selection)
    saved, steps = [], []
    for _ in range(12):
        saved.append((json.dumps(whole.state()), whole.memory.to_lines()))
        steps.append(step(whole))
    assert any(name[1] in "135" for drawn in steps for name in drawn)
    for done, (state, lines) in enumerate(saved):
        again = mix(2, 1, selection=selection)
        again.take(5)  # whatever it drew before
        again.load_state(json.loads(state), ProblemMemory.from_lines(lines))
        assert [step(again) for _ in range(done, 12)] == steps[done:]
        assert again.memory == whole.memory and again.state() == whole.state()


def test_completions_that_could_not_be_graded_are_in_no_count_and_leave_the_rate_as_it_was() -> None:
    (asked,) = problems("a", 1)
    memory = ProblemMemory()
    found = []
    for marks in ("r-", "rw", "--", "rr"):
        memory.add([visit(asked, marks)])
        record = memory.records["a0"]
        found.append((record.graded, record.correct, record.rate))
    assert found == [(1, 1, None), (3, 2, 0.5), (3, 2, 0.5), (5, 4, 1.0)]


def test_a_mastered_problem_is_never_drawn_again() -> None:
    """Mastered is a pass rate at or above the bound at the last visit, all of whose completions were graded."""
    stream = ProblemStream.of(problems("a", 6), 3, Selection(drop_mastered=0.75))
    marks = {"a0": "rrrw", "a1": "rrww", "a2": "rrr-", "a3": "rrrr", "a4": "wwww", "a5": "rrrr"}
    assert stream.num_left == 6
    stream.remember([visit(p, marks[p.id]) for p in stream.take(6)])
    assert (stream.num_left, stream.num_mastered) == (3, 3)
    later = stream.take(30)
    assert Counter(names(later)) == {"a1": 10, "a2": 10, "a4": 10}
    stream.remember([visit(later[0], "rrrr"), visit(later[0], "rwww")])  # drawn twice in a step: the last visit counts
    assert stream.num_left == 3


def test_the_shares_of_a_source_without_problems_left_go_to_the_others() -> None:
    stream = mix(5, 2, 1, size=4, selection=Selection(drop_mastered=1.0))
    stream.remember([visit(p, "rr") for p in mix(1, 1, 1, size=4).take(12) if p.id[0] == "a"])
    counts = Counter(name[0] for name in names(stream.take(30)))
    assert counts == {"b": 20, "c": 10}
    stream.remember([visit(p, "rr") for p in problems("b", 4) + problems("c", 4)])
    assert stream.num_left == 0
    with pytest.raises(AssertionError, match="nothing is left to draw"):
        stream.take(1)


def test_shares_hold_again_after_a_source_has_ended_in_the_midst() -> None:
    stream = mix(5, 2, 2, size=4, selection=Selection(drop_mastered=1.0))
    stream.take(31)
    stream.remember([visit(p, "rr") for p in problems("a", 4)])
    later = [name[0] for name in names(stream.take(20))]
    assert abs(later.count("b") - later.count("c")) <= 1 and all(later[i : i + 4] != ["b"] * 4 for i in range(17))
    assert sum(x != y for x, y in pairwise(later)) > 10  # they take turns, and no backlog is made up for at once


@pytest.mark.parametrize(
    ("given", "visited", "is_drawn"),
    [
        (None, None, True),
        (0.1, None, True),
        (0.9, None, True),
        (0.05, None, False),
        (1, None, False),
        ("0.95", None, False),
        ("", None, True),
        (0.0, "rw", True),  # its last visit counts more than what the data set says
        (0.5, "rr", False),
        (0.5, "r-", True),  # not all graded: the rate is not known
        (None, "ww", False),
    ],
)
def test_only_problems_within_the_bounds_of_difficulty_are_drawn(
    given: object, visited: str | None, is_drawn: bool
) -> None:
    asked, other = problems("a", 1, pass_rate=given)[0], problems("b", 1, pass_rate=0.5)[0]
    stream = ProblemStream.of([asked, other], 3, Selection(difficulty=(0.1, 0.9)))
    if visited is not None:
        stream.remember([visit(asked, visited)])
    assert ("a0" in names(stream.take(4))) is is_drawn
    assert stream.num_left == 1 + is_drawn


@pytest.mark.parametrize("given", [45, -0.1, "high", [0.5], float("nan")])
def test_a_pass_rate_that_is_no_share_is_refused(given: object) -> None:
    with pytest.raises(UserError, match=r"dataset: pass_rate of problem 'a0' is .*: it must be a share in \[0, 1\]"):
        ProblemStream.of(problems("a", 1, pass_rate=given), 0, Selection(difficulty=(0.1, 0.9)))


@pytest.mark.parametrize("text", ["0.9:0.1", "0.1", "0.1:0.5:0.9", "a:b", "-1:0.5", "0.1:90", "nan:1", ""])
def test_bounds_of_difficulty_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"difficulty is .*: it must be two pass rates in \[0, 1\]"):
        parse_difficulty(text)
    assert parse_difficulty("0:1") == (0.0, 1.0) and parse_difficulty("0.1:0.9") == (0.1, 0.9)


def test_a_source_without_weight_is_never_drawn_from() -> None:
    stream = mix(1, 0, selection=Selection(drop_mastered=1.0))
    drawn = stream.take(14)
    assert {name[0] for name in names(drawn)} == {"a"} and stream.num_left == 7
    stream.remember([visit(p, "rr") for p in drawn[:7]])
    assert stream.num_left == 0


def test_sources_with_problems_of_equal_ids_are_refused() -> None:
    """Seeds and pass rates go by the id."""
    twice = [Source(name=name, problems=problems("a", 2)) for name in ("one", "other")]
    with pytest.raises(UserError, match="'one' and 'other' both have a problem 'a0'"):
        ProblemStream(twice, 0)


def test_records_are_saved_as_one_line_each() -> None:
    memory = ProblemMemory({"a\nb": Record(graded=3, correct=1, rate=1 / 3), "c": Record(graded=1)})
    assert len(memory.to_lines().splitlines()) == 2
    assert ProblemMemory.from_lines(memory.to_lines()) == memory
