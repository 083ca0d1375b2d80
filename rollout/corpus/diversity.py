"""The rows that are left, in a few bytes each, and the draw of a set that is spread over domains."""

from __future__ import annotations

import random
from array import array
from collections.abc import Sequence

import numpy as np

RANKS = 64  # that can be drawn: those behind have a probability below 2^-64


class Remaining:
    """Rows in 24 bytes each: their number in the stream, hash of the question, words of the worked solution, and domain."""

    def __init__(self) -> None:
        self.numbers, self.hashes = array("Q"), array("Q")
        self.words, self.domains = array("I"), array("I")
        self.names: dict[str, int] = {}

    def add(self, number: int, hashed: int, words: int, domain: str) -> None:
        self.numbers.append(number)
        self.hashes.append(hashed)
        self.words.append(words)
        self.domains.append(self.names.setdefault(domain, len(self.names)))

    def __len__(self) -> int:
        return len(self.numbers)

    def without_duplicates(self) -> tuple[Remaining, tuple[int, int] | None]:
        """(one row for each question, (the first row that is left out, the row in its place) by their numbers; None without one).

        Of equal questions that with the longest worked solution stays; among these the first in the files.
        """
        hashes, words, numbers = self._columns()
        order = np.lexsort((-words, hashes))  # stable
        is_first = np.diff(hashes[order], prepend=hashes[order[:1]] + np.uint64(1)) != 0
        kept = self._at(np.sort(order[is_first]))
        if len(kept) == len(self):
            return kept, None
        left_out = np.flatnonzero(~is_first)
        earliest = left_out[np.argmin(numbers[order[left_out]])]
        in_place = np.flatnonzero(is_first[: earliest + 1])[-1]
        return kept, (int(numbers[order[earliest]]), int(numbers[order[in_place]]))

    def _columns(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return np.asarray(self.hashes), np.asarray(self.words).astype(np.int64), np.asarray(self.numbers)

    def _at(self, places: np.ndarray) -> Remaining:
        kept = Remaining()
        kept.names = self.names
        for name in ("numbers", "hashes", "words", "domains"):
            column: array[int] = getattr(self, name)
            setattr(kept, name, array(column.typecode, np.asarray(column)[places].tobytes()))
        return kept

    def by_domain(self, most: int) -> list[list[int]]:
        """The places of the rows of each domain, in alphabetical order of the domains; at most this many of each. The longest worked
        solution comes first; of equally long ones the hash decides."""
        (hashes, words, _), domains = self._columns(), np.asarray(self.domains)
        order = np.lexsort((hashes, -words, domains))
        ends = np.cumsum(np.bincount(domains, minlength=len(self.names))).tolist()
        starts = [0, *ends]
        return [order[starts[i] : min(ends[i], starts[i] + most)].tolist() for _, i in sorted(self.names.items())]


def draw(domains: Sequence[Sequence[int]], size: int, seed: int) -> list[int]:
    """Draws up to `size` rows without replacement: a domain uniformly, then the row of rank i in it with p(i) proportional to 2^-i.

    The longest worked solution has rank 1, and what is left of a domain is ranked anew after each draw; an empty domain is drawn no more.
    domains: the rows of each, by rank, which must be all of them or at least size + RANKS.
    Source: arXiv 2501.19393, appendix C, algorithm 1, second stage.
    Differs from it: the first stage is left out, which takes all rows of some sources that the teacher solved (of MATH only those whose
    traces are longer than 5,600 tokens); lengths are in words, as there is no tokenizer here; a rank beyond 64 is never drawn.
    """
    rng = random.Random(seed)
    pools = [list(rows[: size + RANKS]) for rows in domains if rows]
    drawn: list[int] = []
    while pools and len(drawn) < size:
        which = rng.randrange(len(pools))
        drawn.append(pools[which].pop(rank(rng, len(pools[which])) - 1))
        if not pools[which]:
            pools[which] = pools[-1]
            pools.pop()
    return drawn


def rank(rng: random.Random, count: int) -> int:
    """i of 1 ... count with p(i) = 2^-i / (1 - 2^-count): the leading zeros of 64 random bits, and one; drawn again beyond count."""
    while (found := RANKS + 1 - rng.getrandbits(RANKS).bit_length()) > min(count, RANKS):
        pass
    return found
