"""Draws the problems of a run from one or several sources, in an order that is seeded, counted and resumable."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Self

from rewards.errors import UserError
from rollout.problem_memory import ProblemMemory, Selection
from rollout.records import Problem, RolloutGroup


@dataclass(frozen=True, kw_only=True)
class Source:
    """A data set's training problems. weight: their share of the draws, relative to the weights of the other data sets."""

    name: str
    problems: Sequence[Problem]
    weight: float = 1.0


@dataclass
class Position:
    """Where a stream stands in a source. drawn: problems drawn from it. cursor: places of its order that it has passed."""

    drawn: int = 0
    cursor: int = 0


class ProblemStream:
    """Draws problems. Each draw first chooses a source by the weights, then takes the next problem in that source's order.

    The choice of the source depends on how many were drawn from each, and on no random number: it is the quota method of Balinski and
    Young (1975). After n draws a source with share w of the weights was drawn w n times, rounded up or down, whatever n is. Independent
    draws would be off by sqrt(n w (1 - w)), which in a step of 32 problems is up to three of them, and would only add noise to the
    gradient. The order of a source is a permutation for each of its epochs, a function of the seed and the epoch.

    selection: passes over problems by their pass rates, which `remember` learns. A source without any left is drawn from no more, and
    the others share its draws. So a draw depends on the seed, the positions and what was remembered before it, and on nothing else.
    """

    def __init__(self, sources: Sequence[Source], seed: int, selection: Selection | None = None) -> None:
        self.sources = tuple(source for source in sources if source.weight > 0)
        self.seed = seed
        self.selection = selection or Selection()
        self.positions = [Position() for _ in self.sources]
        self.memory = ProblemMemory()
        self._index = indexed(self.sources)
        self._shares = [Fraction(source.weight) for source in self.sources]  # exact, so that no rounding decides a tie
        self._orders: list[tuple[int, list[int]]] = [(-1, [])] * len(self.sources)
        self._closed: list[set[str]] = []  # by source: the problems that are not drawn
        self._close()

    @classmethod
    def of(cls, problems: Sequence[Problem], seed: int, selection: Selection | None = None) -> Self:
        """The stream of one source: each problem once an epoch."""
        return cls([Source(name="", problems=problems)], seed, selection)

    @property
    def num_drawn(self) -> int:
        return sum(position.drawn for position in self.positions)

    @property
    def num_left(self) -> int:
        """The number of problems that may still be drawn."""
        return sum(map(self._num_left, range(len(self.sources))))

    @property
    def num_mastered(self) -> int:
        """The number of problems that are not drawn again because they are mastered."""
        return sum(self.selection.is_mastered(record.rate) for record in self.memory.records.values())

    def take(self, count: int) -> list[Problem]:
        """Draws the next `count` problems, which repeat where fewer are left. There must be one left."""
        return [self._draw(self._next_source()) for _ in range(count)]

    def remember(self, groups: Iterable[RolloutGroup]) -> None:
        """Learns the pass rates of problems that were drawn. Every process must give the same groups."""
        groups = list(groups)
        self.memory.add(groups)
        for problem in (group.problem for group in groups):
            closed = self._closed[self._index[problem.id]]
            (closed.discard if self.selection.allows(problem, self.memory.rate(problem)) else closed.add)(problem.id)

    def _next_source(self) -> int:
        """Of the sources that are below their share of the draws, this one included, the one whose next draw is due first."""
        left = [i for i in range(len(self.sources)) if self._num_left(i) > 0]
        assert left, "nothing is left to draw"
        drawn, shares = [position.drawn for position in self.positions], self._shares
        number, total = sum(drawn[i] for i in left) + 1, sum(shares[i] for i in left)
        below = [i for i in left if drawn[i] * total < shares[i] * number]
        return min(below, key=lambda i: (drawn[i] + 1) / shares[i])

    def _draw(self, index: int) -> Problem:
        """The next problem of the source that may be drawn. It is found within two epochs, as the source has one."""
        problems, position = self.sources[index].problems, self.positions[index]
        while True:
            epoch, place = divmod(position.cursor, len(problems))
            if self._orders[index][0] != epoch:
                self._orders[index] = epoch, self.order(self.sources[index], epoch)
            problem = problems[self._orders[index][1][place]]
            position.cursor += 1
            if problem.id not in self._closed[index]:
                position.drawn += 1
                return problem

    def _num_left(self, index: int) -> int:
        return len(self.sources[index].problems) - len(self._closed[index])

    def _close(self) -> None:
        """Finds the problems that are not drawn."""
        self._closed = [
            {p.id for p in source.problems if not self.selection.allows(p, self.memory.rate(p))}
            for source in self.sources
        ]

    def order(self, source: Source, epoch: int) -> list[int]:
        """The order in which an epoch takes the source's problems. In a mix each source has an order of its own."""
        order = list(range(len(source.problems)))
        own = "" if len(self.sources) == 1 else f"/{source.name}"
        random.Random(f"{self.seed}/{epoch}{own}").shuffle(order)
        return order

    def state(self) -> dict[str, dict[str, int]]:
        """The positions by source, as JSON. With the memory it is all that a checkpoint has to hold."""
        return {
            source.name: vars(position).copy() for source, position in zip(self.sources, self.positions, strict=True)
        }

    def load_state(self, state: Mapping[str, Any] | int, memory: ProblemMemory) -> None:
        """Continues from a saved state. An integer is the position of a run from before there were mixes."""
        if isinstance(state, int):
            (source,) = self.sources
            state = {source.name: {"drawn": state, "cursor": state}}
        self.positions = [Position(**state[source.name]) for source in self.sources]
        self.memory = memory
        self._close()


def indexed(sources: Sequence[Source]) -> dict[str, int]:
    """The index of each problem's source, by the problem's id. Raises UserError where two sources have the same id."""
    found: dict[str, int] = {}
    for index, source in enumerate(sources):
        for problem in source.problems:
            other = found.setdefault(problem.id, index)
            if other != index:
                raise UserError(
                    f"dataset: {sources[other].name!r} and {source.name!r} both have a problem {problem.id!r}; give the problems other ids"
                )
    return found
